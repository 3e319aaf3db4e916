package xds

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/wisp-serving/wisp/xds/translate"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/pkg/apis"
)

var testDomains = domains{external: "gw.wisp-system.svc.cluster.local", internal: "gw-internal.wisp-system.svc.cluster.local"}

func TestJudge(t *testing.T) {
	fresh := &v1alpha1.Ingress{ObjectMeta: metav1.ObjectMeta{UID: "u", Generation: 2}}
	proved := fresh.DeepCopy()
	proved.Status = ready(fresh, testDomains)
	older := proved.DeepCopy() // Ready, but for the generation before
	older.Generation = 3

	known := outcome{uid: "u", generation: 2}
	acked := outcome{uid: "u", generation: 2, acked: true}
	refused := outcome{uid: "u", generation: 2, refusal: &translate.Refusal{Reason: "Why", Message: "because"}}

	tests := []struct {
		name    string
		ing     *v1alpha1.Ingress
		outcome outcome
		envoys  int
		silent  int
		others  bool
		want    verdict
		// condition and reason are what is not true in a written status.
		condition apis.ConditionType
		status    corev1.ConditionStatus
		reason    string
	}{
		{name: "of another generation", ing: older, outcome: acked, envoys: 1, want: keep},
		{name: "of a deleted namesake", ing: fresh, outcome: outcome{uid: "other", generation: 2, acked: true}, envoys: 1, want: keep},
		{name: "not acknowledged yet", ing: fresh, outcome: known, envoys: 1, want: keep},
		{name: "acknowledged", ing: fresh, outcome: acked, envoys: 1, want: prove},
		{name: "no Envoy", ing: fresh, outcome: acked, want: write, condition: v1alpha1.IngressConditionLoadBalancerReady, status: corev1.ConditionUnknown, reason: "NoEnvoy"},
		{name: "Envoys of others", ing: fresh, outcome: known, others: true, want: prove},
		{name: "Envoys of others, and one that is behind", ing: fresh, outcome: known, envoys: 1, others: true, want: keep},
		{name: "a silent Envoy", ing: fresh, outcome: acked, silent: 1, want: write, condition: v1alpha1.IngressConditionLoadBalancerReady, status: corev1.ConditionUnknown, reason: "EnvoySilent"},
		{name: "refused", ing: fresh, outcome: refused, envoys: 1, want: write, condition: v1alpha1.IngressConditionNetworkConfigured, status: corev1.ConditionFalse, reason: "Why"},
		{name: "refused without Envoy", ing: fresh, outcome: refused, want: write, condition: v1alpha1.IngressConditionNetworkConfigured, status: corev1.ConditionFalse, reason: "Why"},
		{name: "nobody behind it", ing: fresh, outcome: outcome{uid: "u", generation: 2, awaits: true}, envoys: 1, want: write, condition: v1alpha1.IngressConditionLoadBalancerReady, status: corev1.ConditionUnknown, reason: "NoEndpoints"},
		{name: "ready stays when Envoys go", ing: proved, outcome: acked, want: write},
		{name: "ready stays when the gateway restarts", ing: proved, outcome: known, envoys: 1, want: write},
		{name: "ready goes when it can't be served any more", ing: proved, outcome: refused, envoys: 1, want: write, condition: v1alpha1.IngressConditionNetworkConfigured, status: corev1.ConditionFalse, reason: "Why"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := tt.ing.DeepCopy()
			tt.outcome.domains = testDomains
			status, got := judge(tt.ing, tt.outcome, tt.envoys, tt.silent, tt.others)
			if got != tt.want {
				t.Fatalf("verdict %d, want %d", got, tt.want)
			}
			if diff := cmp.Diff(before, tt.ing); diff != "" {
				t.Errorf("the KIngress was changed (-before +after):\n%s", diff)
			}
			if got != write {
				return
			}
			if status.ObservedGeneration != tt.ing.Generation {
				t.Errorf("observed generation %d, want %d", status.ObservedGeneration, tt.ing.Generation)
			}
			if tt.condition == "" {
				if diff := cmp.Diff(proved.Status, status); diff != "" {
					t.Errorf("status (-want +got):\n%s", diff)
				}
				return
			}
			c := status.GetCondition(tt.condition)
			if c.Status != tt.status || c.Reason != tt.reason {
				t.Errorf("%s is %s for %s, want %s for %s", tt.condition, c.Status, c.Reason, tt.status, tt.reason)
			}
			if status.GetCondition(apis.ConditionReady).IsTrue() {
				t.Error("is Ready nevertheless")
			}
		})
	}
}

func TestReady(t *testing.T) {
	ing := &v1alpha1.Ingress{ObjectMeta: metav1.ObjectMeta{Generation: 4}}
	ing.Status = probeFailed(ing, errors.New("answer is 503, must be 200"))
	ing.Status = ready(ing, testDomains)
	if !ing.IsReady() {
		t.Errorf("not ready: %+v", ing.Status)
	}
	want := []v1alpha1.LoadBalancerIngressStatus{{DomainInternal: testDomains.external}}
	if diff := cmp.Diff(want, ing.Status.PublicLoadBalancer.Ingress); diff != "" {
		t.Errorf("public load balancer (-want +got):\n%s", diff)
	}
	want[0].DomainInternal = testDomains.internal
	if diff := cmp.Diff(want, ing.Status.PrivateLoadBalancer.Ingress); diff != "" {
		t.Errorf("private load balancer (-want +got):\n%s", diff)
	}
}
