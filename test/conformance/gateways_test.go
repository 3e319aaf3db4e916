package conformance

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/envoytest"
	"github.com/wisp-serving/wisp/test/platform"
)

// TestSeveralGateways runs two gateways, each with an Envoy of its own. One leads: it
// says Ready when both Envoys have a KIngress. It is killed, and the other takes over.
func TestSeveralGateways(t *testing.T) {
	p := platform.Start(t, platform.Options{WithoutWisp: true})
	startBackend(t, p, "web")
	a := newGateway(t, p, "10.244.255.11", "10.244.255.12")
	b := newGateway(t, p, "10.244.255.21", "10.244.255.22")
	setEndpoints(t, p, map[*gateway]bool{a: true, b: true})

	a.start(t)
	first := leader(t, p, "")
	b.start(t)
	addIngress(t, p, "first")
	waitReady(t, p, "first")
	for _, g := range []*gateway{a, b} {
		if got := g.ask(t, "first"); got != http.StatusOK {
			t.Errorf("%s answers %d, want 200", g.external, got)
		}
	}

	// Envoy of the one that doesn't lead is behind.
	b.signalEnvoy(t, syscall.SIGSTOP)
	addIngress(t, p, "second")
	waitProbeFailed(t, p, "second", b.external)
	b.signalEnvoy(t, syscall.SIGCONT)
	waitReady(t, p, "second")

	proved := ingress(t, p, "first").ResourceVersion
	loads := []*load{a.load("first"), b.load("first")}
	a.kill(t)
	addIngress(t, p, "third")
	second := leader(t, p, first)
	// The Envoy without a gateway serves on, and learns nothing new.
	waitProbeFailed(t, p, "third", a.external)
	setEndpoints(t, p, map[*gateway]bool{a: false, b: true}) // as the kubelet finds
	waitReady(t, p, "third")

	a.start(t)
	setEndpoints(t, p, map[*gateway]bool{a: true, b: true})
	addIngress(t, p, "fourth")
	waitReady(t, p, "fourth")
	for _, name := range []string{"third", "fourth"} {
		if got := a.ask(t, name); got != http.StatusOK {
			t.Errorf("%s: the gateway that was killed answers %d, want 200", name, got)
		}
	}
	if got := leader(t, p, first); got != second {
		t.Errorf("%s leads after the other gateway came back, want %s", got, second)
	}
	if got := ingress(t, p, "first").ResourceVersion; got != proved {
		t.Error("a KIngress that was Ready has been written again")
	}
	for _, l := range loads {
		l.end(t)
	}
}

// gateway is a `wisp gateway` that keeps an Envoy running.
type gateway struct {
	external, internal string
	dir                string
	cmd                *exec.Cmd
	ended              chan struct{}
}

// newGateway prepares one whose Envoy listens at port 80 of two addresses.
func newGateway(t *testing.T, p *platform.Platform, external, internal string) *gateway {
	t.Helper()
	dir := envoytest.Dir(t)
	g := &gateway{external: external, internal: internal, dir: dir}
	t.Cleanup(func() {
		g.stop()
		if t.Failed() {
			log, _ := os.ReadFile(g.file("log"))
			t.Logf("gateway of %s:\n%s", external, log)
		}
		_ = os.RemoveAll(dir)
	})
	cfg := config.DefaultGateway()
	cfg.Cluster.Kubeconfig = p.Kubeconfig
	cfg.HealthAddress = external + ":9450"
	cfg.XDSSocket = g.file("xds.sock")
	cfg.Envoy.HTTPAddress, cfg.Envoy.HTTPSAddress, cfg.Envoy.InternalAddress = external+":80", "", internal+":80"
	cfg.Envoy.AdminAddress = "127.0.0.1:" + strings.TrimPrefix(external, "10.244.255.") + "000" // loopback only
	cfg.Envoy.Supervise, cfg.Envoy.Path = true, envoy
	cfg.LeaseNamespace = gatewayNamespace
	text, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(g.file("gateway.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *gateway) file(name string) string { return filepath.Join(g.dir, name) }

func (g *gateway) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(g.file("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	g.cmd = exec.Command(wisp, "gateway", "--config", g.file("gateway.yaml"))
	g.cmd.Stdout, g.cmd.Stderr = log, log
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	g.ended = ended
	go func() {
		defer close(ended)
		_ = g.cmd.Wait()
	}()
}

// kill ends the gateway and leaves its Envoy, as a crash does.
func (g *gateway) kill(t *testing.T) {
	t.Helper()
	if err := g.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-g.ended
}

// stop ends the gateway and its Envoy, if they run.
func (g *gateway) stop() {
	if g.ended != nil {
		_ = g.cmd.Process.Signal(syscall.SIGTERM)
		<-g.ended
	}
	if pid, err := g.envoyPID(); err == nil { // of a gateway that was killed
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func (g *gateway) envoyPID() (int, error) {
	text, err := os.ReadFile(g.file("envoy.pid"))
	if err != nil {
		return 0, err
	}
	pid, _, _ := strings.Cut(string(text), " ")
	return strconv.Atoi(pid)
}

func (g *gateway) signalEnvoy(t *testing.T, s syscall.Signal) {
	t.Helper()
	pid, err := g.envoyPID()
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatal(err)
	}
}

func host(ingress string) string { return ingress + ".example.com" }

// call sends a request for a KIngress's host to an Envoy.
func (g *gateway) call(c *http.Client, ingress string) (int, error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+g.external+"/", nil)
	if err != nil {
		return 0, err
	}
	req.Host = host(ingress)
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

func (g *gateway) ask(t *testing.T, ingress string) int {
	t.Helper()
	status, err := g.call(http.DefaultClient, ingress)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// load asks an Envoy again and again until it is ended.
type load struct {
	stop           context.CancelFunc
	done           sync.WaitGroup
	of             string
	asked, refused atomic.Int64
}

func (g *gateway) load(ingress string) *load {
	ctx, stop := context.WithCancel(context.Background())
	l := &load{stop: stop, of: g.external}
	l.done.Go(func() {
		c := &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}
		defer c.CloseIdleConnections()
		for ctx.Err() == nil {
			l.asked.Add(1)
			if status, err := g.call(c, ingress); err != nil || status != http.StatusOK {
				l.refused.Add(1)
			}
		}
	})
	return l
}

// end fails the test where a request has failed.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.stop()
	l.done.Wait()
	t.Logf("%d of %d requests to %s failed", l.refused.Load(), l.asked.Load(), l.of)
	if l.refused.Load() > 0 || l.asked.Load() == 0 {
		t.Errorf("%d of %d requests to %s failed, want none of some", l.refused.Load(), l.asked.Load(), l.of)
	}
}

// leader waits until another one than was holds the Lease, and returns it.
func leader(t *testing.T, p *platform.Platform, was string) string {
	t.Helper()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: gatewayNamespace, Name: "wisp-gateway"}}
	lease = platform.WaitFor(t, p, lease, "be held", func(l *coordinationv1.Lease) bool {
		return l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity != "" && *l.Spec.HolderIdentity != was
	})
	return *lease.Spec.HolderIdentity
}

func addIngress(t *testing.T, p *platform.Platform, name string) {
	t.Helper()
	ing := &v1alpha1.Ingress{ObjectMeta: metav1.ObjectMeta{
		Namespace: "default", Name: name, Annotations: map[string]string{networking.IngressClassAnnotationKey: config.IngressClass},
	}}
	ing.Spec.Rules = []v1alpha1.IngressRule{{
		Hosts: []string{host(name)}, Visibility: v1alpha1.IngressVisibilityExternalIP,
		HTTP: &v1alpha1.HTTPIngressRuleValue{Paths: []v1alpha1.HTTPIngressPath{{Splits: []v1alpha1.IngressBackendSplit{{
			Percent:        100,
			IngressBackend: v1alpha1.IngressBackend{ServiceNamespace: "default", ServiceName: "web", ServicePort: intstr.FromInt32(80)},
		}}}}},
	}}
	create(t, p, ing)
}

func ingress(t *testing.T, p *platform.Platform, name string) *v1alpha1.Ingress {
	t.Helper()
	return waitIngress(t, p, name, "be there", func(*v1alpha1.Ingress) bool { return true })
}

func waitIngress(t *testing.T, p *platform.Platform, name, what string, ok func(*v1alpha1.Ingress) bool) *v1alpha1.Ingress {
	t.Helper()
	return platform.WaitFor(t, p, &v1alpha1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}, what, ok)
}

func waitReady(t *testing.T, p *platform.Platform, name string) {
	t.Helper()
	waitIngress(t, p, name, "be Ready", (*v1alpha1.Ingress).IsReady)
}

// waitProbeFailed waits until a KIngress's status says that the Envoy at an address
// hasn't got it.
func waitProbeFailed(t *testing.T, p *platform.Platform, name, address string) {
	t.Helper()
	waitIngress(t, p, name, "wait for the Envoy at "+address, func(i *v1alpha1.Ingress) bool {
		c := i.Status.GetCondition(v1alpha1.IngressConditionLoadBalancerReady)
		return c != nil && c.Reason == "ProbeFailed" && strings.Contains(c.Message, "Envoy at "+address+":80")
	})
}

// startBackend serves 200 behind a Service.
func startBackend(t *testing.T, p *platform.Platform, service string) {
	t.Helper()
	ln, err := net.Listen("tcp", "10.244.254.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() {
		_ = srv.Close()
		serving.Wait()
	})
	create(t, p, selectorless("default", service))
	create(t, p, slice("default", service, 8080, map[string]bool{"10.244.254.1": true}))
}

// setEndpoints says which gateways' Envoys are ready, as the controllers of a cluster
// do from their pods.
func setEndpoints(t *testing.T, p *platform.Platform, ready map[*gateway]bool) {
	t.Helper()
	addresses := map[string]map[string]bool{gatewayService: {}, gatewayService + "-internal": {}}
	for g, r := range ready {
		addresses[gatewayService][g.external] = r
		addresses[gatewayService+"-internal"][g.internal] = r
	}
	for service, a := range addresses {
		s := slice(gatewayNamespace, service, 80, a)
		old := &discoveryv1.EndpointSlice{}
		err := p.Client.Get(t.Context(), client.ObjectKeyFromObject(s), old)
		if err != nil {
			create(t, p, selectorless(gatewayNamespace, service))
			create(t, p, s)
			continue
		}
		s.ResourceVersion = old.ResourceVersion
		if err := p.Client.Update(t.Context(), s); err != nil {
			t.Fatalf("update the endpoints of service %s: %v", service, err)
		}
	}
}

// selectorless is a Service whose EndpointSlices no controller makes.
func selectorless(namespace, name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
}

func slice(namespace, service string, port int32, addresses map[string]bool) *discoveryv1.EndpointSlice {
	name := "http"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: fmt.Sprintf("%s-test", service),
			Labels: map[string]string{discoveryv1.LabelServiceName: service},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	for address, ready := range addresses {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	return s
}
