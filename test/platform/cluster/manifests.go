package cluster

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Object is any Kubernetes object.
type Object = unstructured.Unstructured

// ReadObjects reads the objects in YAML files. Each path may be a file, or a
// pattern that must match at least one.
func ReadObjects(patterns ...string) ([]*Object, error) {
	var objects []*Object
	for _, pattern := range patterns {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return nil, fmt.Errorf("read manifests %s: %w", pattern, err)
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("read manifests %s: there are none", pattern)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("read manifests: %w", err)
			}
			more, err := ParseObjects(text)
			if err != nil {
				return nil, fmt.Errorf("read manifests %s: %w", file, err)
			}
			objects = append(objects, more...)
		}
	}
	return objects, nil
}

// ParseObjects reads the objects in a stream of YAML documents.
func ParseObjects(text []byte) ([]*Object, error) {
	var objects []*Object
	docs := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		var content map[string]any
		if err := yaml.Unmarshal(doc, &content); err != nil {
			return nil, err
		}
		if len(content) == 0 { // comments only
			continue
		}
		objects = append(objects, &Object{Object: content})
	}
}
