package xds

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/wisp-serving/wisp/test/envoytest"
	"github.com/wisp-serving/wisp/xds/translate"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
)

// refuseRoutes plays an Envoy that refuses routes in which one of the words
// occurs.
func refuseRoutes(words ...string) func(*discoveryv3.DeltaDiscoveryResponse) string {
	return func(resp *discoveryv3.DeltaDiscoveryResponse) string {
		if resp.GetTypeUrl() != resourcev3.RouteType {
			return ""
		}
		text := resp.String()
		if i := slices.IndexFunc(words, func(w string) bool { return strings.Contains(text, w) }); i >= 0 {
			return "no " + words[i]
		}
		return ""
	}
}

// TestQuarantineFindsTheCulprits refuses two of many KIngresses that came at once.
func TestQuarantineFindsTheCulprits(t *testing.T) {
	b := newBed(t, "127.96.0")
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	var good []string
	for i := range 20 {
		name := fmt.Sprintf("good-%02d", i)
		good = append(good, name)
		b.addIngress(name, rule("External", name+".example.com", path(to("sort-1"))))
	}
	for _, name := range []string{"good-x-bad", "good-1-bad"} {
		b.addIngress(name, rule("External", name+".example.com", path(to("sort-1"))))
	}
	b.startGateway()
	var answers atomic.Int64
	refuse := refuseRoutes("x-bad", "1-bad")
	b.dial().answer(func(resp *discoveryv3.DeltaDiscoveryResponse) string {
		if resp.GetTypeUrl() == resourcev3.RouteType {
			answers.Add(1)
		}
		return refuse(resp)
	})
	b.waitCondition("good-x-bad", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonRejected, "Envoy refuses it: no x-bad")
	b.waitCondition("good-1-bad", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonRejected, "Envoy refuses it: no 1-bad")
	for _, name := range good { // nobody answers the probe; but they got that far
		b.waitCondition(name, v1alpha1.IngressConditionLoadBalancerReady, "ProbeFailed", "Envoy has the configuration")
	}
	t.Logf("%d responses with routes", answers.Load())

	// Another Envoy never sees them.
	b.dial().answer(func(resp *discoveryv3.DeltaDiscoveryResponse) string {
		if refuse(resp) != "" {
			t.Error("a fresh Envoy was sent what another has refused")
		}
		return ""
	})
	b.until("second Envoy", func() bool {
		return b.srv.Envoys(resourcev3.RouteType, map[string]string{string(translate.External): "", string(translate.Internal): ""}).Acked == 2
	})

	// What is mended is tried again.
	b.addIngress("good-1-bad", rule("External", "mended.example.com", path(to("sort-1"))))
	b.waitCondition("good-1-bad", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonRejected, "no 1-bad") // its name is in its virtual host's
}

// TestQuarantineKeepsWhatWasProved refuses the new version of a KIngress whose
// old one is in use.
func TestQuarantineKeepsWhatWasProved(t *testing.T) {
	b := newBed(t, "127.97.0")
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	b.addIngress("sort", rule("External", "old.example.com", path(to("sort-1"))))
	b.startGateway()
	last := atomic.Pointer[string]{}
	refuse := refuseRoutes("new.example.com")
	b.dial().answer(func(resp *discoveryv3.DeltaDiscoveryResponse) string {
		text := resp.String()
		if resp.GetTypeUrl() == resourcev3.RouteType {
			last.Store(&text)
		}
		return refuse(resp)
	})
	b.waitCondition("sort", v1alpha1.IngressConditionLoadBalancerReady, "ProbeFailed", "")
	b.addIngress("sort", rule("External", "new.example.com", path(to("sort-1"))))
	b.waitCondition("sort", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonRejected, "no new.example.com")
	b.until("old routes", func() bool { return strings.Contains(*last.Load(), "old.example.com") })

	// A change elsewhere doesn't bring it back, nor does it wait.
	b.addIngress("other", rule("External", "other.example.com", path(to("sort-1"))))
	b.waitCondition("other", v1alpha1.IngressConditionLoadBalancerReady, "ProbeFailed", "")
	if got := b.srv.Rejections(); got != 1 {
		t.Errorf("%d rejections, want 1", got)
	}
	for name, want := range map[string]int64{
		"kn.wasm.gateway.rejections type=RouteConfiguration": 1,
		"kn.wasm.gateway.ingresses state=rejected":           1,
		"kn.wasm.gateway.ingresses state=served":             1,
		"kn.wasm.gateway.envoys state=answering":             1,
		"kn.wasm.gateway.resources type=RouteConfiguration":  3,
	} {
		if got := b.metric(name); got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
	b.addIngress("sort", rule("External", "mended.example.com", path(to("sort-1"))))
	b.waitCondition("sort", v1alpha1.IngressConditionLoadBalancerReady, "ProbeFailed", "")
}

// TestQuarantineOutlivesTheGateway starts a gateway over what an earlier one has
// written. It serves all else first, then tries again.
func TestQuarantineOutlivesTheGateway(t *testing.T) {
	b := newBed(t, "127.98.0")
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	b.addIngress("good", rule("External", "good.example.com", path(to("sort-1"))))
	b.addIngress("bad", rule("External", "bad.example.com", path(to("sort-1"))))
	stop := b.startGateway()
	e := b.dial()
	e.answer(refuseRoutes("bad.example.com"))
	b.waitCondition("bad", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonRejected, "no bad.example.com")
	e.hangUp()
	stop()

	b.startGateway()
	first := true
	b.dial().answer(func(resp *discoveryv3.DeltaDiscoveryResponse) string { // a newer Envoy
		if resp.GetTypeUrl() == resourcev3.RouteType && first {
			first = false
			if text := resp.String(); strings.Contains(text, "bad.example.com") || !strings.Contains(text, "good.example.com") {
				t.Error("the first configuration is not that without what Envoy had refused")
			}
		}
		return ""
	})
	b.waitCondition("bad", v1alpha1.IngressConditionLoadBalancerReady, "ProbeFailed", "Envoy has the configuration")
}

// newWeakCertificate returns a certificate that Go takes and Envoy doesn't, and
// its key.
func newWeakCertificate(t testing.TB, host string) (chain, private []byte) {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
}

// TestEnvoyRefusesACertificate gives two KIngresses a certificate with too short
// a key, first with others, then in place of a good one.
func TestEnvoyRefusesACertificate(t *testing.T) {
	b := newBed(t, "127.99.0")
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	chain, private := newCertificatePEM(t, "good.example.com")
	weak, weakKey := newWeakCertificate(t, "weak.example.com")
	b.setSecret("good", chain, private)
	b.setSecret("weak", weak, weakKey)
	add := func(name, secret string) {
		b.addIngressWith(name, []ingressOption{withTLS(secret)}, rule("External", name+".example.com", path(to("sort-1"))))
	}
	add("weak", "weak")
	add("weak-too", "weak")
	add("good", "good")
	add("good-too", "good")
	b.startGateway()
	envoytest.Start(t, b.cfg)
	b.waitReady("good", "good-too")
	for _, name := range []string{"weak", "weak-too"} {
		b.waitCondition(name, v1alpha1.IngressConditionNetworkConfigured, translate.ReasonRejected, "2048")
	}
	client := tlsClient(t, b.cfg.Envoy.HTTPSAddress, "good.example.com", chain)
	serves := func() {
		t.Helper()
		resp, err := client.Get("https://good.example.com/")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		client.CloseIdleConnections()
	}
	serves()
	b.setSecret("good", weak, weakKey)
	for _, name := range []string{"good", "good-too"} {
		b.waitCondition(name, v1alpha1.IngressConditionNetworkConfigured, translate.ReasonRejected, "2048")
	}
	serves()
	b.setSecret("good", chain, private)
	b.setSecret("weak", chain, private)
	b.waitReady("good", "good-too", "weak", "weak-too")
}
