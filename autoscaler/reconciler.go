package autoscaler

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"
	appsv1 "k8s.io/api/apps/v1"
	k8sautoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/wisp-serving/wisp/autoscaler/decider"
	"github.com/wisp-serving/wisp/autoscaler/lifecycle"
	"github.com/wisp-serving/wisp/config"
)

// conflictDelay is when to look again after someone else wrote the status
// first. The watch mostly brings their write before.
const conflictDelay = 50 * time.Millisecond

// reconciler carries out what package lifecycle decides about each
// PodAutoscaler of our class. One PodAutoscaler is never reconciled twice at a
// time.
type reconciler struct {
	client client.Client
	// live reads past the cache, what is needed too rarely to be watched.
	live client.Reader
	// leads is whether this process writes anything.
	leads    func() bool
	settings *settings
	deciders *decider.Set
	log      *zap.SugaredLogger
}

// Reconcile implements reconcile.Reconciler.
func (r *reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pa autoscalingv1alpha1.PodAutoscaler
	err := r.client.Get(ctx, req.NamespacedName, &pa)
	if apierrors.IsNotFound(err) || (err == nil && !ours(&pa)) {
		r.deciders.Forget(req.NamespacedName)
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("get PodAutoscaler %s: %w", req, err)
	}
	target, err := r.target(ctx, &pa)
	if err != nil {
		return reconcile.Result{}, err
	}
	if foreign(target) {
		r.deciders.Forget(req.NamespacedName)
		return reconcile.Result{}, r.handBack(ctx, &pa, target)
	}
	observed, err := r.observe(ctx, &pa, target)
	if err != nil || !r.leads() {
		return reconcile.Result{}, err
	}
	return r.carryOut(ctx, &pa, observed, lifecycle.Next(&pa, observed, time.Now()))
}

// carryOut scales first: the status says what is so.
func (r *reconciler) carryOut(ctx context.Context, pa *autoscalingv1alpha1.PodAutoscaler, o lifecycle.Observed, d lifecycle.Decision) (reconcile.Result, error) {
	if err := r.scale(ctx, pa, o.Replicas, d.Replicas); err != nil {
		return reconcile.Result{}, err
	}
	err := r.writeStatus(ctx, pa, d.Status)
	switch {
	case apierrors.IsConflict(err):
		return reconcile.Result{RequeueAfter: conflictDelay}, nil
	case client.IgnoreNotFound(err) != nil:
		return reconcile.Result{}, fmt.Errorf("write status of PodAutoscaler %s: %w", client.ObjectKeyFromObject(pa), err)
	}
	return reconcile.Result{RequeueAfter: d.After}, nil
}

// lookAtAll has the workers look at every PodAutoscaler of ours: a process that
// has just won the lead has carried nothing out yet.
func (r *reconciler) lookAtAll(ctx context.Context, due decisions) {
	var list autoscalingv1alpha1.PodAutoscalerList
	if err := r.client.List(ctx, &list); err != nil {
		r.log.Errorw("decisions take effect late", "error", err)
		return
	}
	for i := range list.Items {
		if ours(&list.Items[i]) {
			due.send(ctx, client.ObjectKeyFromObject(&list.Items[i]))
		}
	}
}

// ours reports whether pa is for us to scale.
func ours(pa *autoscalingv1alpha1.PodAutoscaler) bool {
	return pa.Class() == config.PodAutoscalerClass && pa.DeletionTimestamp == nil
}

// prime tracks every PodAutoscaler there is, so that the first stats of nodes
// find their revisions.
func (r *reconciler) prime(ctx context.Context) error {
	var list autoscalingv1alpha1.PodAutoscalerList
	if err := r.client.List(ctx, &list); err != nil {
		return fmt.Errorf("list PodAutoscalers: %w", err)
	}
	for i := range list.Items {
		pa := &list.Items[i]
		if !ours(pa) {
			continue
		}
		target, err := r.target(ctx, pa)
		if err != nil {
			return err
		}
		if foreign(target) {
			continue
		}
		if _, err := r.observe(ctx, pa, target); err != nil {
			return err
		}
	}
	return nil
}

// observe looks at everything that a decision about pa needs, and keeps the
// decider up to date on the way. Target is nil if it isn't known yet.
func (r *reconciler) observe(ctx context.Context, pa *autoscalingv1alpha1.PodAutoscaler, target *appsv1.Deployment) (lifecycle.Observed, error) {
	key := client.ObjectKeyFromObject(pa)
	pods, err := r.pods(ctx, key)
	if err != nil {
		return lifecycle.Observed{}, err
	}
	observed := lifecycle.Observed{
		Autoscaler:       r.settings.autoscaler.Load(),
		ProgressDeadline: r.settings.deadline(),
		Replicas:         replicas(target),
		Ready:            int32(len(nodesOf(pods))),
		Trouble:          trouble(target, pods),
		Invalid:          lifecycle.Check(pa),
	}
	if observed.Invalid != nil {
		r.deciders.Forget(key)
		return observed, nil
	}
	view := r.deciders.Track(pa, observed.Autoscaler, observed.Replicas)
	observed.Desired, observed.Watched = view.Desired, time.Since(view.Since)
	return observed, nil
}

// trouble returns the first thing that Kubernetes says is wrong.
func trouble(target *appsv1.Deployment, pods []corev1.Pod) lifecycle.Trouble {
	if target != nil {
		if t := targetTrouble(target); t.Reason != "" {
			return t
		}
	}
	for i := range pods {
		if t := podTrouble(&pods[i]); t.Reason != "" {
			return t
		}
	}
	return lifecycle.Trouble{}
}

// readyNodes returns the nodes of a revision's ready pods, one for each pod.
func (r *reconciler) readyNodes(ctx context.Context, revision types.NamespacedName) ([]string, error) {
	pods, err := r.pods(ctx, revision)
	return nodesOf(pods), err
}

func nodesOf(pods []corev1.Pod) []string {
	var nodes []string
	for i := range pods {
		if podReady(&pods[i]) {
			nodes = append(nodes, pods[i].Spec.NodeName)
		}
	}
	return nodes
}

func (r *reconciler) pods(ctx context.Context, revision types.NamespacedName) ([]corev1.Pod, error) {
	var pods corev1.PodList
	if err := r.client.List(ctx, &pods, client.InNamespace(revision.Namespace), client.MatchingFields{revisionIndex: revision.Name}); err != nil {
		return nil, fmt.Errorf("list pods of revision %s: %w", revision, err)
	}
	return pods.Items, nil
}

// target returns what pa scales, nil if the cache doesn't hold it yet; when it
// does, an event follows. It is shared, and must not be changed.
func (r *reconciler) target(ctx context.Context, pa *autoscalingv1alpha1.PodAutoscaler) (*appsv1.Deployment, error) {
	d := &appsv1.Deployment{}
	err := r.client.Get(ctx, targetOf(pa), d)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("get Deployment %s: %w", targetOf(pa), err)
	default:
		return d, nil
	}
}

// replicas returns what the target has now, or lifecycle.Unknown.
func replicas(target *appsv1.Deployment) int32 {
	switch {
	case target == nil:
		return lifecycle.Unknown
	case target.Spec.Replicas == nil:
		return 1 // The API's default.
	default:
		return *target.Spec.Replicas
	}
}

func targetOf(pa *autoscalingv1alpha1.PodAutoscaler) client.ObjectKey {
	return client.ObjectKey{Namespace: pa.Namespace, Name: pa.Spec.ScaleTargetRef.Name}
}

// scale gives pa's target other replicas, unless it has them or isn't there.
func (r *reconciler) scale(ctx context.Context, pa *autoscalingv1alpha1.PodAutoscaler, from, to int32) error {
	if to == lifecycle.Unknown || from == lifecycle.Unknown || from == to {
		return nil
	}
	target := targetOf(pa)
	d := &appsv1.Deployment{}
	d.Namespace, d.Name = target.Namespace, target.Name
	patch := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, to))
	err := r.client.SubResource("scale").Patch(ctx, d, patch, client.WithSubResourceBody(&k8sautoscalingv1.Scale{}))
	if apierrors.IsNotFound(err) {
		return nil // Gone with its Revision; the PodAutoscaler follows.
	}
	if err != nil {
		return fmt.Errorf("scale Deployment %s to %d: %w", target, to, err)
	}
	r.log.Infow("revision scaled", "revision", client.ObjectKeyFromObject(pa).String(), "from", from, "to", to)
	return nil
}

func (r *reconciler) writeStatus(ctx context.Context, pa *autoscalingv1alpha1.PodAutoscaler, status autoscalingv1alpha1.PodAutoscalerStatus) error {
	// Transition times don't count as a difference (Knative's VolatileTime).
	if equality.Semantic.DeepEqual(pa.Status, status) {
		return nil
	}
	pa.Status = status
	return r.client.Status().Update(ctx, pa)
}
