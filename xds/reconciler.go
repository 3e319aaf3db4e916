package xds

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// reconciler writes KIngresses' status from the board. It is told of each
// KIngress whose outcome may have changed; what it can't prove yet it tries
// again by the queue's backoff.
type reconciler struct {
	client client.Client
	board  *board
	prober *prober
	// envoys returns where the Envoys to be proved are, and whether there are others
	// than those of this gateway.
	envoys  func(ctx context.Context, d domains) (all places, others bool, err error)
	metrics *metrics
	log     *zap.SugaredLogger
}

// Reconcile implements reconcile.Reconciler.
func (r *reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	ing := &v1alpha1.Ingress{}
	if err := r.client.Get(ctx, req.NamespacedName, ing); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	o, envoys, silent, ok := r.board.get(req.NamespacedName)
	if !ok || !ours(ing) {
		return reconcile.Result{}, nil
	}
	all, others, err := r.envoys(ctx, o.domains)
	if err != nil {
		return reconcile.Result{}, err
	}
	status, verdict := judge(ing, o, envoys, silent, others)
	var proof error
	switch verdict {
	case keep:
		return reconcile.Result{}, nil
	case prove:
		if proof = r.prober.proveAll(ctx, all, o); proof != nil {
			status = probeFailed(ing, proof)
		} else {
			status = ready(ing, o.domains)
			r.metrics.proved(ctx, time.Since(o.since))
		}
	}
	if err := r.write(ctx, ing, status); err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{}, proof // an error is what makes the queue back off
}

// write patches the status where it differs. The patch names the version that it
// is based on, so that an outdated one is refused and tried anew.
func (r *reconciler) write(ctx context.Context, ing *v1alpha1.Ingress, status v1alpha1.IngressStatus) error {
	if equality.Semantic.DeepEqual(ing.Status, status) {
		return nil
	}
	was := ing.IsReady()
	patch := client.MergeFromWithOptions(ing.DeepCopy(), client.MergeFromWithOptimisticLock{})
	ing.Status = status
	err := r.client.Status().Patch(ctx, ing, patch)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("patch status of ingress %s: %w", client.ObjectKeyFromObject(ing), err)
	}
	if !was && ing.IsReady() {
		r.log.Infow("ingress ready", "key", client.ObjectKeyFromObject(ing), "generation", ing.Generation)
	}
	return nil
}
