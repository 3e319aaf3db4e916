package decider

import (
	"testing"
	"time"

	"knative.dev/serving/pkg/apis/autoscaling"
	asconfig "knative.dev/serving/pkg/autoscaler/config"
)

// TestEverySettingReachesThePlan changes each annotation of a revision and each
// key of config-autoscaler that the arithmetic knows, one at a time. What bounds
// its result is package lifecycle's.
func TestEverySettingReachesThePlan(t *testing.T) {
	tests := []struct {
		annotation, key, value string
		of                     func(plan) any
		want                   any
	}{
		{annotation: autoscaling.MetricAnnotationKey, value: "rps", of: func(p plan) any { return p.spec.ScalingMetric }, want: "rps"},
		{annotation: autoscaling.TargetAnnotationKey, value: "10", of: func(p plan) any { return p.spec.TotalValue }, want: 10.0},
		{annotation: autoscaling.TargetUtilizationPercentageKey, value: "50", of: func(p plan) any { return p.spec.TargetValue }, want: 50.0},
		{annotation: autoscaling.WindowAnnotationKey, value: "30s", of: func(p plan) any { return p.span.Stable }, want: 30 * time.Second},
		{annotation: autoscaling.WindowAnnotationKey, value: "30s", of: func(p plan) any { return p.spec.StableWindow }, want: 30 * time.Second},
		{annotation: autoscaling.PanicWindowPercentageAnnotationKey, value: "20", of: func(p plan) any { return p.span.Panic }, want: 12 * time.Second},
		{annotation: autoscaling.PanicThresholdPercentageAnnotationKey, value: "300", of: func(p plan) any { return p.spec.PanicThreshold }, want: 3.0},
		{annotation: autoscaling.ActivationScaleKey, value: "3", of: func(p plan) any { return p.spec.ActivationScale }, want: int32(3)},
		{annotation: autoscaling.ScaleDownDelayAnnotationKey, value: "1m", of: func(p plan) any { return p.spec.ScaleDownDelay }, want: time.Minute},
		{annotation: autoscaling.MetricAggregationAlgorithmKey, value: "weighted-exponential", of: func(p plan) any { return p.span.Algorithm }, want: autoscaling.MetricAggregationAlgorithmWeightedExponential},

		{key: "stable-window", value: "90s", of: func(p plan) any { return p.span.Stable }, want: 90 * time.Second},
		{key: "panic-window-percentage", value: "50", of: func(p plan) any { return p.span.Panic }, want: 30 * time.Second},
		{key: "panic-threshold-percentage", value: "400", of: func(p plan) any { return p.spec.PanicThreshold }, want: 4.0},
		{key: "max-scale-up-rate", value: "5", of: func(p plan) any { return p.spec.MaxScaleUpRate }, want: 5.0},
		{key: "max-scale-down-rate", value: "3", of: func(p plan) any { return p.spec.MaxScaleDownRate }, want: 3.0},
		{key: "container-concurrency-target-default", value: "10", of: func(p plan) any { return p.spec.TotalValue }, want: 10.0},
		{key: "container-concurrency-target-percentage", value: "50", of: func(p plan) any { return p.spec.TargetValue }, want: 50.0},
		{key: "scale-down-delay", value: "15s", of: func(p plan) any { return p.spec.ScaleDownDelay }, want: 15 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.annotation+tt.key, func(t *testing.T) {
			pa, values := newPA(), map[string]string{}
			if tt.annotation != "" {
				pa.Annotations[tt.annotation] = tt.value
			} else {
				values[tt.key] = tt.value
			}
			cfg, err := asconfig.NewConfigFromMap(values)
			if err != nil {
				t.Fatal(err)
			}
			if got := tt.of(planOf(newPA(), defaults(t))); got == tt.want {
				t.Fatalf("%v is the default: that shows nothing", got)
			}
			if got := tt.of(planOf(pa, cfg)); got != tt.want {
				t.Errorf("got %v (%T), want %v (%T)", got, got, tt.want, tt.want)
			}
		})
	}
	t.Run("requests-per-second-target-default", func(t *testing.T) {
		cfg, err := asconfig.NewConfigFromMap(map[string]string{"requests-per-second-target-default": "50"})
		if err != nil {
			t.Fatal(err)
		}
		if got := planOf(newPA(autoscaling.MetricAnnotationKey, "rps"), cfg).spec.TotalValue; got != 50 {
			t.Errorf("got %v, want 50", got)
		}
	})
}
