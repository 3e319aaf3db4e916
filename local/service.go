package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	k8syaml "sigs.k8s.io/yaml"

	"github.com/wisp-serving/wisp/config"
)

// manifest is what a Service's file holds: the Service, and what it refers to.
type manifest struct {
	service    *servingv1.Service
	configMaps map[string]*corev1.ConfigMap
	secrets    map[string]*corev1.Secret
}

// IsManifest is whether what names a Service's file rather than a module.
func IsManifest(what string) bool {
	switch filepath.Ext(what) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// readManifest reads a file that holds one Service, and ConfigMaps and Secrets
// that it refers to.
func readManifest(file string) (*manifest, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read service: %w", err)
	}
	m := &manifest{configMaps: map[string]*corev1.ConfigMap{}, secrets: map[string]*corev1.Secret{}}
	documents := yaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(text)))
	defer documents.Close()
	buffer := make([]byte, len(text)+1)
	for n := 1; ; n++ {
		size, err := documents.Read(buffer)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = m.add(buffer[:size])
		}
		if err != nil {
			return nil, fmt.Errorf("read service: %s: document %d: %w", file, n, err)
		}
	}
	if m.service == nil {
		return nil, fmt.Errorf("read service: %s: no Service of %s in it", file, servingv1.SchemeGroupVersion)
	}
	return m, nil
}

func (m *manifest) add(document []byte) error {
	var kind metav1.TypeMeta
	if err := k8syaml.Unmarshal(document, &kind); err != nil {
		return err
	}
	switch kind.APIVersion + " " + kind.Kind {
	case " ": // a comment
		return nil
	case servingv1.SchemeGroupVersion.String() + " Service":
		if m.service != nil {
			return errors.New("a second Service: one at a time can be run")
		}
		m.service = &servingv1.Service{}
		return k8syaml.UnmarshalStrict(document, m.service)
	case "v1 ConfigMap":
		c := &corev1.ConfigMap{}
		err := k8syaml.UnmarshalStrict(document, c)
		m.configMaps[c.Name] = c
		return err
	case "v1 Secret":
		s := &corev1.Secret{}
		err := k8syaml.UnmarshalStrict(document, s)
		for key, value := range s.StringData { // as the API server does
			if s.Data == nil {
				s.Data = map[string][]byte{}
			}
			s.Data[key] = []byte(value)
		}
		m.secrets[s.Name] = s
		return err
	default:
		return fmt.Errorf("%s of %s: only a Service, ConfigMaps and Secrets can be used here", kind.Kind, kind.APIVersion)
	}
}

// moduleManifest is the Service that a module would get without one.
func moduleManifest(what string) *manifest {
	m := &manifest{service: &servingv1.Service{}}
	m.service.Name = nameOf(what)
	m.service.Spec.Template.Spec.Containers = []corev1.Container{{Image: what}}
	return m
}

// nameOf makes a Service's name of a module's file or an image.
func nameOf(what string) string {
	name, _, _ := strings.Cut(filepath.Base(what), "@")
	name, _, _ = strings.Cut(name, ":")
	name = noName.ReplaceAllString(strings.ToLower(strings.TrimSuffix(name, ".wasm")), "-")
	name = strings.Trim(name[:min(len(name), 50)], "-")
	if name == "" || name[0] < 'a' {
		name = strings.Trim("fn-"+name, "-")
	}
	return name
}

var noName = regexp.MustCompile(`[^a-z0-9]+`)

// namespace is where functions are that run here.
const namespace = "default"

// add puts what the command line says into the Service.
func (m *manifest) apply(cfg RunConfig) error {
	m.service.Namespace = namespace
	template := &m.service.Spec.Template
	if cfg.ABI != "" {
		if template.Annotations == nil {
			template.Annotations = map[string]string{}
		}
		template.Annotations[config.ABIAnnotation] = cfg.ABI
	}
	if len(template.Spec.Containers) != 1 || len(template.Spec.InitContainers) > 0 {
		return fmt.Errorf("spec.template.spec: %d containers and %d init containers: only a cluster runs more than one", len(template.Spec.Containers), len(template.Spec.InitContainers))
	}
	c := &template.Spec.Containers[0]
	if len(cfg.Args) > 0 {
		c.Args = cfg.Args
	}
	for _, entry := range cfg.Env {
		name, value, ok := strings.Cut(entry, "=")
		if !ok || name == "" {
			return fmt.Errorf("env = %q, must be NAME=value", entry)
		}
		setEnv(c, name, value)
	}
	return nil
}

func setEnv(c *corev1.Container, name, value string) {
	for i := range c.Env {
		if c.Env[i].Name == name {
			c.Env[i] = corev1.EnvVar{Name: name, Value: value}
			return
		}
	}
	c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: value})
}

// ConfigMap implements podspec.Source: what isn't in the file isn't there.
func (m *manifest) ConfigMap(_ context.Context, _, name string) (*corev1.ConfigMap, error) {
	if c, ok := m.configMaps[name]; ok {
		return c, nil
	}
	return nil, apierrors.NewNotFound(corev1.Resource("configmaps"), name)
}

// Secret implements podspec.Source.
func (m *manifest) Secret(_ context.Context, _, name string) (*corev1.Secret, error) {
	if s, ok := m.secrets[name]; ok {
		return s, nil
	}
	return nil, apierrors.NewNotFound(corev1.Resource("secrets"), name)
}

// Token implements volume.Source.
func (m *manifest) Token(context.Context, *corev1.Pod, *corev1.ServiceAccountTokenProjection) (string, time.Time, error) {
	return "", time.Time{}, errors.New("there are no ServiceAccounts without a cluster")
}
