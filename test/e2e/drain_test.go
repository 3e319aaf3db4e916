package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/wisp-serving/wisp/test/platform"
)

// TestDrain drains the only node of pods of which one must stay: one goes, the
// other's eviction is refused until it may go too. Then the node takes pods again.
func TestDrain(t *testing.T) {
	w := newWorker(t, platform.Start(t, platform.Options{}))
	w.create(t, w.deployment("guarded", 2, w.spec(corev1.RestartPolicyAlways, "sleep", "3600")))
	one := intstr.FromInt32(1)
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: w.meta("guarded"), Spec: policyv1.PodDisruptionBudgetSpec{
		MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "guarded"}},
	}}
	w.create(t, budget)
	w.awaitAvailable(t, "guarded", 2)
	platform.WaitFor(t, w.Platform, budget, "let one go", func(b *policyv1.PodDisruptionBudget) bool { return b.Status.DisruptionsAllowed == 1 })
	before := w.podsOf(t, "guarded")
	t.Cleanup(func() { w.Kubectl(t, "uncordon", "wisp-0") })
	drain := []string{"drain", "wisp-0", "--pod-selector=app=guarded"}

	if said := w.fails(t, append(drain, "--timeout=3s")...); !strings.Contains(said, "violate the pod's disruption budget") {
		t.Errorf("kubectl drain said %q, want that an eviction was refused", said)
	}
	if left := w.running(t, before); left != 1 {
		t.Errorf("%d pods of two are left, want the one that must stay", left)
	}

	none := intstr.FromInt32(0)
	budget = platform.WaitFor(t, w.Platform, budget, "be there", func(*policyv1.PodDisruptionBudget) bool { return true })
	budget.Spec.MinAvailable = &none
	if err := w.Client.Update(t.Context(), budget); err != nil {
		t.Fatal(err)
	}
	w.Kubectl(t, append(drain, "--timeout=1m")...)
	if left := w.running(t, before); left != 0 {
		t.Errorf("%d pods are left of a node that was drained", left)
	}
	w.Kubectl(t, "uncordon", "wisp-0")
	w.awaitAvailable(t, "guarded", 2)
}

// running returns how many of these pods are there and run.
func (w *worker) running(t *testing.T, pods map[types.UID]string) int {
	t.Helper()
	n := 0
	for uid := range w.podsOf(t, "guarded") {
		if _, ok := pods[uid]; ok {
			n++
		}
	}
	return n
}
