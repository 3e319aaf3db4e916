package e2e

import (
	"net/http"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/platform"
	"github.com/wisp-serving/wisp/test/platform/stack"
)

// TestSharedHost has a Service answer at a path of the shared host, which its settings
// give this platform's gateway, and another one want the same.
func TestSharedHost(t *testing.T) {
	const shared = "shared.localhost"
	p := platform.Start(t, platform.Options{Settings: stack.Settings{Gateway: func(c *config.Gateway) {
		c.SharedHost, c.SharedNamespaces = shared, []string{"*"}
	}}})
	p.Wisp(t, "push", p.SortModule, p.Registry+"/sort:v1")
	namespace := p.Namespace(t)
	create := func(name, routes string) *servingv1.Service {
		p.Kn(t, "service", "create", name, "-n", namespace, "--no-wait", "--image", p.Registry+"/sort:v1",
			"--annotation", config.ABIAnnotation+"=argv", "--annotation-service", config.RoutesAnnotation+"="+routes)
		return &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	}
	first := platform.WaitFor(t, p, create("sort", "POST /sort"), "be ready", func(s *servingv1.Service) bool { return s.IsReady() })
	for path, want := range map[string]int{"/sort": http.StatusOK, "/sort/more": http.StatusNotFound, "/": http.StatusNotFound} {
		if status, got := callPath(t, p, http.MethodPost, shared, path, numbers); status != want {
			t.Errorf("%s: got %d %q, want %d", path, status, got, want)
		}
	}
	expect(t, p, first, numbers, http.StatusOK, sorted)

	// Of the same second, the lower name is the older one.
	platform.WaitFor(t, p, create("sort-later", "/sort, /later"), "say that its route is taken", func(s *servingv1.Service) bool {
		c := s.Status.GetCondition(servingv1.ServiceConditionRoutesReady)
		return c != nil && c.IsFalse() && strings.Contains(c.Message, "overlaps with POST /sort of the older ingress "+namespace+"/sort")
	})
	if status, got := callPath(t, p, http.MethodPost, shared, "/sort", numbers); status != http.StatusOK {
		t.Errorf("after that: got %d %q", status, got)
	}
}
