package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
)

// manager owns the fields that the platform applies.
const manager = "wisp-platform"

// The hash of what was applied last is kept in the cluster itself, so that it
// goes when the cluster's state goes.
const (
	appliedNamespace = metav1.NamespaceSystem
	appliedName      = "wisp-platform"
	appliedKey       = "applied"
)

// stages order the kinds: what is in one needs what is in those before.
// Webhooks come last, since they stand in the way of what they watch over until
// their server runs.
var stages = [][]string{
	{"Namespace", "CustomResourceDefinition"},
	{"ServiceAccount", "ClusterRole", "Role", "ConfigMap", "Secret", "Service", "RuntimeClass"},
	{"ClusterRoleBinding", "RoleBinding"},
	{"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"},
}

// parallel bounds the requests that are under way at once.
const parallel = 8

// Apply brings the objects into the cluster, and waits until the API server
// serves the custom resources among them. What was applied before isn't touched
// unless the manifests have changed: changes that a user made to a ConfigMap
// stay until then.
func (c *Cluster) Apply(ctx context.Context, objects []*Object) error {
	hash, err := hashObjects(objects)
	if err != nil {
		return err
	}
	before, err := c.applied(ctx)
	if err != nil || before == hash {
		return err
	}
	if before != "" {
		// Knative's webhook validates its ConfigMaps and doesn't run now. The
		// configurations are applied again at the end.
		if err := c.deleteWebhooks(ctx, objects); err != nil {
			return err
		}
	}
	for _, kinds := range stages {
		if err := c.applyKinds(ctx, objects, kinds); err != nil {
			return err
		}
	}
	return c.setApplied(ctx, hash)
}

func (c *Cluster) applyKinds(ctx context.Context, objects []*Object, kinds []string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, o := range objects {
		if !slices.Contains(kinds, o.GetKind()) {
			continue
		}
		g.Go(func() error {
			if err := c.applyOne(ctx, o); err != nil {
				return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
			}
			if o.GetKind() == "CustomResourceDefinition" {
				return c.awaitEstablished(ctx, o.GetName())
			}
			return nil
		})
	}
	return g.Wait()
}

func (c *Cluster) applyOne(ctx context.Context, o *Object) error {
	_, err := c.resource(o).Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: manager, Force: true})
	return err
}

// resource returns the client for an object's kind and namespace. The kinds in
// use all have the plural that one would guess.
func (c *Cluster) resource(o *Object) dynamic.ResourceInterface {
	gvr, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
	if o.GetNamespace() == "" {
		return c.Dynamic.Resource(gvr)
	}
	return c.Dynamic.Resource(gvr).Namespace(o.GetNamespace())
}

var crds = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// awaitEstablished waits until a custom resource is served.
func (c *Cluster) awaitEstablished(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	w, err := c.Dynamic.Resource(crds).Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()})
	if err != nil {
		return fmt.Errorf("watch CustomResourceDefinition %s: %w", name, err)
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		if o, ok := event.Object.(*Object); ok && event.Type != watch.Deleted && established(o) {
			return nil
		}
	}
	return fmt.Errorf("wait for CustomResourceDefinition %s to be established: %w", name, context.Cause(ctx))
}

func established(crd *Object) bool {
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	return slices.ContainsFunc(conditions, func(c any) bool {
		condition, ok := c.(map[string]any)
		return ok && condition["type"] == "Established" && condition["status"] == "True"
	})
}

func (c *Cluster) deleteWebhooks(ctx context.Context, objects []*Object) error {
	for _, o := range objects {
		if !slices.Contains(stages[len(stages)-1], o.GetKind()) {
			continue
		}
		err := c.resource(o).Delete(ctx, o.GetName(), metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return nil
}

// applied returns the hash of what was applied last, or "".
func (c *Cluster) applied(ctx context.Context) (string, error) {
	cm, err := c.Kube.CoreV1().ConfigMaps(appliedNamespace).Get(ctx, appliedName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read what was applied: %w", err)
	}
	return cm.Data[appliedKey], nil
}

func (c *Cluster) setApplied(ctx context.Context, hash string) error {
	o := &Object{Object: map[string]any{
		"apiVersion": "v1",
		"kind":       "ConfigMap",
		"metadata":   map[string]any{"name": appliedName, "namespace": appliedNamespace},
		"data":       map[string]any{appliedKey: hash},
	}}
	if err := c.applyOne(ctx, o); err != nil {
		return fmt.Errorf("note what was applied: %w", err)
	}
	return nil
}

func hashObjects(objects []*Object) (string, error) {
	h := sha256.New()
	for _, o := range objects {
		text, err := json.Marshal(o.Object) // keys are sorted
		if err != nil {
			return "", fmt.Errorf("hash %s %s: %w", o.GetKind(), o.GetName(), err)
		}
		h.Write(text)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}
