package cluster

import (
	"fmt"
	"path/filepath"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// KnativeNamespace is where Knative's ConfigMaps and webhook are.
const KnativeNamespace = "knative-serving"

// Sources are the folders of Knative's modules, which hold its manifests.
type Sources struct{ Serving, Networking, Caching string }

// Settings are the values that a platform sets in Knative's ConfigMaps: by name
// of the ConfigMap, then by key.
type Settings map[string]map[string]string

// Knative reads Knative Serving's manifests and settles them in: with settings,
// and with a webhook that the API server reaches on loopback at webhookPort.
func Knative(from Sources, settings Settings, webhookPort int) ([]*Object, error) {
	core := filepath.Join(from.Serving, "config/core")
	objects, err := ReadObjects(
		filepath.Join(core, "100-namespace.yaml"),
		filepath.Join(core, "200-roles/*.yaml"),
		filepath.Join(core, "200-serviceaccount.yaml"),
		filepath.Join(core, "300-resources/*.yaml"),
		filepath.Join(from.Networking, "config/*.yaml"),
		filepath.Join(from.Caching, "config/image.yaml"),
		filepath.Join(core, "configmaps/*.yaml"),
		filepath.Join(core, "webhooks/*.yaml"),
	)
	if err != nil {
		return nil, err
	}
	set := map[string]bool{}
	for _, o := range objects {
		switch o.GetKind() {
		case "ConfigMap":
			values := settings[o.GetName()]
			set[o.GetName()] = true
			for key, value := range values {
				if err := unstructured.SetNestedField(o.Object, value, "data", key); err != nil {
					return nil, fmt.Errorf("set %s in ConfigMap %s: %w", key, o.GetName(), err)
				}
			}
		case "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration":
			if err := setWebhookPort(o, webhookPort); err != nil {
				return nil, fmt.Errorf("set the port of %s: %w", o.GetName(), err)
			}
		}
	}
	for name := range settings {
		if !set[name] {
			return nil, fmt.Errorf("set values in ConfigMap %s: Knative has none of that name", name)
		}
	}
	return append(objects, webhookService()), nil
}

// setWebhookPort has the API server call the Service's port instead of 443. The
// Knative webhook itself fills in the rest and keeps the port.
func setWebhookPort(o *Object, port int) error {
	webhooks, _, err := unstructured.NestedSlice(o.Object, "webhooks")
	if err != nil {
		return err
	}
	for _, w := range webhooks {
		hook, ok := w.(map[string]any)
		if !ok {
			return fmt.Errorf("a %T among the webhooks", w)
		}
		if err := unstructured.SetNestedField(hook, int64(port), "clientConfig", "service", "port"); err != nil {
			return err
		}
	}
	return unstructured.SetNestedSlice(o.Object, webhooks, "webhooks")
}

// webhookService leads the API server, which runs outside of any pod network,
// to the webhook's process.
func webhookService() *Object {
	return &Object{Object: map[string]any{
		"apiVersion": "v1",
		"kind":       "Service",
		"metadata":   map[string]any{"name": "webhook", "namespace": KnativeNamespace},
		"spec":       map[string]any{"type": "ExternalName", "externalName": "localhost"},
	}}
}
