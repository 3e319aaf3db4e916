package autoscaler

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/apis/serving"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/wisp-serving/wisp/autoscaler/lifecycle"
	"github.com/wisp-serving/wisp/config"
)

// workers reconcile at the same time. Each waits for the API server, not for a
// core.
const workers = 8

type (
	queue = workqueue.TypedRateLimitingInterface[reconcile.Request]
	// decision names a revision whose load asks for another number of pods.
	decision = event.TypedGenericEvent[types.NamespacedName]
	// decisions are handed to the workers.
	decisions chan decision
)

// send blocks until the workers' queue has key, or ctx ends.
func (d decisions) send(ctx context.Context, key types.NamespacedName) {
	select {
	case d <- decision{Object: key}:
	case <-ctx.Done():
	}
}

// watch makes mgr call r for a PodAutoscaler when something changes that its
// decision is made of: itself, its ready pods, its target's replicas, Knative's
// settings, and what the load asks for, which due says. It does so on every
// autoscaler: one that doesn't lead keeps its deciders up to date by it.
func watch(mgr manager.Manager, r *reconciler, due decisions) error {
	return builder.ControllerManagedBy(mgr).
		Named("podautoscaler").
		WithOptions(controller.Options{
			MaxConcurrentReconciles: workers,
			NeedLeaderElection:      ptr.To(false),
			// The name only has to be unique for metrics, which are off.
			SkipNameValidation: ptr.To(true),
		}).
		For(&autoscalingv1alpha1.PodAutoscaler{}, builder.WithPredicates(classChanges())).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(toRevision), builder.WithPredicates(podChanges())).
		Watches(&appsv1.Deployment{}, handler.EnqueueRequestsFromMapFunc(toRevision), builder.WithPredicates(targetChanges())).
		Watches(&corev1.ConfigMap{}, onSettings(mgr.GetClient(), r.settings)).
		WatchesRawSource(fromLoad(due)).
		Complete(r)
}

// toRevision names the PodAutoscaler of a pod or Deployment: it is called like
// the revision.
func toRevision(_ context.Context, obj client.Object) []reconcile.Request {
	return []reconcile.Request{{NamespacedName: types.NamespacedName{
		Namespace: obj.GetNamespace(), Name: obj.GetLabels()[serving.RevisionLabelKey],
	}}}
}

// classChanges lets PodAutoscalers pass that are or were ours: one that was
// given to another class has to be forgotten.
func classChanges() predicate.Predicate {
	isOurs := func(obj client.Object) bool {
		pa, ok := obj.(*autoscalingv1alpha1.PodAutoscaler)
		return ok && pa.Class() == config.PodAutoscalerClass
	}
	p := predicate.NewPredicateFuncs(isOurs)
	p.UpdateFunc = func(e event.UpdateEvent) bool { return isOurs(e.ObjectOld) || isOurs(e.ObjectNew) }
	return p
}

// podChanges lets pods pass only where the number of ready ones may change, or
// what keeps one from being ready.
func podChanges() predicate.Predicate {
	ready := func(obj client.Object) bool {
		pod, ok := obj.(*corev1.Pod)
		return ok && podReady(pod)
	}
	trouble := func(obj client.Object) lifecycle.Trouble {
		pod, ok := obj.(*corev1.Pod)
		if !ok {
			return lifecycle.Trouble{}
		}
		return podTrouble(pod)
	}
	p := predicate.NewPredicateFuncs(ready)
	p.UpdateFunc = func(e event.UpdateEvent) bool {
		return ready(e.ObjectOld) != ready(e.ObjectNew) || trouble(e.ObjectOld) != trouble(e.ObjectNew)
	}
	return p
}

// targetChanges lets Deployments pass whose spec changes, or whether they can
// make pods.
func targetChanges() predicate.Predicate {
	trouble := func(obj client.Object) lifecycle.Trouble {
		d, ok := obj.(*appsv1.Deployment)
		if !ok {
			return lifecycle.Trouble{}
		}
		return targetTrouble(d)
	}
	return predicate.Or[client.Object](predicate.GenerationChangedPredicate{}, predicate.Funcs{
		UpdateFunc: func(e event.UpdateEvent) bool { return trouble(e.ObjectOld) != trouble(e.ObjectNew) },
	})
}

// onSettings takes new settings over and has every PodAutoscaler looked at.
func onSettings(c client.Client, s *settings) handler.EventHandler {
	take := func(ctx context.Context, obj client.Object, q queue) {
		cm, ok := obj.(*corev1.ConfigMap)
		if !ok || !s.take(cm) {
			return
		}
		var list autoscalingv1alpha1.PodAutoscalerList
		if err := c.List(ctx, &list); err != nil {
			s.log.Errorw("settings take effect late", "error", err)
			return
		}
		for i := range list.Items {
			if ours(&list.Items[i]) {
				q.Add(reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
			}
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q queue) { take(ctx, e.Object, q) },
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q queue) { take(ctx, e.ObjectNew, q) },
	}
}

// fromLoad queues the PodAutoscalers that due names.
func fromLoad(due <-chan decision) source.Source {
	return source.Channel(due, handler.TypedFuncs[types.NamespacedName, reconcile.Request]{
		GenericFunc: func(_ context.Context, d decision, q queue) { q.Add(reconcile.Request{NamespacedName: d.Object}) },
	})
}
