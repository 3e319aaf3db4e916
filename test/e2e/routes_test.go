package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/platform"
)

// TestRoutes is what `kn` can ask of a gateway: splits, tags, a gradual rollout, a
// domain with TLS.
func TestRoutes(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	w := newWho(t, p)

	w.kn(t, "service", "update", "who", "--env", "WHO=two", "--revision-name", "who-two")
	w.expectShares(t, 100, map[string]int{"two": 100})
	w.kn(t, "service", "update", "who", "--traffic", "who-one=90", "--traffic", "who-two=10", "--tag", "who-one=old", "--tag", "who-two=new")
	w.expectShares(t, 10_000, map[string]int{"one": 90, "two": 10})
	for tag, want := range map[string]string{"old": "one", "new": "two"} {
		if got := w.ask(tag + "-" + w.host()); got.body != want || got.status != http.StatusOK {
			t.Errorf("tag %s: got %v, want %s", tag, got, want)
		}
	}

	others := w.startTraffic()
	w.kn(t, "service", "update", "who", "--traffic", "who-one=50", "--traffic", "who-two=50")
	expectAll(t, "while the split changes", others.stop())
	w.expectShares(t, 10_000, map[string]int{"one": 50, "two": 50})

	t.Run("gradual rollout", func(t *testing.T) { w.rollOut(t) })
	t.Run("domain with TLS", func(t *testing.T) { w.mapDomain(t) })
	t.Run("kubectl get king", func(t *testing.T) {
		table := p.Kubectl(t, "get", "king", "-n", w.namespace)
		if !strings.Contains(table, "READY") || strings.Count(table, "True") != 2 { // who's, and its domain's
			t.Errorf("got\n%s", table)
		}
	})
	t.Run("bad input", func(t *testing.T) { w.refuse(t) })
	t.Run("settings", func(t *testing.T) { w.changeSettings(t) })
}

// who is a Service that answers which of its revisions it is.
type who struct {
	p         *platform.Platform
	namespace string
	caller    *caller
	service   *servingv1.Service
}

func newWho(t *testing.T, p *platform.Platform) *who {
	t.Helper()
	w := &who{p: p, namespace: p.Namespace(t), caller: newCaller(t, p)}
	image := p.Registry + "/who:v1"
	p.Wisp(t, "push", p.Guest(t, "test/guests/who/who.c"), image)
	w.kn(t, "service", "create", "who", "--image", image, "--env", "WHO=one", "--revision-name", "who-one")
	w.service = platform.WaitFor(t, p, &servingv1.Service{ObjectMeta: w.named("who")}, "be ready", (*servingv1.Service).IsReady)
	return w
}

func (w *who) kn(t *testing.T, args ...string) {
	t.Helper()
	w.p.Kn(t, append(args, "-n", w.namespace)...)
}

func (w *who) named(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: w.namespace, Name: name}
}

func (w *who) host() string { return w.service.Status.URL.Host }

func (w *who) ask(host string) answer {
	r, err := http.NewRequest(http.MethodGet, w.p.Gateway, nil)
	if err != nil {
		return answer{err: err}
	}
	r.Host = host + ":" + w.caller.gateway.Port()
	return w.caller.do(r)
}

func (w *who) startTraffic() *traffic { return w.caller.startTraffic(w.service, 2, "", every(0)) }

// expectShares sends n requests and fails the test unless they fall on revisions by
// the given percentages. A deviation of 7 sigma comes by chance once in 10^11 runs.
func (w *who) expectShares(t *testing.T, n int, percent map[string]int) {
	t.Helper()
	const clients = 8
	counts, mu := map[string]int{}, sync.Mutex{}
	var asking sync.WaitGroup
	for i := range clients {
		asking.Go(func() {
			for range n/clients + boolInt(i < n%clients) {
				a := w.ask(w.host())
				mu.Lock()
				if a.ok() {
					counts[a.body]++
				} else {
					counts["failed: "+a.String()]++
				}
				mu.Unlock()
			}
		})
	}
	asking.Wait()
	t.Logf("of %d requests: %v", n, counts)
	total := 0
	for revision, share := range percent {
		p := float64(share) / 100
		mean, sigma := float64(n)*p, math.Sqrt(float64(n)*p*(1-p))
		if got := float64(counts[revision]); math.Abs(got-mean) > 7*sigma {
			t.Errorf("%v of %d requests to %s, want %v ± %v", got, n, revision, mean, 7*sigma)
		}
		total += counts[revision]
	}
	if total != n {
		t.Errorf("%d of %d requests were answered by these revisions: %v", total, n, counts)
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// rollOut gives the Service another revision with Knative's rollout-duration set, and
// sees traffic shift to it step by step.
func (w *who) rollOut(t *testing.T) {
	w.kn(t, "service", "update", "who", "--traffic", "@latest=100", "--untag", "old", "--untag", "new")
	setNetwork(t, w.p, "rollout-duration", "10") // seconds
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	steps := make(chan []int, 1)
	go func() { steps <- w.follow(ctx, "who-three") }()
	tr := w.startTraffic()
	w.kn(t, "service", "update", "who", "--env", "WHO=three", "--revision-name", "who-three")
	w.service = platform.WaitFor(t, w.p, w.service, "be ready", func(s *servingv1.Service) bool {
		return s.IsReady() && len(s.Status.Traffic) == 1 && s.Status.Traffic[0].RevisionName == "who-three"
	})
	answers := tr.stop()
	expectAll(t, "through the rollout", answers)
	if got := <-steps; len(got) < 4 || got[0] != 1 || got[len(got)-1] != 100 || !slices.IsSorted(got) {
		t.Errorf("the new revision had %v percent one after the other, want 1 first, then more and more", got)
	} else {
		t.Logf("percent of the new revision: %v", got)
	}
	w.expectShares(t, 100, map[string]int{"three": 100})
}

// follow returns the shares that a revision has in the Service's KIngress, one after
// the other, until it has all.
func (w *who) follow(ctx context.Context, revision string) []int {
	events, err := w.p.Client.Watch(ctx, &v1alpha1.IngressList{}, client.InNamespace(w.namespace))
	if err != nil {
		return nil
	}
	defer events.Stop()
	var steps []int
	for e := range events.ResultChan() {
		ing, ok := e.Object.(*v1alpha1.Ingress)
		if !ok || ing.Name != "who" {
			continue
		}
		for _, s := range ing.Spec.Rules[0].HTTP.Paths[0].Splits {
			if s.ServiceName != revision || len(steps) > 0 && steps[len(steps)-1] == s.Percent {
				continue
			}
			if steps = append(steps, s.Percent); s.Percent == 100 {
				return steps
			}
		}
	}
	return steps
}

// setNetwork changes a key of Knative's config-network until the test ends.
func setNetwork(t *testing.T, p *platform.Platform, key, value string) {
	t.Helper()
	cm := &corev1.ConfigMap{}
	if err := p.Client.Get(t.Context(), client.ObjectKey{Namespace: "knative-serving", Name: "config-network"}, cm); err != nil {
		t.Fatal(err)
	}
	patch := func(value any) {
		t.Helper()
		text, err := json.Marshal(map[string]any{"data": map[string]any{key: value}})
		if err != nil {
			t.Fatal(err)
		}
		p.Kubectl(t, "patch", "configmap", "config-network", "-n", "knative-serving", "--type", "merge", "-p", string(text))
	}
	var was any // nil removes it
	if old, ok := cm.Data[key]; ok {
		was = old
	}
	patch(value)
	t.Cleanup(func() { patch(was) })
}

// mapDomain maps a domain with a certificate of its own to the Service, and calls it
// as one would from a shell. Then plain HTTP is to be redirected.
func (w *who) mapDomain(t *testing.T) {
	domain := "who." + w.namespace + ".example"
	dir := t.TempDir()
	chain, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	writeCertificate(t, domain, chain, key)
	w.p.Kubectl(t, "create", "secret", "tls", "certificate", "-n", w.namespace, "--cert", chain, "--key", key)
	setNetwork(t, w.p, "autocreate-cluster-domain-claims", "true")
	w.kn(t, "domain", "create", domain, "--ref", "ksvc:who", "--tls", "certificate")
	mapped := &v1alpha1.Ingress{ObjectMeta: w.named(domain)}
	platform.WaitFor(t, w.p, mapped, "be ready", func(i *v1alpha1.Ingress) bool { return i.IsReady() && len(i.Spec.TLS) > 0 })

	secure, plain := port(t, w.p.SecureGateway), port(t, w.p.Gateway)
	curl := func(args ...string) string {
		t.Helper()
		args = append([]string{"-sS", "--cacert", chain, "--resolve", domain + ":" + secure + ":127.0.0.1", "--resolve", domain + ":" + plain + ":127.0.0.1"}, args...)
		out, err := exec.CommandContext(t.Context(), "curl", args...).CombinedOutput()
		if err != nil {
			t.Errorf("curl %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if got := curl("https://" + domain + ":" + secure + "/"); got != "three" {
		t.Errorf("by TLS: %q, want three", got)
	}
	if got := curl("http://" + domain + ":" + plain + "/"); got != "three" {
		t.Errorf("in the clear: %q, want three", got)
	}

	setNetwork(t, w.p, "http-protocol", "Redirected")
	platform.WaitFor(t, w.p, mapped, "redirect", func(i *v1alpha1.Ingress) bool {
		return i.IsReady() && i.Spec.HTTPOption == v1alpha1.HTTPOptionRedirected
	})
	if got := curl("-L", "-w", " %{num_redirects} %{url_effective}", "http://"+domain+":"+plain+"/"); got != "three 1 https://"+domain+":"+secure+"/" {
		t.Errorf("redirected: %q", got)
	}
}

func port(t *testing.T, text string) string {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u.Port()
}

// writeCertificate writes a certificate for a domain, signed by itself, and its key.
func writeCertificate(t *testing.T, domain, chain, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: domain}, DNSNames: []string{domain},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, // curl takes it for an authority
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{chain: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// refuse makes KIngresses that can't be served, each of which says why, and one that
// is large.
func (w *who) refuse(t *testing.T) {
	secret := &corev1.Secret{
		ObjectMeta: w.named("broken"), Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: []byte("no certificate"), corev1.TLSPrivateKeyKey: []byte("no key")},
	}
	if err := w.p.Client.Create(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		change          func(*v1alpha1.Ingress)
		reason, message string
	}{
		"conflict": {
			func(i *v1alpha1.Ingress) { i.Spec.Rules[0].Hosts = []string{w.host()} },
			"DomainConflict", "host " + w.host() + " belongs to the older ingress " + w.namespace + "/who",
		},
		"no-secret": {
			func(i *v1alpha1.Ingress) {
				i.Spec.TLS = []v1alpha1.IngressTLS{{SecretName: "none", SecretNamespace: w.namespace}}
			},
			"CertificateNotReady", "secret " + w.namespace + "/none: there is none of type kubernetes.io/tls",
		},
		"broken-certificate": {
			func(i *v1alpha1.Ingress) {
				i.Spec.TLS = []v1alpha1.IngressTLS{{SecretName: "broken", SecretNamespace: w.namespace}}
			},
			"CertificateNotReady", "secret " + w.namespace + "/broken: tls: failed to find any PEM data",
		},
		"no-service": {
			func(i *v1alpha1.Ingress) { split(i).ServiceName = "none" },
			"BackendNotFound", "there is no backend service none",
		},
		"header": {
			func(i *v1alpha1.Ingress) { split(i).AppendHeaders = map[string]string{"x": "one\ntwo"} },
			"InvalidIngress", "HeaderValue.Value",
		},
		"framing": {
			func(i *v1alpha1.Ingress) { split(i).AppendHeaders = map[string]string{"Transfer-Encoding": "chunked"} },
			"InvalidIngress", "which is the gateway's to set",
		},
	}
	tr := w.startTraffic()
	for name, tt := range tests {
		ing := w.ingress(name)
		tt.change(ing)
		if err := w.p.Client.Create(t.Context(), ing); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for name, tt := range tests {
		platform.WaitFor(t, w.p, &v1alpha1.Ingress{ObjectMeta: w.named(name)}, "be refused: "+tt.reason+": "+tt.message, func(i *v1alpha1.Ingress) bool {
			c := i.Status.GetCondition(v1alpha1.IngressConditionNetworkConfigured)
			return c.IsFalse() && c.Reason == tt.reason && strings.Contains(c.Message, tt.message)
		})
	}
	large := w.ingress("large")
	paths := &large.Spec.Rules[0].HTTP.Paths
	for i := range 10_000 {
		p := (*paths)[0]
		p.Path = fmt.Sprintf("/%d", i)
		*paths = append(*paths, p)
	}
	if err := w.p.Client.Create(t.Context(), large); err != nil {
		t.Fatal(err)
	}
	platform.WaitFor(t, w.p, &v1alpha1.Ingress{ObjectMeta: w.named("large")}, "be ready", (*v1alpha1.Ingress).IsReady)
	expectAll(t, "beside them", tr.stop())
}

// changeSettings changes a setting of the gateway while it runs, and back: whether a
// Service may lead out of the cluster.
func (w *who) changeSettings(t *testing.T) {
	gateway := func() int {
		for _, c := range w.p.Components(t) {
			if c.Name == "wisp-gateway" {
				return c.PID
			}
		}
		return 0
	}
	was := gateway()
	out := &corev1.Service{ObjectMeta: w.named("out"), Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeExternalName, ExternalName: "203.0.113.1", Ports: []corev1.ServicePort{{Port: 80}},
	}}
	ing := w.ingress("out")
	split(ing).ServiceName = out.Name
	for _, o := range []client.Object{out, ing} {
		if err := w.p.Client.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	await := func(want corev1.ConditionStatus) {
		t.Helper()
		platform.WaitFor(t, w.p, ing, "have its backend: "+string(want), func(i *v1alpha1.Ingress) bool {
			c := i.Status.GetCondition(v1alpha1.IngressConditionNetworkConfigured)
			return c != nil && c.Status == want
		})
	}
	await(corev1.ConditionFalse)
	tr := w.startTraffic()
	setSetting(t, w.p.Settings("wisp-gateway"), "externalNames", true)
	await(corev1.ConditionTrue)
	expectAll(t, "while the setting changes", tr.stop())
	if got := gateway(); got != was || got == 0 {
		t.Errorf("the gateway's pid is %d, want %d as before", got, was)
	}
}

// setSetting changes a key in a file of settings until the test ends.
func setSetting(t *testing.T, path, key string, value any) {
	t.Helper()
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	replace := func(text []byte) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path+".new", text, 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	all := map[string]any{}
	if err := yaml.Unmarshal(was, &all); err != nil {
		t.Fatal(err)
	}
	all[key] = value
	text, err := yaml.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	replace(text)
	t.Cleanup(func() { replace(was) })
}

func split(i *v1alpha1.Ingress) *v1alpha1.IngressBackendSplit {
	return &i.Spec.Rules[0].HTTP.Paths[0].Splits[0]
}

// ingress is one that leads to a revision of the Service.
func (w *who) ingress(name string) *v1alpha1.Ingress {
	ing := &v1alpha1.Ingress{ObjectMeta: w.named(name)}
	ing.Annotations = map[string]string{networking.IngressClassAnnotationKey: config.IngressClass}
	ing.Spec.Rules = []v1alpha1.IngressRule{{
		Hosts: []string{name + "." + w.namespace + ".example"}, Visibility: v1alpha1.IngressVisibilityExternalIP,
		HTTP: &v1alpha1.HTTPIngressRuleValue{Paths: []v1alpha1.HTTPIngressPath{{Splits: []v1alpha1.IngressBackendSplit{{
			Percent:        100,
			IngressBackend: v1alpha1.IngressBackend{ServiceNamespace: w.namespace, ServiceName: "who-three", ServicePort: intstr.FromInt32(80)},
		}}}}},
	}}
	return ing
}
