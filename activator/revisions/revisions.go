// Package revisions keeps what the request path must know of every Revision in
// the cluster, from a watch.
//
// It reads with the node's second identity, since the Node authorizer grants a
// kubelet no Revisions. One goroutine, the informer's, joined by Run.
package revisions

import (
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	serving "knative.dev/serving/pkg/client/clientset/versioned"
	servinginformers "knative.dev/serving/pkg/client/informers/externalversions"

	"github.com/wisp-serving/wisp/activator"
	"github.com/wisp-serving/wisp/config"
)

// defaultTimeout is Knative's revision-timeout-seconds, for a Revision that the
// webhook has not defaulted.
const defaultTimeout = 300 * time.Second

// Revisions is the set of Revisions that exist, as last seen. Its methods are
// safe for concurrent use.
type Revisions struct {
	factory  servinginformers.SharedInformerFactory
	informer cache.SharedIndexInformer
}

// New prepares a watch through client; deleted is called, from the informer's
// goroutine, with each Revision that goes away.
func New(client serving.Interface, deleted func(types.NamespacedName, types.UID)) (*Revisions, error) {
	factory := servinginformers.NewSharedInformerFactory(client, 0)
	informer := factory.Serving().V1().Revisions().Informer()
	if err := informer.SetTransform(trim); err != nil {
		return nil, fmt.Errorf("prepare the watch of revisions: %w", err)
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(obj any) {
		if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = last.Obj
		}
		if r, ok := obj.(*servingv1.Revision); ok {
			deleted(types.NamespacedName{Namespace: r.Namespace, Name: r.Name}, r.UID)
		}
	}})
	if err != nil {
		return nil, fmt.Errorf("prepare the watch of revisions: %w", err)
	}
	return &Revisions{factory: factory, informer: informer}, nil
}

// Run watches until ctx ends.
func (r *Revisions) Run(ctx context.Context) error {
	r.factory.Start(ctx.Done())
	<-ctx.Done()
	r.factory.Shutdown()
	return nil
}

// Synced blocks until the first list is in, or fails when ctx ends.
func (r *Revisions) Synced(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), r.informer.HasSynced) {
		return errors.Join(errors.New("list revisions"), ctx.Err())
	}
	return nil
}

// Get returns the revision, false if none of that name exists.
func (r *Revisions) Get(key types.NamespacedName) (activator.Revision, bool) {
	obj, ok, err := r.informer.GetStore().GetByKey(key.String())
	if err != nil || !ok {
		return activator.Revision{}, false
	}
	rev := obj.(*servingv1.Revision)
	return activator.Revision{
		NamespacedName: key,
		UID:            rev.UID,
		Concurrency:    int(value(rev.Spec.ContainerConcurrency, 0)),
		Timeout:        timeout(rev),
		PodAfter:       podAfter(rev),
	}, true
}

func timeout(rev *servingv1.Revision) time.Duration {
	seconds := value(rev.Spec.TimeoutSeconds, 0)
	if seconds <= 0 {
		return defaultTimeout
	}
	return time.Duration(seconds) * time.Second
}

// podAfter is 0 for what is no duration: the autoscaler says so in the
// revision's status.
func podAfter(rev *servingv1.Revision) time.Duration {
	d, err := time.ParseDuration(rev.Annotations[config.PodAfterAnnotation])
	if err != nil {
		return 0
	}
	return max(d, 0)
}

func value(p *int64, otherwise int64) int64 {
	if p == nil {
		return otherwise
	}
	return *p
}

// trim keeps of a Revision what Get reads: thousands of idle revisions live in
// this cache.
func trim(obj any) (any, error) {
	rev, ok := obj.(*servingv1.Revision)
	if !ok {
		return obj, nil
	}
	trimmed := &servingv1.Revision{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       rev.Namespace,
			Name:            rev.Name,
			UID:             rev.UID,
			ResourceVersion: rev.ResourceVersion,
		},
		Spec: servingv1.RevisionSpec{
			ContainerConcurrency: rev.Spec.ContainerConcurrency,
			TimeoutSeconds:       rev.Spec.TimeoutSeconds,
		},
	}
	if after, ok := rev.Annotations[config.PodAfterAnnotation]; ok {
		trimmed.Annotations = map[string]string{config.PodAfterAnnotation: after}
	}
	return trimmed, nil
}
