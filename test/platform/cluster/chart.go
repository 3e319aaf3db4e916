package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// Chart has helm render the chart in dir, for a namespace, with values over the
// chart's own, and returns the objects, the namespace among them.
func Chart(helm, dir, namespace string, values map[string]any) ([]*Object, error) {
	text, err := yaml.Marshal(values)
	if err != nil {
		return nil, fmt.Errorf("render chart %s: %w", dir, err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(helm, "template", filepath.Base(dir), dir, "--namespace", namespace, "--kube-version", kubeVersion, "--values", "-")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(text), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("render chart %s: %w\n%s", dir, err, stderr.String())
	}
	objects, err := ParseObjects(stdout.Bytes())
	if err != nil {
		return nil, fmt.Errorf("render chart %s: %w", dir, err)
	}
	home := &Object{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": namespace}}}
	return append([]*Object{home}, objects...), nil
}

// kubeVersion is what charts are rendered for: helm would ask the cluster, and
// this one doesn't run yet.
const kubeVersion = "1.35.0"

// ReadSettings reads the YAML text under key in one of the objects, the ConfigMap
// named name, over what settings holds.
func ReadSettings(objects []*Object, name, key string, settings any) error {
	for _, o := range objects {
		if o.GetKind() != "ConfigMap" || o.GetName() != name {
			continue
		}
		text, ok, err := unstructured.NestedString(o.Object, "data", key)
		if err == nil && !ok {
			err = errors.New("there is no such key")
		}
		if err == nil {
			err = yaml.UnmarshalStrict([]byte(text), settings)
		}
		if err != nil {
			return fmt.Errorf("read %s of ConfigMap %s: %w", key, name, err)
		}
		return nil
	}
	return fmt.Errorf("read ConfigMap %s: there is none of that name", name)
}
