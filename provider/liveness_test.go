package provider

import (
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/test/guests"
)

// TestServerThatHangsIsRestarted has a guest that listens compute for ever: nothing in
// it answers any more, which its liveness probe finds, and the next instance answers.
func TestServerThatHangsIsRestarted(t *testing.T) {
	path, err := guests.Program(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	module, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := newStand(t)
	s.create(t, s.pod("echo", "uid-1", s.push(t, "echo", module), func(p *corev1.Pod) {
		p.Annotations[config.ABIAnnotation] = guest.ABIServer
		c := &p.Spec.Containers[0]
		c.Ports = []corev1.ContainerPort{{ContainerPort: 8080}}
		hello := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/hello", Port: intstr.FromInt32(8080)}}
		c.ReadinessProbe = &corev1.Probe{ProbeHandler: hello, PeriodSeconds: 1, TimeoutSeconds: 30}
		c.LivenessProbe = &corev1.Probe{ProbeHandler: hello, PeriodSeconds: 1, TimeoutSeconds: 1, FailureThreshold: 2}
	}))
	s.awaitReady(t, "echo")
	s.expect(t, "add uid-1")
	ask := func(path string) int {
		s.router.mu.Lock()
		h := s.router.targets["uid-1"]
		s.router.mu.Unlock()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		return w.Code
	}
	if code := ask("/hello"); code != http.StatusOK {
		t.Fatalf("got %d, want 200", code)
	}
	if code := ask("/stuck"); code != http.StatusBadGateway { // which ends with its instance
		t.Errorf("got %d of the instance that was ended, want 502", code)
	}
	s.await(t, "echo", "restarted and ready", func(p *corev1.Pod) bool {
		return isReady(p) && p.Status.ContainerStatuses[0].RestartCount > 0
	})
	if code := ask("/hello"); code != http.StatusOK {
		t.Errorf("got %d of the next instance, want 200", code)
	}
}
