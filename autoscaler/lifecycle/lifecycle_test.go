package lifecycle

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/apis/serving"
	asconfig "knative.dev/serving/pkg/autoscaler/config"
	"knative.dev/serving/pkg/autoscaler/config/autoscalerconfig"

	"github.com/wisp-serving/wisp/config"
)

const (
	window   = time.Minute
	deadline = 10 * time.Minute
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// state is a state of the condition Active.
type state struct {
	status corev1.ConditionStatus
	reason string
	age    time.Duration
}

func activating(age time.Duration) state { return state{corev1.ConditionUnknown, reasonQueued, age} }
func active(age time.Duration) state     { return state{corev1.ConditionTrue, "", age} }
func inactive(age time.Duration) state   { return state{corev1.ConditionFalse, reasonNoTraffic, age} }

func cfg(t *testing.T, settings ...string) *autoscalerconfig.Config {
	t.Helper()
	data := make(map[string]string)
	for i := 0; i < len(settings); i += 2 {
		data[settings[i]] = settings[i+1]
	}
	c, err := asconfig.NewConfigFromMap(data)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// newPA returns a PodAutoscaler with the given state of Active (none if its
// status is empty) and annotations.
func newPA(s state, initialized bool, annotations ...string) *autoscalingv1alpha1.PodAutoscaler {
	pa := &autoscalingv1alpha1.PodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "sort-00001", Generation: 7,
			Annotations: map[string]string{autoscaling.ClassAnnotationKey: "wisp.dev", autoscaling.MetricAnnotationKey: ""},
		},
		Spec: autoscalingv1alpha1.PodAutoscalerSpec{
			ScaleTargetRef: corev1.ObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "sort-00001-deployment"},
		},
	}
	for i := 0; i < len(annotations); i += 2 {
		pa.Annotations[annotations[i]] = annotations[i+1]
	}
	if s.status == "" {
		return pa
	}
	pa.Status.InitializeConditions()
	if initialized {
		pa.Status.MarkScaleTargetInitialized()
	}
	conditions := pa.Status.GetConditions()
	for i := range conditions {
		if conditions[i].Type == autoscalingv1alpha1.PodAutoscalerConditionActive {
			conditions[i].Status, conditions[i].Reason = s.status, s.reason
			conditions[i].LastTransitionTime = apis.VolatileTime{Inner: metav1.NewTime(now.Add(-s.age))}
		}
	}
	pa.Status.SetConditions(conditions)
	return pa
}

func reach(pa *autoscalingv1alpha1.PodAutoscaler, r autoscalingv1alpha1.ReachabilityType) *autoscalingv1alpha1.PodAutoscaler {
	pa.Spec.Reachability = r
	return pa
}

// observe is a world that has been watched for an hour.
func observe(c *autoscalerconfig.Config, desired, ready int32) Observed {
	return Observed{Autoscaler: c, ProgressDeadline: deadline, Desired: desired, Ready: ready, Watched: time.Hour}
}

func withTrouble(o Observed) Observed {
	o.Trouble = Trouble{Reason: "ErrImagePull", Message: "100% gone"}
	return o
}

// outcome is what a decision comes to, in short.
type outcome struct {
	Active      string // status and reason of the condition
	Initialized bool
	Replicas    int32
	After       time.Duration
}

func in(d Decision) outcome {
	c := d.Status.GetCondition(autoscalingv1alpha1.PodAutoscalerConditionActive)
	return outcome{
		Active:      fmt.Sprint(c.Status, " ", c.Reason),
		Initialized: d.Status.IsScaleTargetInitialized(),
		Replicas:    d.Replicas,
		After:       d.After,
	}
}

func TestLife(t *testing.T) {
	const (
		isQueued, isActive, isIdle, isTimedOut = "Unknown Queued", "True ", "False NoTraffic", "False TimedOut"
		minScale, initial                      = autoscaling.MinScaleAnnotationKey, autoscaling.InitialScaleAnnotationKey
	)
	unreachable := func(pa *autoscalingv1alpha1.PodAutoscaler) *autoscalingv1alpha1.PodAutoscaler {
		return reach(pa, autoscalingv1alpha1.ReachabilityUnreachable)
	}
	std := cfg(t)
	zeroAllowed := cfg(t, "allow-zero-initial-scale", "true")
	tests := []struct {
		name string
		pa   *autoscalingv1alpha1.PodAutoscaler
		obs  Observed
		want outcome
	}{
		// Created and started.
		{"created", newPA(state{}, false), observe(std, Unknown, 0), outcome{isQueued, false, Unknown, deadline + patience + time.Second}},
		{"first pod ready", newPA(activating(time.Second), false), observe(std, Unknown, 1), outcome{isActive, true, Unknown, 0}},
		{"min-scale not reached", newPA(activating(time.Second), false, minScale, "3"), observe(std, Unknown, 2), outcome{isQueued, false, 3, 0}},
		{"min-scale reached", newPA(activating(time.Second), false, minScale, "3"), observe(std, Unknown, 3), outcome{isActive, true, 3, 0}},
		{"initial-scale not reached", newPA(activating(time.Second), false, initial, "2"), observe(std, Unknown, 1), outcome{isQueued, false, 2, 0}},
		{"initial-scale reached", newPA(activating(time.Second), false, initial, "2"), observe(std, Unknown, 2), outcome{isActive, true, 2, 0}},
		{"initial-scale beats max-scale", newPA(activating(time.Second), false, initial, "3", autoscaling.MaxScaleAnnotationKey, "2"), observe(std, 9, 2), outcome{isQueued, false, 2, 0}},
		{"initial-scale above max-scale, nothing known", newPA(activating(time.Second), false, initial, "3", autoscaling.MaxScaleAnnotationKey, "2"), observe(std, Unknown, 2), outcome{isQueued, false, 3, 0}},
		{"initial-scale is forgotten once reached", newPA(active(window), true, initial, "3"), observe(std, 1, 1), outcome{isActive, true, 1, 0}},
		{"initial-scale 0", newPA(state{}, false, initial, "0"), observe(zeroAllowed, Unknown, 0), outcome{isIdle, true, Unknown, 0}},
		{"initial-scale 0, second look", newPA(inactive(time.Second), true, initial, "0"), observe(zeroAllowed, Unknown, 0), outcome{isIdle, true, Unknown, 0}},
		{"initial-scale 0 where it is not allowed", newPA(state{}, false, initial, "0"), observe(std, Unknown, 0), outcome{isQueued, false, Unknown, deadline + patience + time.Second}},

		// Up and down with the load.
		{"more load", newPA(active(window), true), observe(std, 4, 1), outcome{isActive, true, 4, 0}},
		{"max-scale", newPA(active(window), true, autoscaling.MaxScaleAnnotationKey, "2"), observe(std, 4, 1), outcome{isActive, true, 2, 0}},
		{"min-scale keeps pods", newPA(active(time.Hour), true, minScale, "2"), observe(std, 0, 2), outcome{isActive, true, 2, 0}},
		{"min-scale not reached again", newPA(active(time.Hour), true, minScale, "2"), observe(std, 0, 1), outcome{isQueued, true, 2, 0}},
		{"pods gone", newPA(active(window), true), observe(std, 1, 0), outcome{isQueued, true, 1, 0}},
		{"pods gone, load unknown", newPA(active(window), true), observe(std, Unknown, 0), outcome{isQueued, true, Unknown, 0}},

		// To zero.
		{"idle before a window has passed", newPA(active(20*time.Second), true), observe(std, 0, 3), outcome{isActive, true, 1, 40 * time.Second}},
		{"idle: inactive first, pods stay", newPA(active(window), true), observe(std, 0, 1), outcome{isIdle, true, Unknown, 0}},
		{"inactive: then no pods", newPA(inactive(0), true), observe(std, 0, 1), outcome{isIdle, true, 0, 0}},
		{"retention of the cluster", newPA(inactive(10*time.Second), true), observe(cfg(t, "scale-to-zero-pod-retention-period", "1m"), 0, 1), outcome{isIdle, true, Unknown, 50 * time.Second}},
		{"retention of the revision", newPA(inactive(10*time.Second), true, autoscaling.ScaleToZeroPodRetentionPeriodKey, "30s"), observe(std, 0, 1), outcome{isIdle, true, Unknown, 20 * time.Second}},
		{"retention over", newPA(inactive(30*time.Second), true, autoscaling.ScaleToZeroPodRetentionPeriodKey, "30s"), observe(std, 0, 1), outcome{isIdle, true, 0, 0}},
		{"no retention for an unreachable revision", unreachable(newPA(inactive(0), true, autoscaling.ScaleToZeroPodRetentionPeriodKey, "30s")), observe(std, 0, 1), outcome{isIdle, true, 0, 0}},
		{"no min-scale for an unreachable revision", unreachable(newPA(active(window), true, minScale, "2")), observe(std, 0, 2), outcome{isIdle, true, Unknown, 0}},
		{"scale to zero switched off", newPA(active(time.Hour), true), observe(cfg(t, "enable-scale-to-zero", "false"), 0, 3), outcome{isActive, true, 1, 0}},

		// From zero.
		{"wanted: pods first, then the status", newPA(inactive(time.Hour), true), observe(std, 1, 0), outcome{isQueued, true, 1, 0}},
		{"wanted while pods still stand", newPA(inactive(time.Second), true), observe(std, 1, 1), outcome{isActive, true, 1, 0}},
		{"a pod came", newPA(activating(time.Second), true), observe(std, 1, 1), outcome{isActive, true, 1, 0}},

		// Nothing known, as after a restart.
		{"active, nothing known", newPA(active(time.Hour), true), observe(std, Unknown, 3), outcome{isActive, true, Unknown, 0}},
		{"inactive, nothing known, a pod left", newPA(inactive(time.Hour), true), observe(std, Unknown, 1), outcome{isIdle, true, Unknown, 0}},
		{"inactive, nothing known", newPA(inactive(time.Hour), true), observe(std, Unknown, 0), outcome{isIdle, true, Unknown, 0}},
		{"became ready while nobody watched", newPA(activating(time.Hour), true), observe(std, Unknown, 1), outcome{isActive, true, Unknown, 0}},
		{"at zero and reachable again, nothing known: min-scale", newPA(inactive(time.Hour), true, minScale, "2"), observe(std, Unknown, 0), outcome{isQueued, true, 2, 0}},
		{"at zero, nothing known, scale to zero switched off", newPA(inactive(time.Hour), true), observe(cfg(t, "enable-scale-to-zero", "false"), Unknown, 0), outcome{isQueued, true, 1, 0}},
		{"above min-scale, nothing known", newPA(activating(time.Second), true, minScale, "2"), Observed{Autoscaler: std, ProgressDeadline: deadline, Desired: Unknown, Replicas: 9, Ready: 1}, outcome{isQueued, true, 9, 0}},
		{"late, but only just watched", newPA(activating(time.Hour), true), Observed{Autoscaler: std, ProgressDeadline: deadline, Desired: Unknown, Watched: 10 * time.Second}, outcome{isQueued, true, Unknown, 51 * time.Second}},

		// Failed.
		{"not yet late", newPA(activating(deadline), false), observe(std, 0, 0), outcome{isQueued, false, Unknown, patience + time.Second}},
		{"late", newPA(activating(deadline+patience+time.Second), false), observe(std, 0, 0), outcome{isTimedOut, false, 0, 0}},
		{"late, nothing known", newPA(activating(deadline+patience+time.Second), true), observe(std, Unknown, 0), outcome{isTimedOut, true, 0, 0}},
		{"late by the revision's own deadline", newPA(activating(time.Minute), false, serving.ProgressDeadlineAnnotationKey, "20s"), observe(std, Unknown, 0), outcome{isTimedOut, false, 0, 0}},
		{"late, but wanted", newPA(activating(time.Hour), true), observe(std, 1, 0), outcome{isQueued, true, 1, 0}},
		{"late, and Kubernetes says why", newPA(activating(deadline+patience+time.Second), true), withTrouble(observe(std, 0, 0)), outcome{"False ErrImagePull", true, 0, 0}},
		{"waits, and Kubernetes says for what", newPA(activating(time.Second), true), withTrouble(observe(std, 1, 0)), outcome{"Unknown ErrImagePull", true, 1, 0}},
		{"enough pods are ready, whatever the others wait for", newPA(activating(time.Second), true), withTrouble(observe(std, 2, 1)), outcome{isActive, true, 2, 0}},
		{"timed out keeps its reason", newPA(state{corev1.ConditionFalse, reasonTimedOut, time.Second}, false), observe(std, 0, 0), outcome{isTimedOut, false, 0, 0}},
		{"timed out, nothing known", newPA(state{corev1.ConditionFalse, reasonTimedOut, time.Second}, false), observe(std, Unknown, 0), outcome{isTimedOut, false, Unknown, 0}},
		{"timed out, wanted again", newPA(state{corev1.ConditionFalse, reasonTimedOut, time.Second}, true), observe(std, 1, 0), outcome{isQueued, true, 1, 0}},
		{"a setting was corrected", newPA(state{corev1.ConditionFalse, reasonInvalid, time.Second}, false), observe(std, Unknown, 0), outcome{isQueued, false, Unknown, deadline + patience + time.Second}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := tt.pa.DeepCopy()
			got := in(Next(tt.pa, tt.obs, now))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, tt.pa); diff != "" {
				t.Errorf("Next changed its argument (-before +after):\n%s", diff)
			}
		})
	}
}

func TestStatusOfAReadyRevision(t *testing.T) {
	d := Next(newPA(state{}, false), observe(cfg(t), 1, 1), now)
	one := int32(1)
	isTrue := func(kind apis.ConditionType) apis.Condition {
		return apis.Condition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: apis.VolatileTime{Inner: metav1.NewTime(now)}}
	}
	want := autoscalingv1alpha1.PodAutoscalerStatus{
		ServiceName: "sort-00001", MetricsServiceName: "sort-00001", DesiredScale: &one, ActualScale: &one,
	}
	want.ObservedGeneration = 7
	want.Conditions = []apis.Condition{isTrue("Active"), isTrue("Ready"), isTrue("SKSReady"), isTrue("ScaleTargetInitialized")}
	if diff := cmp.Diff(want, d.Status); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestTransitionTimesStayWhereNothingChanged(t *testing.T) {
	pa := newPA(active(time.Hour), true)
	d := Next(pa, observe(cfg(t), 1, 1), now)
	d = Next(&autoscalingv1alpha1.PodAutoscaler{ObjectMeta: pa.ObjectMeta, Spec: pa.Spec, Status: d.Status}, observe(cfg(t), 1, 1), now.Add(time.Minute))
	if got, want := d.Status.ActiveFor(now), time.Hour; got != want {
		t.Errorf("active for %v, want %v", got, want)
	}
	if got := d.Status.GetCondition(apis.ConditionReady).LastTransitionTime.Inner.Time; !got.Equal(now) {
		t.Errorf("Ready since %v, want %v", got, now)
	}
}

// TestAReasonPutsOffNoDeadline changes what a pod waits for, which is no
// transition.
func TestAReasonPutsOffNoDeadline(t *testing.T) {
	pa := newPA(activating(deadline), false)
	d := Next(pa, withTrouble(observe(cfg(t), 1, 0)), now)
	c := d.Status.GetCondition(autoscalingv1alpha1.PodAutoscalerConditionActive)
	if age := now.Sub(c.LastTransitionTime.Inner.Time); age != deadline || c.Message != "100% gone" {
		t.Errorf("activating for %v, saying %q, want %v and what Kubernetes says", age, c.Message, deadline)
	}
}

// TestActiveConditionIsKnatives is the table above computeActiveCondition in
// Knative's kpa.go, row by row. Where Wisp differs the row says so.
func TestActiveConditionIsKnatives(t *testing.T) {
	const inactive0, activating0, active0 = "inactive", "activating", "active"
	states := map[string]state{inactive0: inactive(time.Hour), activating0: activating(time.Second), active0: active(time.Hour)}
	all := []string{inactive0, activating0, active0}
	rows := []struct {
		want   int32
		got    []int32
		min    int32 // the threshold
		before []string
		then   string
	}{
		{want: 0, got: []int32{0, 1, 5}, min: 1, before: all, then: inactive0},
		{want: 0, got: []int32{0, 1, 5}, min: 2, before: all, then: inactive0},
		{want: 1, got: []int32{0, 1}, min: 2, before: all, then: activating0},
		{want: 1, got: []int32{2, 3}, min: 2, before: all, then: active0},
		{want: Unknown, got: []int32{0, 1}, min: 2, before: []string{inactive0}, then: inactive0},
		{want: Unknown, got: []int32{0, 1}, min: 2, before: []string{activating0, active0}, then: activating0},
		{want: Unknown, got: []int32{2, 3}, min: 2, before: []string{inactive0}, then: inactive0},
		{want: Unknown, got: []int32{0, 1}, min: 0, before: all, then: inactive0},
		{want: Unknown, got: []int32{2, 3}, min: 2, before: []string{activating0, active0}, then: active0},
	}
	for _, row := range rows {
		for _, got := range row.got {
			for _, before := range row.before {
				t.Run(fmt.Sprintf("want %d, got %d, min %d, %s", row.want, got, row.min, before), func(t *testing.T) {
					pa := newPA(states[before], false)
					markActive(pa, row.want, Observed{Ready: got}, row.min)
					is := map[bool]string{pa.Status.IsInactive(): inactive0, pa.Status.IsActivating(): activating0, pa.Status.IsActive(): active0}[true]
					if is != row.then {
						t.Errorf("got %s, want %s", is, row.then)
					}
					if initialized := pa.Status.IsScaleTargetInitialized(); initialized != (got >= row.min) {
						t.Errorf("ScaleTargetInitialized = %v with %d of %d", initialized, got, row.min)
					}
				})
			}
		}
	}
}

func TestScaleTargetInitializedIsNeverUnset(t *testing.T) {
	d := Next(newPA(active(time.Hour), true), observe(cfg(t), 1, 0), now)
	if !d.Status.IsScaleTargetInitialized() {
		t.Error("a revision that has run once lost ScaleTargetInitialized with its pods")
	}
}

func TestDesiredScale(t *testing.T) {
	tests := []struct {
		name          string
		before        int32
		desired, then int32
	}{
		{name: "unknown at first", before: Unknown, desired: Unknown, then: Unknown},
		{name: "the last known stays", before: 3, desired: Unknown, then: 3},
		{name: "a new one counts", before: 3, desired: 2, then: 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pa := newPA(active(time.Hour), true)
			if tt.before != Unknown {
				pa.Status.DesiredScale = &tt.before
			}
			d := Next(pa, observe(cfg(t), tt.desired, 3), now)
			if got := d.Status.GetDesiredScale(); got != tt.then {
				t.Errorf("desiredScale = %d, want %d", got, tt.then)
			}
		})
	}
}

func TestInvalidSettingIsACondition(t *testing.T) {
	o := observe(cfg(t), 5, 1)
	o.Invalid = errors.New(`100% of "cpu"`)
	d := Next(newPA(active(time.Hour), true), o, now)
	if got, want := in(d), (outcome{"False InvalidSetting", true, Unknown, 0}); got != want {
		t.Errorf("decision = %+v, want %+v", got, want)
	}
	if got := d.Status.GetCondition(apis.ConditionReady).Message; got != o.Invalid.Error() {
		t.Errorf("message = %q, want %q", got, o.Invalid)
	}
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name        string
		annotations []string
		want        string
	}{
		{name: "as the webhook leaves it"},
		{name: "rps", annotations: []string{autoscaling.MetricAnnotationKey, "rps"}},
		{name: "concurrency", annotations: []string{autoscaling.MetricAnnotationKey, "concurrency", autoscaling.TargetAnnotationKey, "0.5"}},
		{
			name: "cpu", annotations: []string{autoscaling.MetricAnnotationKey, "cpu"},
			want: `autoscaling.knative.dev/metric = "cpu", must be concurrency or rps`,
		},
		{name: "weights, old spelling", annotations: []string{"autoscaling.knative.dev/metricAggregationAlgorithm", "weightedExponential"}},
		{
			name: "unknown algorithm", annotations: []string{autoscaling.MetricAggregationAlgorithmKey, "median"},
			want: `autoscaling.knative.dev/metric-aggregation-algorithm = "median", must be linear or weighted-exponential or weightedExponential`,
		},
		{
			name: "NaN, which the webhook lets pass", annotations: []string{autoscaling.TargetAnnotationKey, "NaN"},
			want: `autoscaling.knative.dev/target = "NaN", must be a finite number`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got string
			if err := Check(newPA(state{}, false, tt.annotations...)); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("Check = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCheckPodAfter(t *testing.T) {
	for text, ok := range map[string]bool{"5s": true, "0s": true, "1h": true, "-1s": false, "2h": false, "soon": false, "5": false, "": false} {
		err := Check(newPA(state{}, false, config.PodAfterAnnotation, text))
		if (err == nil) != ok {
			t.Errorf("wisp.dev/pod-after = %q: got %v, want it to pass: %v", text, err, ok)
		}
	}
}

func TestCheckScaleTarget(t *testing.T) {
	pa := newPA(state{}, false)
	pa.Spec.ScaleTargetRef.Kind = "StatefulSet"
	if err := Check(pa); err == nil {
		t.Error("a StatefulSet passed")
	}
}
