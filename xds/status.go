package xds

import (
	"fmt"

	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/pkg/apis"
)

// domains are the cluster-internal names under which the gateway is reached.
type domains struct{ external, internal string }

// verdict says what is to be done about a KIngress's status.
type verdict int

const (
	// keep leaves the status as it is: something else is still to come.
	keep verdict = iota
	// write writes the status that came with the verdict.
	write
	// prove asks for a probe first, which decides.
	prove
)

// judge returns the status that follows from how far ing has come; envoys and silent
// count those of this gateway, and others says that there are more. Ready is
// taken back only for what concerns ing itself: an Envoy that comes or goes, or
// a gateway that restarts, changes nothing of what was proved.
func judge(ing *v1alpha1.Ingress, o outcome, envoys, silent int, others bool) (v1alpha1.IngressStatus, verdict) {
	switch {
	case o.uid != ing.UID || o.generation != ing.Generation:
		return ing.Status, keep
	case o.refusal != nil:
		return notConfigured(ing, o.refusal.Reason, o.refusal.Message), write
	case ing.IsReady():
		return ready(ing, o.domains), write
	case o.awaits:
		return notReady(ing, "NoEndpoints", "a backend has no endpoint yet, and the generation before is served meanwhile"), write
	case envoys == 0 && others:
		// None here will acknowledge anything, and the probe proves the others.
		return ing.Status, prove
	case envoys == 0 && silent > 0:
		return notReady(ing, "EnvoySilent", "Envoy is connected and does not answer"), write
	case envoys == 0:
		return notReady(ing, "NoEnvoy", "no Envoy is connected to the gateway"), write
	case !o.acked:
		return ing.Status, keep
	default:
		return ing.Status, prove
	}
}

// ready returns the status of a proved KIngress.
func ready(ing *v1alpha1.Ingress, d domains) v1alpha1.IngressStatus {
	s := begin(ing)
	s.MarkNetworkConfigured()
	s.MarkLoadBalancerReady(
		[]v1alpha1.LoadBalancerIngressStatus{{DomainInternal: d.external}},
		[]v1alpha1.LoadBalancerIngressStatus{{DomainInternal: d.internal}},
	)
	return s
}

// notReady returns the status of a KIngress that is translated and not proved.
func notReady(ing *v1alpha1.Ingress, reason, message string) v1alpha1.IngressStatus {
	s := begin(ing)
	s.MarkNetworkConfigured()
	manage(ing, &s).MarkUnknown(v1alpha1.IngressConditionLoadBalancerReady, reason, "%s", message)
	return s
}

// notConfigured returns the status of a KIngress that can't be served as it is.
func notConfigured(ing *v1alpha1.Ingress, reason, message string) v1alpha1.IngressStatus {
	s := begin(ing)
	manage(ing, &s).MarkFalse(v1alpha1.IngressConditionNetworkConfigured, reason, "%s", message)
	return s
}

// begin returns a copy of ing's status for its generation.
func begin(ing *v1alpha1.Ingress) v1alpha1.IngressStatus {
	s := *ing.Status.DeepCopy()
	s.InitializeConditions()
	s.ObservedGeneration = ing.Generation
	return s
}

func manage(ing *v1alpha1.Ingress, s *v1alpha1.IngressStatus) apis.ConditionManager {
	return ing.GetConditionSet().Manage(s)
}

// probeFailed returns the status after a probe that proved nothing.
func probeFailed(ing *v1alpha1.Ingress, err error) v1alpha1.IngressStatus {
	return notReady(ing, "ProbeFailed", fmt.Sprintf("Envoy has the configuration, and a probe through it fails: %v", err))
}
