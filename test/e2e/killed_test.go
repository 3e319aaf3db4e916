package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/wisp-serving/wisp/test/platform"
)

// TestKilled kills each component in turn, Kubernetes' and Knative's as well as
// Wisp's: the supervisor says so and has it back, what was there is still there,
// and the next request is answered.
func TestKilled(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	service := createSort(t, p)
	kept := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: service.Namespace, Name: "kept"},
		Data:       map[string]string{"k": "v"},
	}
	if err := p.Client.Create(t.Context(), kept); err != nil {
		t.Fatal(err)
	}
	for _, c := range p.Components(t) {
		t.Run(c.Name, func(t *testing.T) {
			p.Kill(t, c.Name)
			if !strings.Contains(p.Events(t), c.Name+": ended: signal: killed") {
				t.Errorf("the supervisor said nothing of it:\n%s", p.Events(t))
			}
			got := platform.WaitFor(t, p, kept.DeepCopy(), "be readable", func(*corev1.ConfigMap) bool { return true })
			if diff := cmp.Diff(kept.Data, got.Data); diff != "" {
				t.Errorf("data (-want +got):\n%s", diff)
			}
			expect(t, p, service, numbers, http.StatusOK, sorted)
		})
	}
}
