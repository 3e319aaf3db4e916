package platform

import (
	"context"
	"errors"
	"fmt"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
	networkingv1alpha1 "knative.dev/networking/pkg/apis/networking/v1alpha1"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/yaml"
)

// newClient makes a client for the types that tests deal with.
func newClient(cfg *rest.Config) (client.WithWatch, error) {
	s := runtime.NewScheme()
	err := errors.Join(
		scheme.AddToScheme(s),
		servingv1.AddToScheme(s),
		networkingv1alpha1.AddToScheme(s),
		autoscalingv1alpha1.AddToScheme(s),
	)
	if err != nil {
		return nil, err
	}
	cfg = rest.CopyConfig(cfg)
	cfg.WarningHandlerWithContext = rest.NoWarnings{} // Knative's about its own Deployments, at each of them
	return client.NewWithWatch(cfg, client.Options{Scheme: s})
}

// WaitFor waits until the object with obj's type, namespace and name exists and
// ok holds for it, and returns it as it was then. What says what is waited for,
// as in "be ready". After a minute the test fails, showing the object.
func WaitFor[T client.Object](t testing.TB, p *Platform, obj T, what string, ok func(T) bool) T {
	t.Helper()
	var last T
	seen := false
	err := p.watch(obj, nil, func(e watch.Event) (bool, error) {
		last, seen = e.Object.(T)
		return seen && e.Type != watch.Deleted && ok(last), nil
	})
	if err != nil {
		t.Fatalf("wait for %T %s to %s: %v\n%s", obj, client.ObjectKeyFromObject(obj), what, err, show(last, seen))
	}
	return last
}

// WaitGone waits until there is no object of obj's type, namespace and name. An
// object that never was there is gone.
func WaitGone[T client.Object](t testing.TB, p *Platform, obj T) {
	t.Helper()
	err := p.watch(obj,
		func(store cache.Store) (bool, error) { return len(store.List()) == 0, nil },
		func(e watch.Event) (bool, error) { return e.Type == watch.Deleted, nil })
	if err != nil {
		t.Fatalf("wait for %T %s to be gone: %v", obj, client.ObjectKeyFromObject(obj), err)
	}
}

// watch lists and watches the object of obj's type and name until done holds for
// an event, or first, if set, for what was listed.
func (p *Platform) watch(obj client.Object, first watchtools.PreconditionFunc, done watchtools.ConditionFunc) error {
	// Not a test's context: it has ended when the test cleans up.
	ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
	defer cancel()
	lw, err := p.listWatch(obj)
	if err != nil {
		return err
	}
	_, err = watchtools.UntilWithSync(ctx, lw, obj, first, done)
	return err
}

func (p *Platform) listWatch(obj client.Object) (*cache.ListWatch, error) {
	gvk, err := apiutil.GVKForObject(obj, p.Client.Scheme())
	if err != nil {
		return nil, err
	}
	newList := func() (client.ObjectList, error) {
		list, err := p.Client.Scheme().New(gvk.GroupVersion().WithKind(gvk.Kind + "List"))
		if err != nil {
			return nil, err
		}
		return list.(client.ObjectList), nil
	}
	options := func(raw metav1.ListOptions) *client.ListOptions {
		return &client.ListOptions{
			Raw:           &raw,
			Namespace:     obj.GetNamespace(),
			FieldSelector: fields.OneTermEqualSelector("metadata.name", obj.GetName()),
		}
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, raw metav1.ListOptions) (runtime.Object, error) {
			list, err := newList()
			if err != nil {
				return nil, err
			}
			return list, p.Client.List(ctx, list, options(raw))
		},
		WatchFuncWithContext: func(ctx context.Context, raw metav1.ListOptions) (watch.Interface, error) {
			list, err := newList()
			if err != nil {
				return nil, err
			}
			return p.Client.Watch(ctx, list, options(raw))
		},
	}, nil
}

func show(obj any, seen bool) string {
	if !seen {
		return "it was never there"
	}
	text, err := yaml.Marshal(obj)
	if err != nil {
		return fmt.Sprint(err)
	}
	return "last seen as\n" + string(text)
}
