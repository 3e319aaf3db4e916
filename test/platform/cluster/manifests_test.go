package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// sources writes folders like those of Knative's modules.
func sources(t *testing.T) Sources {
	t.Helper()
	dir := t.TempDir()
	for file, text := range map[string]string{
		"serving/config/core/100-namespace.yaml":            "apiVersion: v1\nkind: Namespace\nmetadata: {name: knative-serving}\n",
		"serving/config/core/200-roles/a.yaml":              "# only a comment\n",
		"serving/config/core/200-serviceaccount.yaml":       "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: controller}\n",
		"serving/config/core/300-resources/service.yaml":    "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: services.serving.knative.dev}\n",
		"serving/config/core/configmaps/deployment.yaml":    "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: config-deployment}\ndata: {queue-sidecar-image: ko://queue, _example: kept}\n",
		"serving/config/core/configmaps/domain.yaml":        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: config-domain}\n",
		"serving/config/core/webhooks/defaulting.yaml":      "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\nmetadata: {name: w}\nwebhooks:\n- clientConfig: {service: {name: webhook}}\n",
		"networking/config/config-network.yaml":             "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: config-network}\n---\n---\n",
		"caching/config/image.yaml":                         "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: images.caching.internal.knative.dev}\n",
		"serving/config/core/deployments/not-applied.yaml":  "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: controller}\n",
		"serving/config/core/configmaps/placeholder_doc.go": "package core\n",
	} {
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Sources{filepath.Join(dir, "serving"), filepath.Join(dir, "networking"), filepath.Join(dir, "caching")}
}

func TestKnative(t *testing.T) {
	objects, err := Knative(sources(t), Settings{
		"config-deployment": {"queue-sidecar-image": "plain"},
		"config-domain":     {"localhost": ""},
	}, 9443)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]*Object{}
	for _, o := range objects {
		got[o.GetKind()+" "+o.GetName()] = o
	}
	if len(objects) != 9 {
		t.Errorf("%d objects, want 9: %v", len(objects), got)
	}
	for name, want := range map[string]map[string]any{
		"ConfigMap config-deployment": {"queue-sidecar-image": "plain", "_example": "kept"},
		"ConfigMap config-domain":     {"localhost": ""},
	} {
		data, _, err := unstructured.NestedMap(got[name].Object, "data")
		if diff := cmp.Diff(want, data); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	hooks, _, _ := unstructured.NestedSlice(got["MutatingWebhookConfiguration w"].Object, "webhooks")
	port, _, err := unstructured.NestedInt64(hooks[0].(map[string]any), "clientConfig", "service", "port")
	if port != 9443 || err != nil {
		t.Errorf("webhook port = %d, %v, want 9443", port, err)
	}
	if service := got["Service webhook"]; service == nil {
		t.Error("the webhook has no Service")
	}
}

func TestKnative_refuses_settings_of_no_ConfigMap(t *testing.T) {
	_, err := Knative(sources(t), Settings{"config-typo": {"a": "b"}}, 9443)
	if err == nil || !strings.Contains(err.Error(), "config-typo") {
		t.Errorf("Knative = %v, want an error that names config-typo", err)
	}
}

func TestReadObjects_names_what_is_wrong(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("kind: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for pattern, want := range map[string]string{
		filepath.Join(dir, "*.yaml"): bad,
		filepath.Join(dir, "*.json"): "*.json: there are none",
	} {
		if _, err := ReadObjects(pattern); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ReadObjects(%s) = %v, want %q in it", pattern, err, want)
		}
	}
}

func TestHashObjects_sees_every_change(t *testing.T) {
	object := func(value string) *Object {
		return &Object{Object: map[string]any{"kind": "ConfigMap", "data": map[string]any{"a": "1", "b": value}}}
	}
	one, err := hashObjects([]*Object{object("2")})
	if err != nil {
		t.Fatal(err)
	}
	same, err := hashObjects([]*Object{object("2")})
	if err != nil {
		t.Fatal(err)
	}
	other, err := hashObjects([]*Object{object("3")})
	if err != nil {
		t.Fatal(err)
	}
	if one != same || one == other {
		t.Errorf("hashes %s, %s, %s: want the first two alike and the third another", one, same, other)
	}
}
