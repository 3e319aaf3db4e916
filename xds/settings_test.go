package xds

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/wisp-serving/wisp/test/envoytest"
	"github.com/wisp-serving/wisp/xds/translate"
	"k8s.io/apimachinery/pkg/util/intstr"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
)

// TestEnvoyTakesSettings changes each setting that a running gateway takes over,
// while requests pass.
func TestEnvoyTakesSettings(t *testing.T) {
	b := newBed(t, "127.107.0")
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	chain, private := newCertificatePEM(t, "secure.example.com")
	b.setSecret("secure", chain, private)
	b.addExternalName("elsewhere", "192.0.2.1", "http")
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-1"))))
	b.addIngressWith("secure", []ingressOption{withTLS("secure"), redirecting}, rule("External", "secure.example.com", path(to("sort-1"))))
	b.addIngress("elsewhere", rule("External", "elsewhere.example.com", path(toService("elsewhere", intstr.FromInt32(80)))))
	b.startGateway()
	e := envoytest.Start(t, b.cfg)
	b.waitReady("sort", "secure")
	b.waitCondition("elsewhere", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonNoBackend, "set externalNames to true")

	redirect := func() string {
		c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		a, err := request(t.Context(), c, b.cfg.Envoy.HTTPAddress, "secure.example.com", "/")
		if err != nil {
			t.Fatal(err)
		}
		return a.header.Get("Location")
	}
	if got, want := redirect(), "https://secure.example.com/"; got != want {
		t.Errorf("redirect to %s, want %s", got, want)
	}
	ask(t, b.cfg.Envoy.HTTPAddress, "sort.example.com", "/logged")

	l := startLoad(b.cfg.Envoy.HTTPAddress, "sort.example.com", 2)
	b.cfg.ExternalNames, b.cfg.Envoy.HTTPSPort, b.cfg.Envoy.AccessLog = true, 9443, false
	b.cfg.ExternalDomain, b.cfg.InternalDomain = "out.example", "in.example"
	b.settings <- b.cfg
	for _, name := range []string{"sort", "secure"} {
		b.waitIngress(name, func(i *v1alpha1.Ingress) bool {
			public, private := i.Status.PublicLoadBalancer, i.Status.PrivateLoadBalancer
			return i.IsReady() && public.Ingress[0].DomainInternal == "out.example" && private.Ingress[0].DomainInternal == "in.example"
		})
	}
	b.waitIngress("elsewhere", func(i *v1alpha1.Ingress) bool {
		return i.Status.GetCondition(v1alpha1.IngressConditionNetworkConfigured).IsTrue()
	})
	l.end(t)
	b.until("redirect to the new port", func() bool { return redirect() == "https://secure.example.com:9443/" })
	if n := b.srv.Rejections(); n > 0 {
		t.Errorf("%d rejections, want none", n)
	}

	// Connections keep the listener that they began with, and Envoy's workers have
	// the new one a moment after its acknowledgement: the last of many is past it.
	fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for i := range 100 {
		if _, err := request(t.Context(), fresh, b.cfg.Envoy.HTTPAddress, "sort.example.com", fmt.Sprintf("/later/%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if log := e.Stop(); !strings.Contains(log, "/logged") || strings.Contains(log, "/later/99") {
		t.Errorf("the access log has what came after it was turned off, or lacks what came before:\n%s", log[max(0, len(log)-2000):])
	}
}
