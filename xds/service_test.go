package xds

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/wisp-serving/wisp/test/envoytest"
	"github.com/wisp-serving/wisp/xds/translate"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
)

// startBackend serves on a free port of the loopback.
func (b *bed) startBackend(name string) *fakeNode {
	b.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	n := serveNode(b.t, name, ln)
	n.port = ln.Addr().(*net.TCPAddr).Port
	return n
}

// addService adds a Service of one port.
func (b *bed) addService(name, port string, number int32) {
	b.t.Helper()
	svc := &corev1.Service{ObjectMeta: meta(name)}
	svc.Spec.Ports = []corev1.ServicePort{{Name: port, Port: number}}
	b.save(svc)
	b.revisionChanged(name)
}

func (b *bed) addExternalName(name, host, port string) {
	b.t.Helper()
	svc := &corev1.Service{ObjectMeta: meta(name)}
	svc.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: host, Ports: []corev1.ServicePort{{Name: port, Port: 80}}}
	b.save(svc)
	b.revisionChanged(name)
}

// setEndpoints makes backends what serves a Service's port. Each gets a slice of
// its own, since each has a port of its own.
func (b *bed) setEndpoints(service, port string, backends ...*fakeNode) {
	b.t.Helper()
	old := &discoveryv1.EndpointSliceList{}
	if err := b.client.List(context.Background(), old); err != nil {
		b.t.Fatal(err)
	}
	for i := range old.Items {
		if serviceOf(&old.Items[i]) == service {
			b.remove(&old.Items[i])
		}
	}
	for i, n := range backends {
		number := int32(n.port)
		s := &discoveryv1.EndpointSlice{ObjectMeta: meta(fmt.Sprintf("%s-%d", service, i)), AddressType: discoveryv1.AddressTypeIPv4}
		s.Labels = map[string]string{discoveryv1.LabelServiceName: service}
		s.Ports = []discoveryv1.EndpointPort{{Name: &port, Port: &number}}
		s.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{n.ip}}}
		b.save(s)
	}
	b.revisionChanged(service)
}

// toService adds a split to a port of a Service.
func toService(name string, port intstr.IntOrString) pathOption {
	return func(p *v1alpha1.HTTPIngressPath) {
		p.Splits = append(p.Splits, v1alpha1.IngressBackendSplit{
			IngressBackend: v1alpha1.IngressBackend{ServiceNamespace: namespace, ServiceName: name, ServicePort: port},
			Percent:        100,
		})
	}
}

func TestEnvoyServesServices(t *testing.T) {
	b := newBed(t, "127.93.0")
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	one, two := b.startBackend("one"), b.startBackend("two")
	b.addService("web", "http", 80)
	b.setEndpoints("web", "http", one)
	b.addService("grpc", "h2c", 81)
	b.setEndpoints("grpc", "h2c", two)
	b.addExternalName("sort", b.cfg.InternalDomain, "http2")
	b.addIngress("web", rule("External", "web.example.com", path(toService("web", intstr.FromInt32(80)))))
	b.addIngress("grpc", rule("External", "grpc.example.com", path(toService("grpc", intstr.FromString("h2c")))))
	b.addIngress("sort", rule("Local", "sort.default.svc.cluster.local", path(to("sort-1"))))
	b.addIngress("mapping", rule("External", "sort.example.org", path(toService("sort", intstr.FromInt32(80)), rewrite("sort.default.svc.cluster.local"))))
	b.startGateway()
	envoytest.Start(t, b.cfg)
	b.waitReady("web", "grpc", "sort", "mapping")

	external := b.cfg.Envoy.HTTPAddress
	t.Run("by its endpoints", func(t *testing.T) {
		if a := ask(t, external, "web.example.com", "/"); a.status != 200 || a.header.Get("Node") != "one" || a.header.Get("Got-Proto") != "HTTP/1.1" {
			t.Errorf("%d from %q in %s", a.status, a.header.Get("Node"), a.header.Get("Got-Proto"))
		}
		if a := ask(t, external, "grpc.example.com", "/"); a.status != 200 || a.header.Get("Node") != "two" || a.header.Get("Got-Proto") != "HTTP/2.0" {
			t.Errorf("%d from %q in %s", a.status, a.header.Get("Node"), a.header.Get("Got-Proto"))
		}
	})
	t.Run("a domain mapping", func(t *testing.T) {
		a := ask(t, external, "sort.example.org", "/")
		if a.status != 200 || a.header.Get("Node") != "node-a" || a.header.Get("Got-Host") != "sort.default.svc.cluster.local" {
			t.Errorf("%d from %q as %s", a.status, a.header.Get("Node"), a.header.Get("Got-Host"))
		}
		if got := a.header.Get("Got-Knative-Serving-Revision"); got != "sort-1" {
			t.Errorf("revision is %q", got)
		}
	})
	t.Run("a websocket through a domain mapping", func(t *testing.T) { echo(t, external, "sort.example.org") })
	t.Run("endpoints move under load", func(t *testing.T) {
		l := startLoad(external, "web.example.com", 4)
		for i := range 20 {
			both, only := []*fakeNode{one, two}, []*fakeNode{two}
			if i%2 == 1 {
				only = []*fakeNode{one}
			}
			b.setEndpoints("web", "http", both...)
			b.waitEndpoints()
			b.setEndpoints("web", "http", only...)
			b.waitEndpoints()
		}
		l.end(t)
	})
	t.Run("a Service becomes a revision", func(t *testing.T) {
		l := startLoad(external, "web.example.com", 2)
		b.addRevision("web", translateHTTP1)
		b.until("node", func() bool { return ask(t, external, "web.example.com", "/").header.Get("Node") == "node-a" })
		l.end(t)
	})
	t.Run("no endpoints", func(t *testing.T) {
		b.setEndpoints("grpc", "h2c")
		b.until("endpoints", func() bool { return ask(t, external, "grpc.example.com", "/").status == http.StatusServiceUnavailable })
		b.setEndpoints("grpc", "h2c", one)
		b.until("endpoints", func() bool { return ask(t, external, "grpc.example.com", "/").status == http.StatusOK })
	})
}

// TestEnvoyAwaitsEndpoints leads a KIngress to a Service whose endpoints come
// later than Knative thinks, as EndpointSlices do.
func TestEnvoyAwaitsEndpoints(t *testing.T) {
	b := newBed(t, "127.100.0")
	b.patience = 2 * time.Second
	one, two := b.startBackend("one"), b.startBackend("two")
	for _, name := range []string{"one", "two", "three"} {
		b.addService(name, "http", 80)
	}
	b.setEndpoints("one", "http", one)
	to := func(service string) {
		b.addIngress("web", rule("External", "web.example.com", path(toService(service, intstr.FromInt32(80)))))
	}
	to("one")
	b.startGateway()
	envoytest.Start(t, b.cfg)
	b.waitReady("web")

	l := startLoad(b.cfg.Envoy.HTTPAddress, "web.example.com", 2)
	to("two")
	b.waitCondition("web", v1alpha1.IngressConditionLoadBalancerReady, "NoEndpoints", "no endpoint yet")
	if got := ask(t, b.cfg.Envoy.HTTPAddress, "web.example.com", "/").header.Get("Node"); got != "one" {
		t.Errorf("%q answers before there is another, want one", got)
	}
	b.setEndpoints("two", "http", two)
	b.waitReady("web")
	l.end(t)
	if got := ask(t, b.cfg.Envoy.HTTPAddress, "web.example.com", "/").header.Get("Node"); got != "two" {
		t.Errorf("%q answers after it is Ready, want two", got)
	}

	// But not for ever: a Service without pods is shown as it is.
	to("three")
	b.waitCondition("web", v1alpha1.IngressConditionLoadBalancerReady, "NoEndpoints", "no endpoint yet")
	b.waitCondition("web", v1alpha1.IngressConditionLoadBalancerReady, "ProbeFailed", "answer is 503")
	to("one")
	b.waitReady("web")
}

// newCertificatePEM returns a certificate for hosts, signed by itself, and its
// key.
func newCertificatePEM(t testing.TB, hosts ...string) (chain, private []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: hosts[0]}, DNSNames: hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func (b *bed) setSecret(name string, chain, private []byte) {
	b.t.Helper()
	s := &corev1.Secret{ObjectMeta: meta(name), Type: corev1.SecretTypeTLS}
	s.Data = map[string][]byte{corev1.TLSCertKey: chain, corev1.TLSPrivateKeyKey: private}
	b.save(s)
	b.secretChanged(name)
}

func (b *bed) secretChanged(name string) {
	b.put(func(c *changes) { c.secrets[types.NamespacedName{Namespace: namespace, Name: name}] = true })
}

// withTLS gives a KIngress a certificate for the given hosts or, without any, for all
// that it has.
func withTLS(secret string, hosts ...string) ingressOption {
	return func(i *v1alpha1.Ingress) {
		i.Spec.TLS = append(i.Spec.TLS, v1alpha1.IngressTLS{Hosts: hosts, SecretName: secret, SecretNamespace: namespace})
	}
}

func redirecting(i *v1alpha1.Ingress) { i.Spec.HTTPOption = v1alpha1.HTTPOptionRedirected }

// tlsClient trusts chain alone, for the name that it is asked for.
func tlsClient(t testing.TB, address, host string, chain []byte) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(chain) {
		t.Fatal("no certificate")
	}
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: host},
		ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func TestEnvoyServesTLS(t *testing.T) {
	b := newBed(t, "127.94.0")
	b.cfg.Envoy.HTTPSPort = 9443
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	chain, private := newCertificatePEM(t, "sort.example.com")
	other, otherKey := newCertificatePEM(t, "*.example.org")
	b.setSecret("sort", chain, private)
	b.setSecret("other", other, otherKey)
	b.addIngressWith("sort", []ingressOption{withTLS("sort")}, rule("External", "sort.example.com", path(to("sort-1"))))
	b.addIngressWith("other", []ingressOption{withTLS("other"), redirecting},
		rule("External", "other.example.org", path(to("sort-1")), path(under("/.well-known/acme-challenge/token"), to("sort-1"))))
	b.startGateway()
	envoytest.Start(t, b.cfg)
	b.waitReady("sort", "other")

	get := func(t *testing.T, c *http.Client, url string) *http.Response {
		t.Helper()
		resp, err := c.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp
	}
	secure := b.cfg.Envoy.HTTPSAddress
	t.Run("each name its certificate", func(t *testing.T) {
		for host, trusted := range map[string][]byte{"sort.example.com": chain, "other.example.org": other} {
			resp := get(t, tlsClient(t, secure, host, trusted), "https://"+host+"/")
			if resp.StatusCode != 200 || resp.Proto != "HTTP/2.0" || resp.Header.Get("Got-X-Forwarded-Proto") != "https" {
				t.Errorf("%s: %d in %s, forwarded as %s", host, resp.StatusCode, resp.Proto, resp.Header.Get("Got-X-Forwarded-Proto"))
			}
		}
		for _, host := range []string{"else.example.com", nobodysHost} {
			if _, err := tlsClient(t, secure, host, chain).Get("https://" + host + "/"); err == nil {
				t.Errorf("%s was served", host)
			}
		}
	})
	t.Run("plain HTTP where it isn't redirected", func(t *testing.T) {
		if got := ask(t, b.cfg.Envoy.HTTPAddress, "sort.example.com", "/").status; got != 200 {
			t.Errorf("status %d, want 200", got)
		}
		if got := ask(t, b.cfg.Envoy.InternalAddress, "other.example.org", "/").status; got != 200 {
			t.Errorf("status %d inside, want 200", got)
		}
	})
	t.Run("redirect", func(t *testing.T) {
		c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		a, err := request(t.Context(), c, b.cfg.Envoy.HTTPAddress, "other.example.org:8080", "/a?b=c")
		if err != nil {
			t.Fatal(err)
		}
		if got, want := a.header.Get("Location"), "https://other.example.org:9443/a?b=c"; a.status != http.StatusMovedPermanently || got != want {
			t.Errorf("%d to %s, want 301 to %s", a.status, got, want)
		}
		a, err = request(t.Context(), c, b.cfg.Envoy.HTTPAddress, "other.example.org", "/.well-known/acme-challenge/token")
		if err != nil || a.status != 200 {
			t.Errorf("ACME challenge: %d, %v; want 200", a.status, err)
		}
	})
	t.Run("renewed while connections stay", func(t *testing.T) {
		kept := tlsClient(t, secure, "sort.example.com", chain)
		first := get(t, kept, "https://sort.example.com/").TLS.PeerCertificates[0]
		renewed, renewedKey := newCertificatePEM(t, "sort.example.com")
		b.setSecret("sort", renewed, renewedKey)
		b.until("new certificate", func() bool {
			_, err := tlsClient(t, secure, "sort.example.com", renewed).Get("https://sort.example.com/")
			return err == nil
		})
		if again := get(t, kept, "https://sort.example.com/").TLS.PeerCertificates[0]; !again.Equal(first) {
			t.Error("the old connection was closed")
		}
		if got := b.drainedListeners(); got != "0" {
			t.Errorf("%s filter chains drained, want none", got)
		}
		chain = renewed
	})
	t.Run("what is broken is refused, and the last good one stays", func(t *testing.T) {
		b.setSecret("sort", []byte("no PEM"), private)
		b.waitCondition("sort", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonCertificate, "secret default/sort: tls: failed to find any PEM data")
		get(t, tlsClient(t, secure, "sort.example.com", chain), "https://sort.example.com/")
		b.remove(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "sort"}})
		b.secretChanged("sort")
		b.waitCondition("sort", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonCertificate, "there is none of type kubernetes.io/tls")
		get(t, tlsClient(t, secure, "sort.example.com", chain), "https://sort.example.com/")
		if !b.ingress("other").IsReady() {
			t.Error("the other one isn't Ready any more")
		}
	})
}

// TestEnvoyServesClusterLocalTLS serves a KIngress as Knative writes it with
// external-domain-tls and cluster-local-domain-tls.
func TestEnvoyServesClusterLocalTLS(t *testing.T) {
	b := newBed(t, "127.106.0")
	b.cfg.Envoy.InternalHTTPSAddress = freeAddress(t)
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	const outside, inside = "sort.example.com", "sort.default.svc.cluster.local"
	outer, outerKey := newCertificatePEM(t, outside)
	inner, innerKey := newCertificatePEM(t, inside)
	b.setSecret("outer", outer, outerKey)
	b.setSecret("inner", inner, innerKey)
	b.addIngressWith("sort", []ingressOption{withTLS("outer", outside), withTLS("inner", inside)},
		rule("External", outside, path(to("sort-1"))), rule("Local", inside, path(to("sort-1"))))
	b.startGateway()
	envoytest.Start(t, b.cfg)
	b.waitReady("sort")

	doors := map[string]string{outside: b.cfg.Envoy.HTTPSAddress, inside: b.cfg.Envoy.InternalHTTPSAddress}
	chains := map[string][]byte{outside: outer, inside: inner}
	for host, chain := range chains {
		for of, address := range doors {
			resp, err := tlsClient(t, address, host, chain).Get("https://" + host + "/")
			if err == nil {
				_ = resp.Body.Close()
			}
			if served := err == nil && resp.StatusCode == http.StatusOK; served != (of == host) {
				t.Errorf("%s at the door of %s: served is %v, error %v", host, of, served, err)
			}
		}
	}
	if got := ask(t, b.cfg.Envoy.InternalAddress, inside, "/").status; got != http.StatusOK {
		t.Errorf("%d by plain HTTP inside, want 200", got)
	}

	// Knative may turn it off again.
	b.addIngressWith("sort", []ingressOption{withTLS("outer", outside)},
		rule("External", outside, path(to("sort-1"))), rule("Local", inside, path(to("sort-1"))))
	b.waitReady("sort")
	b.until("no certificate inside", func() bool {
		_, err := tlsClient(t, doors[inside], inside, inner).Get("https://" + inside + "/")
		return err != nil
	})
}

// nobodysHost is the name of the listener's first filter chain.
const nobodysHost = "nobody.invalid"

// drainedListeners returns how many filter chains drain, by Envoy's own word.
func (b *bed) drainedListeners() string {
	b.t.Helper()
	body := ask(b.t, b.cfg.Envoy.AdminAddress, "admin", "/stats?filter=total_filter_chains_draining").body
	_, n, _ := strings.Cut(strings.TrimSpace(body), ": ")
	return n
}

// TestEnvoyTakesBackends publishes what has no test of its own with traffic.
func TestEnvoyTakesBackends(t *testing.T) {
	b := newBed(t, "127.95.0")
	b.cfg.ExternalNames = true
	b.addExternalName("name", "localhost.example.invalid", "http")
	b.addExternalName("address", "192.0.2.1", "h2c")
	b.addIngress("names", rule("External", "names.example.com", path(toService("name", intstr.FromInt32(80))),
		path(under("/address"), toService("address", intstr.FromInt32(80)))))
	b.startGateway()
	envoytest.Start(t, b.cfg)
	b.until("Envoy", func() bool { return b.srv.Envoys(resourcev3.RouteType, nil).Acked == 1 })
	b.waitClusters(2)
	if n := b.srv.Rejections(); n > 0 {
		t.Errorf("%d rejections, want none", n)
	}
}
