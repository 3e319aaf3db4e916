package lifecycle

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"knative.dev/pkg/kmap"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"

	"github.com/wisp-serving/wisp/config"
)

// Check returns what makes pa impossible to scale, or nil.
//
// Knative's webhook checks most annotations for every class, but metric and
// metric-aggregation-algorithm for its own only, and it lets NaN pass any
// bound.
func Check(pa *autoscalingv1alpha1.PodAutoscaler) error {
	if err := oneOf(pa, autoscaling.MetricAnnotation, autoscaling.Concurrency, autoscaling.RPS); err != nil {
		return err
	}
	if err := oneOf(pa, autoscaling.MetricAggregationAlgorithmAnnotation,
		autoscaling.MetricAggregationAlgorithmLinear,
		autoscaling.MetricAggregationAlgorithmWeightedExponential,
		autoscaling.MetricAggregationAlgorithmWeightedExponentialAlt); err != nil {
		return err
	}
	for _, key := range []kmap.KeyPriority{
		autoscaling.TargetAnnotation,
		autoscaling.TargetUtilizationPercentageAnnotation,
		autoscaling.TargetBurstCapacityAnnotation,
		autoscaling.PanicWindowPercentageAnnotation,
		autoscaling.PanicThresholdPercentageAnnotation,
	} {
		if err := finite(pa, key); err != nil {
			return err
		}
	}
	if err := duration(pa, config.PodAfterAnnotation); err != nil {
		return err
	}
	if ref := pa.Spec.ScaleTargetRef; ref.APIVersion != "apps/v1" || ref.Kind != "Deployment" {
		return fmt.Errorf("scaleTargetRef = %s %s, must be a Deployment of apps/v1", ref.APIVersion, ref.Kind)
	}
	return nil
}

// oneOf passes an empty value too: the webhook writes an empty metric into
// PodAutoscalers of classes that it doesn't know.
func oneOf(pa *autoscalingv1alpha1.PodAutoscaler, key kmap.KeyPriority, values ...string) error {
	name, got, _ := key.Get(pa.Annotations)
	if got == "" {
		return nil
	}
	for _, v := range values {
		if got == v {
			return nil
		}
	}
	return fmt.Errorf("%s = %q, must be %s", name, got, strings.Join(values, " or "))
}

func finite(pa *autoscalingv1alpha1.PodAutoscaler, key kmap.KeyPriority) error {
	name, text, ok := key.Get(pa.Annotations)
	if !ok {
		return nil
	}
	if v, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(v) && !math.IsInf(v, 0) {
		return nil
	}
	return fmt.Errorf("%s = %q, must be a finite number", name, text)
}

// maxPodAfter is Knative's longest stable window: what is longer is a mistake.
const maxPodAfter = time.Hour

func duration(pa *autoscalingv1alpha1.PodAutoscaler, name string) error {
	text, ok := pa.Annotations[name]
	if !ok {
		return nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 && d <= maxPodAfter {
		return nil
	}
	return fmt.Errorf("%s = %q, must be a duration of 0s to %s", name, text, maxPodAfter)
}
