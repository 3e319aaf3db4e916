package copies

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"github.com/wisp-serving/wisp/provider/pause"
	"github.com/wisp-serving/wisp/provider/podspec"
)

// Waits between attempts to watch an object.
const (
	// askAgain is also how long a verdict of the API server holds that says no.
	askAgain = time.Minute
	// retryAfter is the shortest wait after another error, retryWithin the longest.
	retryAfter, retryWithin = time.Second, 5 * time.Second
)

// watchFor is how long one watch is to last, give or take a half.
const watchFor = 6 * time.Minute

// keep watches an object again and again until ctx ends.
func (c *Copies) keep(ctx context.Context, it *kept) {
	for {
		err := c.watch(ctx, it)
		c.lose(it)
		wait := time.Duration(0)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errForbidden):
			wait = askAgain
		case err != nil:
			c.log.Debugw("what starts with an object waits for its pod", "object", it.String(), "error", err)
			wait = retryAfter + rand.N(retryWithin-retryAfter)
		}
		if !pause.For(ctx, wait) {
			return
		}
	}
}

// errForbidden is that the identity may not watch.
var errForbidden = errors.New("forbidden")

// watch reads an object and follows it until the watch ends, which is no error
// where the API server ends it in its time.
func (c *Copies) watch(ctx context.Context, it *kept) error {
	if err := c.verdicts.ask(ctx, it.scope); err != nil {
		return err
	}
	options := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, it.name).String()}
	found, version, err := c.list(ctx, it, options)
	if err != nil {
		return c.failed(it, err)
	}
	options.ResourceVersion = version
	seconds := int64((watchFor/2 + rand.N(watchFor)).Seconds())
	options.TimeoutSeconds = &seconds
	changes, err := c.open(ctx, it, options)
	if err != nil {
		return c.failed(it, err)
	}
	defer changes.Stop()
	defer context.AfterFunc(ctx, changes.Stop)()
	if err := c.set(it, found); err != nil {
		return err
	}
	began := time.Now()
	for change := range changes.ResultChan() {
		if err := c.change(it, change); err != nil {
			return c.failed(it, err)
		}
	}
	if time.Since(began) < retryAfter {
		return errors.New("the watch ended at once")
	}
	return nil
}

// failed makes err that of a watch. One that was refused is a verdict on the
// others in its namespace too.
func (c *Copies) failed(it *kept, err error) error {
	if apierrors.IsForbidden(err) {
		c.verdicts.refuse(it.scope)
		return errForbidden
	}
	return err
}

// change takes over what a watch tells.
func (c *Copies) change(it *kept, change watch.Event) error {
	if o, ok := change.Object.(metav1.Object); ok && o.GetName() != it.name {
		return nil // as of a server that selects by no field
	}
	switch change.Type {
	case watch.Added, watch.Modified:
		return c.set(it, trim(change.Object))
	case watch.Deleted:
		return c.set(it, nil)
	case watch.Error:
		return apierrors.FromObject(change.Object)
	default:
		return nil
	}
}

// list returns the object, nil if it isn't there, and the version to watch from.
func (c *Copies) list(ctx context.Context, it *kept, options metav1.ListOptions) (any, string, error) {
	if it.kind == podspec.Secret {
		list, err := c.client.CoreV1().Secrets(it.namespace).List(ctx, options)
		if err != nil {
			return nil, "", err
		}
		for i := range list.Items {
			if list.Items[i].Name == it.name {
				return trim(&list.Items[i]), list.ResourceVersion, nil
			}
		}
		return nil, list.ResourceVersion, nil
	}
	list, err := c.client.CoreV1().ConfigMaps(it.namespace).List(ctx, options)
	if err != nil {
		return nil, "", err
	}
	for i := range list.Items {
		if list.Items[i].Name == it.name {
			return trim(&list.Items[i]), list.ResourceVersion, nil
		}
	}
	return nil, list.ResourceVersion, nil
}

func (c *Copies) open(ctx context.Context, it *kept, options metav1.ListOptions) (watch.Interface, error) {
	if it.kind == podspec.Secret {
		return c.client.CoreV1().Secrets(it.namespace).Watch(ctx, options)
	}
	return c.client.CoreV1().ConfigMaps(it.namespace).Watch(ctx, options)
}

// trim returns what of an object functions start with.
func trim(obj any) any {
	switch o := obj.(type) {
	case *corev1.ConfigMap:
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name}, Data: o.Data, BinaryData: o.BinaryData}
	case *corev1.Secret:
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name}, Data: o.Data}
	default:
		return nil
	}
}

// scope is what a permission is given for: one kind in one namespace.
type scope struct {
	kind      podspec.Kind
	namespace string
}

// resource is the kind's name in the API's paths.
func (s scope) resource() string {
	if s.kind == podspec.Secret {
		return "secrets"
	}
	return "configmaps"
}

// verdicts are what the API server has said that this identity may watch. It is
// safe for concurrent use; those that ask about one scope wait for one answer.
type verdicts struct {
	client kubernetes.Interface

	mu  sync.Mutex
	all map[scope]*verdict
}

type verdict struct {
	mu      sync.Mutex
	allowed bool
	refused time.Time // zero: never
}

func (v *verdicts) of(s scope) *verdict {
	v.mu.Lock()
	defer v.mu.Unlock()
	it := v.all[s]
	if it == nil {
		if len(v.all) >= maxObjects {
			clear(v.all) // of namespaces that are gone, most likely: what is needed is asked again
		}
		it = &verdict{}
		v.all[s] = it
	}
	return it
}

// ask returns errForbidden if the identity may not watch the scope, or may not
// have within the last minute.
func (v *verdicts) ask(ctx context.Context, s scope) error {
	it := v.of(s)
	it.mu.Lock()
	defer it.mu.Unlock()
	if it.allowed {
		return nil
	}
	if !it.refused.IsZero() && time.Since(it.refused) < askAgain {
		return errForbidden
	}
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: s.namespace, Verb: "watch", Version: "v1", Resource: s.resource()},
	}}
	answer, err := v.client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("ask whether %s may be watched in namespace %s: %w", s.resource(), s.namespace, err)
	}
	if it.allowed = answer.Status.Allowed; !it.allowed {
		it.refused = time.Now()
		return errForbidden
	}
	return nil
}

// refuse notes that the API server has refused what it allowed before.
func (v *verdicts) refuse(s scope) {
	it := v.of(s)
	it.mu.Lock()
	defer it.mu.Unlock()
	it.allowed, it.refused = false, time.Now()
}
