package autoscaler

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/wisp-serving/wisp/autoscaler/lifecycle"
	"github.com/wisp-serving/wisp/config"
)

// foreign is whether the target's pods don't run on wasm nodes. A target that
// isn't known yet may be ours.
func foreign(target *appsv1.Deployment) bool {
	return target != nil && runtimeClass(target) != config.RuntimeClass
}

func runtimeClass(target *appsv1.Deployment) string {
	if class := target.Spec.Template.Spec.RuntimeClassName; class != nil {
		return *class
	}
	return ""
}

// handBack gives a PodAutoscaler whose pods aren't wasm to Knative's own class,
// so that Wisp's can be a cluster's default without harm to its containers.
// Where the Revision itself asks for our class, Knative would write it again and
// again: that is a condition.
//
// See RATIONALE.md "Why are PodAutoscalers handed back?"
func (r *reconciler) handBack(ctx context.Context, pa *autoscalingv1alpha1.PodAutoscaler, target *appsv1.Deployment) error {
	key := client.ObjectKeyFromObject(pa)
	if !r.leads() {
		return nil
	}
	var revision servingv1.Revision
	if err := client.IgnoreNotFound(r.live.Get(ctx, key, &revision)); err != nil {
		return fmt.Errorf("get Revision %s: %w", key, err)
	}
	if _, class, asked := autoscaling.ClassAnnotation.Get(revision.Annotations); asked {
		invalid := fmt.Errorf("%s = %s, but the runtime class of its pods is %q, must be %s",
			autoscaling.ClassAnnotationKey, class, runtimeClass(target), config.RuntimeClass)
		d := lifecycle.Next(pa, lifecycle.Observed{Autoscaler: r.settings.autoscaler.Load(), Invalid: invalid}, time.Now())
		return client.IgnoreNotFound(r.writeStatus(ctx, pa, d.Status))
	}
	annotations := map[string]string{autoscaling.ClassAnnotationKey: autoscaling.KPA}
	if pa.Metric() == "" {
		annotations[autoscaling.MetricAnnotationKey] = autoscaling.Concurrency // as Knative's webhook has it
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	if err != nil {
		return err
	}
	if err := client.IgnoreNotFound(r.client.Patch(ctx, pa, client.RawPatch(types.MergePatchType, patch))); err != nil {
		return fmt.Errorf("hand PodAutoscaler %s back to Knative: %w", key, err)
	}
	r.log.Infow("revision handed back to Knative's autoscaler", "revision", key.String(), "runtimeClass", runtimeClass(target))
	return nil
}
