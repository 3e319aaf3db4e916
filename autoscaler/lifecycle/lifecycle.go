// Package lifecycle decides what becomes of one PodAutoscaler: its status, and
// the replicas of what it scales, from what is observed now. It is pure: it
// reads no cluster, starts nothing and waits for nothing.
//
// A PodAutoscaler's life, as Knative's Revision reads it from the conditions
// (the rules are those of Knative's pkg/reconciler/autoscaling/kpa, kpa.go and
// scaler.go, rewritten for pods that need no ServerlessService):
//
//	created     SKSReady, Active unknown "Queued"
//	started     ready pods >= max(min-scale, initial-scale):
//	            ScaleTargetInitialized, for good, and Active
//	idle        active for a stable window, nothing wanted: inactive "NoTraffic"
//	zero        inactive for the retention period: replicas 0
//	wanted      replicas first, Active unknown "Queued", then Active
//	failed      not active in time: replicas 0, inactive with the pods' reason,
//	            or "TimedOut" if they give none
//	impossible  a setting is wrong: inactive "InvalidSetting"; pods are left alone
//
// See RATIONALE.md "Why is no probe sent before the last pod goes?" and "Why
// does the grace period pass at once?".
package lifecycle

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"
	"knative.dev/pkg/ptr"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/autoscaler/config/autoscalerconfig"
	kparesources "knative.dev/serving/pkg/reconciler/autoscaling/kpa/resources"
	asresources "knative.dev/serving/pkg/reconciler/autoscaling/resources"
)

// Unknown stands for a number of replicas that nobody can tell.
const Unknown int32 = -1

// Reasons of the condition Active. The first three are Knative's.
const (
	reasonNoTraffic = "NoTraffic"
	reasonTimedOut  = "TimedOut"
	reasonQueued    = "Queued"
	reasonInvalid   = "InvalidSetting"
)

// patience is added to the progress deadline. At the deadline the Deployment
// changes its status, which lets Knative's Revision look for the reason in the
// pods; they must not vanish before.
const patience = 30 * time.Second

// Observed is what the world looks like.
type Observed struct {
	// Autoscaler is Knative's config-autoscaler.
	Autoscaler *autoscalerconfig.Config
	// ProgressDeadline is config-deployment's.
	ProgressDeadline time.Duration
	// Invalid, if not nil, says why this PodAutoscaler can't be scaled.
	Invalid error
	// Desired is the replicas that the load asks for, before any bound, or
	// Unknown if nothing is known about the load.
	Desired int32
	// Watched is for how long this process has listened for the load.
	Watched time.Duration
	// Replicas is what the target has now, or Unknown.
	Replicas int32
	// Ready counts the ready pods.
	Ready int32
	// Trouble is what keeps the others from being ready, if Kubernetes says.
	Trouble Trouble
}

// Trouble is why a pod isn't ready, in Kubernetes' words. The zero value is none.
type Trouble struct{ Reason, Message string }

// Decision is what to do.
type Decision struct {
	// Status is the status that the PodAutoscaler should have.
	Status autoscalingv1alpha1.PodAutoscalerStatus
	// Replicas is what the target should be scaled to, or Unknown to leave it
	// as it is. It takes effect before the status is written.
	Replicas int32
	// After, if above 0, is when to decide again even if nothing happens.
	After time.Duration
}

// Next decides. It doesn't change pa.
func Next(pa *autoscalingv1alpha1.PodAutoscaler, o Observed, now time.Time) Decision {
	before := pa.Status.GetConditions()
	pa = pa.DeepCopy()
	s := &pa.Status
	s.InitializeConditions()
	s.ObservedGeneration = pa.Generation
	// There is no ServerlessService and no Service of the revision's own: the
	// names only have to be set, and it is the gateway that resolves them.
	s.ServiceName = pa.Name
	s.MetricsServiceName = pa.Name
	s.MarkSKSReady()
	s.ActualScale = ptr.Int32(o.Ready)

	if o.Invalid != nil {
		markInactive(pa, reasonInvalid, o.Invalid.Error())
		stamp(s, before, now)
		return Decision{Status: *s, Replicas: Unknown}
	}
	if s.GetCondition(autoscalingv1alpha1.PodAutoscalerConditionActive).GetReason() == reasonInvalid {
		markActivating(pa, Trouble{}) // It has been corrected: start over.
	}
	stamp(s, before, now)

	threshold := activeThreshold(pa, o.Autoscaler)
	v := scale(pa, o, threshold, now)
	if v.want != Unknown || s.GetDesiredScale() < 0 {
		s.DesiredScale = ptr.Int32(v.want)
	}
	markActive(pa, v.want, o, threshold)
	stamp(s, before, now)
	return Decision{Status: *s, Replicas: v.replicas(), After: v.after}
}

// stamp gives the conditions whose status differs from before the time now.
// Knative's setters read the clock, and take another message for a transition:
// then what a pod waits for would put off the progress deadline.
func stamp(s *autoscalingv1alpha1.PodAutoscalerStatus, before apis.Conditions, now time.Time) {
	conditions := s.GetConditions()
	for i, c := range conditions {
		at := apis.VolatileTime{Inner: metav1.NewTime(now)}
		for _, was := range before {
			if was.Type == c.Type && was.Status == c.Status {
				at = was.LastTransitionTime
			}
		}
		conditions[i].LastTransitionTime = at
	}
	s.SetConditions(conditions)
}

// activeThreshold is how many ready pods make a PodAutoscaler active.
func activeThreshold(pa *autoscalingv1alpha1.PodAutoscaler, cfg *autoscalerconfig.Config) int32 {
	least, _ := pa.ScaleBounds(cfg)
	if pa.Status.IsScaleTargetInitialized() {
		return max(least, 1)
	}
	return max(least, kparesources.GetInitialScale(cfg, pa))
}

// markActive sets the conditions Active and ScaleTargetInitialized, by the
// table of Knative's computeActiveCondition. It differs where an inactive
// PodAutoscaler stays inactive: the reason stays too, so that "TimedOut" isn't
// overwritten by the next look at the same state.
func markActive(pa *autoscalingv1alpha1.PodAutoscaler, want int32, o Observed, threshold int32) {
	s := &pa.Status
	if o.Ready >= threshold {
		s.MarkScaleTargetInitialized()
	}
	switch {
	case want == 0 || threshold == 0:
		if s.IsActivating() && threshold > 0 {
			markFailed(pa, o.Trouble)
		} else if !s.IsInactive() {
			markInactive(pa, reasonNoTraffic, "The target is not receiving traffic.")
		}
	case want == Unknown && s.IsInactive():
	case o.Ready < threshold:
		markActivating(pa, o.Trouble)
	default:
		s.MarkActive()
	}
}

// markActivating says what the pods wait for, as soon as Kubernetes does.
func markActivating(pa *autoscalingv1alpha1.PodAutoscaler, t Trouble) {
	reason, message := reasonQueued, "Requests to the target are being buffered as resources are provisioned."
	if t.Reason != "" {
		reason, message = t.Reason, t.Message
	}
	pa.GetConditionSet().Manage(&pa.Status).
		MarkUnknown(autoscalingv1alpha1.PodAutoscalerConditionActive, reason, "%s", message)
}

// markFailed ends an activation with the reason of the pods that did not come.
func markFailed(pa *autoscalingv1alpha1.PodAutoscaler, t Trouble) {
	reason, message := reasonTimedOut, "The target could not be activated."
	if t.Reason != "" {
		reason, message = t.Reason, message+" "+t.Message
	}
	markInactive(pa, reason, message)
}

// markInactive is PodAutoscalerStatus.MarkInactive for any message; that one
// takes its message for a format.
func markInactive(pa *autoscalingv1alpha1.PodAutoscaler, reason, message string) {
	pa.GetConditionSet().Manage(&pa.Status).
		MarkFalse(autoscalingv1alpha1.PodAutoscalerConditionActive, reason, "%s", message)
}

// verdict is a number of replicas that is wanted, and whether to see to it now.
type verdict struct {
	want  int32
	apply bool
	after time.Duration
}

func (v verdict) replicas() int32 {
	if !v.apply {
		return Unknown
	}
	return v.want
}

// scale puts the bounds to what the load asks for.
func scale(pa *autoscalingv1alpha1.PodAutoscaler, o Observed, threshold int32, now time.Time) verdict {
	least, most := pa.ScaleBounds(o.Autoscaler)
	if !pa.Status.IsScaleTargetInitialized() && pa.Spec.Reachability != autoscalingv1alpha1.ReachabilityUnreachable {
		if initial := kparesources.GetInitialScale(o.Autoscaler, pa); initial > 1 {
			least = max(least, initial)
		}
	}
	if !o.Autoscaler.EnableScaleToZero {
		least = max(least, 1)
	}
	want := bounded(o.Desired, least, most)
	switch {
	case o.Desired == Unknown && least > 0:
		// The least needs no load. What is above it isn't taken away on silence.
		return verdict{want: max(o.Replicas, least), apply: true}
	case o.Desired == Unknown && !pa.Status.IsActivating():
		return verdict{want: Unknown}
	case want > 0:
		return verdict{want: want, apply: true}
	case pa.Status.IsActivating():
		return giveUp(pa, o, threshold, now)
	case pa.Status.IsActive():
		return idle(pa, o, now)
	default:
		return zero(pa, o, now)
	}
}

// bounded lets least win: an initial-scale above max-scale has to be reached
// once, or the Revision never gets ready. A most of 0 is none.
func bounded(x, least, most int32) int32 {
	switch {
	case x < least:
		return least
	case most > 0:
		return min(x, most)
	default:
		return x
	}
}

// giveUp ends an activation that takes too long. A process that has just
// started waits for a stable window first: there may be demand, or pods, that
// it hasn't heard of yet.
func giveUp(pa *autoscalingv1alpha1.PodAutoscaler, o Observed, threshold int32, now time.Time) verdict {
	if o.Ready >= threshold {
		return verdict{want: Unknown} // No longer stuck.
	}
	deadline, ok := pa.ProgressDeadline()
	if !ok {
		deadline = o.ProgressDeadline
	}
	deadline += patience
	window := asresources.StableWindow(pa, o.Autoscaler)
	if pa.Status.CanFailActivation(now, deadline) && o.Watched >= window {
		return verdict{want: 0, apply: true}
	}
	left := max(deadline-activatingFor(pa, now), window-o.Watched)
	return verdict{want: Unknown, after: max(left, 0) + time.Second} // CanFailActivation wants more than the deadline.
}

func activatingFor(pa *autoscalingv1alpha1.PodAutoscaler, now time.Time) time.Duration {
	return now.Sub(pa.Status.GetCondition(autoscalingv1alpha1.PodAutoscalerConditionActive).LastTransitionTime.Inner.Time)
}

// idle makes an active PodAutoscaler inactive, at the earliest a stable window
// after it became active. The pods stay until that is written.
func idle(pa *autoscalingv1alpha1.PodAutoscaler, o Observed, now time.Time) verdict {
	window := asresources.StableWindow(pa, o.Autoscaler)
	if active := pa.Status.ActiveFor(now); active < window {
		return verdict{want: 1, apply: true, after: window - active}
	}
	return verdict{want: 0}
}

// zero takes the pods of an inactive PodAutoscaler away.
func zero(pa *autoscalingv1alpha1.PodAutoscaler, o Observed, now time.Time) verdict {
	keep := retention(pa, o.Autoscaler)
	if inactive := pa.Status.InactiveFor(now); inactive < keep {
		return verdict{want: 0, after: keep - inactive}
	}
	return verdict{want: 0, apply: true}
}

// retention is how long the last pod stays after the load has gone.
func retention(pa *autoscalingv1alpha1.PodAutoscaler, cfg *autoscalerconfig.Config) time.Duration {
	if pa.Spec.Reachability == autoscalingv1alpha1.ReachabilityUnreachable {
		return 0
	}
	if d, ok := pa.ScaleToZeroPodRetention(); ok {
		return d
	}
	return cfg.ScaleToZeroPodRetentionPeriod
}
