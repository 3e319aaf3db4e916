package xds

import (
	"net/http"
	"testing"

	"knative.dev/networking/pkg/apis/networking/v1alpha1"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/envoytest"
	"github.com/wisp-serving/wisp/xds/translate"
)

// TestEnvoyServesTheSharedHost has two Services at paths of one host, takes one's
// away and gives it to the other, while calls to their own hosts pass.
func TestEnvoyServesTheSharedHost(t *testing.T) {
	b := newBed(t, "127.108.0")
	b.cfg.SharedHost, b.cfg.SharedNamespaces = "shared.example.com", []string{namespace}
	b.addNode("node-a")
	b.addRevision("a-1", translateHTTP1)
	b.addRevision("b-1", translateHTTP1)
	at := func(places string) []ingressOption {
		return []ingressOption{func(i *v1alpha1.Ingress) { i.Annotations[config.RoutesAnnotation] = places }}
	}
	ruleA := rule("External", "a.example.com", path(to("a-1")))
	ruleB := rule("External", "b.example.com", path(to("b-1")))
	b.addIngressWith("a", at("POST /sort, /docs/*"), ruleA)
	b.addIngressWith("b", at("GET /sort"), ruleB)
	b.startGateway()
	envoytest.Start(t, b.cfg)
	b.waitReady("a", "b")

	post := func(r *http.Request) { r.Method = http.MethodPost }
	shared := func(path string, mods ...func(*http.Request)) int {
		return ask(t, b.cfg.Envoy.HTTPAddress, "shared.example.com", path, mods...).status
	}
	for _, test := range []struct {
		path   string
		mods   []func(*http.Request)
		status int
	}{
		{"/sort?x=y", []func(*http.Request){post}, http.StatusOK},
		{"/sort", nil, http.StatusOK},
		{"/docs/a/b", nil, http.StatusOK},
		{"/docs", nil, http.StatusNotFound},
		{"/sort/a", nil, http.StatusNotFound},
		{"/", nil, http.StatusNotFound},
	} {
		if got := shared(test.path, test.mods...); got != test.status {
			t.Errorf("%s: got %d, want %d", test.path, got, test.status)
		}
	}
	own := startLoad(b.cfg.Envoy.HTTPAddress, "b.example.com", 2)
	docs := startLoad(b.cfg.Envoy.HTTPAddress, "a.example.com", 2)

	// The younger one wants what the older one has: it is told, and loses its places
	// there; neither host notices.
	b.addIngressWith("b", at("GET /sort, /docs/b"), ruleB)
	b.waitCondition("b", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonRouteConflict, "route /docs/b overlaps with /docs/* of the older ingress default/a")
	b.until("its places to go", func() bool { return shared("/sort") == http.StatusNotFound })
	if got := shared("/docs/b"); got != http.StatusOK {
		t.Errorf("the older one's place: got %d", got)
	}

	// The older one gives its up.
	b.addIngressWith("a", nil, ruleA)
	b.waitReady("b")
	b.until("the younger one's places", func() bool { return shared("/docs/b") == http.StatusOK && shared("/docs/a") == http.StatusNotFound })

	// What isn't a route is told too.
	b.addIngressWith("b", at("sort"), ruleB)
	b.waitCondition("b", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonInvalid, "must be a path that begins with /")
	own.end(t)
	docs.end(t)
	if n := b.srv.Rejections(); n > 0 {
		t.Errorf("%d rejections, want none", n)
	}
}
