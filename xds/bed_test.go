package xds

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/envoytest"
	"github.com/wisp-serving/wisp/xds/server"
	"github.com/wisp-serving/wisp/xds/translate"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/util/retry"
	"k8s.io/client-go/util/workqueue"
	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/networking/pkg/http/header"
	"knative.dev/serving/pkg/activator"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/apis/serving"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// http.DefaultTransport keeps connections that tests leave open.
		goleak.IgnoreTopFunction("net/http.(*persistConn).readLoop"),
		goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreAnyFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
	)
}

const (
	namespace      = "default"
	translateHTTP1 = networking.ProtocolHTTP1
	translateH2C   = networking.ProtocolH2C
	deadline       = time.Minute // of what takes milliseconds, on a busy machine
)

// bed is a gateway with everything around it but an API server: objects live in
// a fake client, and nodes are Go servers. Changes are put into the inbox by the
// methods that make them, as informers would.
type bed struct {
	t      testing.TB
	cfg    config.Gateway
	client client.WithWatch
	subnet string
	nodes  map[string]*fakeNode

	srv *server.Server
	g   *gateway
	// settings are the gateway's while it runs.
	settings chan config.Gateway
	// reader reads metrics, which all gateways of the bed share.
	reader  *sdkmetric.ManualReader
	metrics *metrics
	// patience, where not 0, is the next gateway's.
	patience time.Duration
}

// newBed returns a bed whose nodes have addresses in the given /24, such as
// 127.81.0: port 8012 of an address is taken by one node.
func newBed(t testing.TB, subnet string) *bed {
	t.Helper()
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	dir := envoytest.Dir(t)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg := config.DefaultGateway()
	cfg.XDSSocket = filepath.Join(dir, "xds.sock")
	cfg.Envoy.HTTPAddress, cfg.Envoy.HTTPSAddress, cfg.Envoy.InternalAddress = freeAddress(t), freeAddress(t), freeAddress(t)
	cfg.Envoy.AdminAddress, cfg.Envoy.StatsAddress = freeAddress(t), freeAddress(t)
	reader := sdkmetric.NewManualReader()
	m, err := newMetrics(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	if err != nil {
		t.Fatal(err)
	}
	return &bed{
		reader: reader, metrics: m, settings: make(chan config.Gateway),
		t:      t,
		cfg:    cfg,
		subnet: subnet,
		nodes:  map[string]*fakeNode{},
		client: fake.NewClientBuilder().
			WithScheme(scheme).
			WithStatusSubresource(&v1alpha1.Ingress{}).
			WithIndex(&corev1.Pod{}, podRevision, byRevision).
			WithIndex(&discoveryv1.EndpointSlice{}, sliceService, byService).
			Build(),
	}
}

// freeAddress returns an address that nothing listens on, below the ports that
// Linux gives to outgoing connections, one of which could take it before its use.
func freeAddress(t testing.TB) string {
	t.Helper()
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
		if ln, err := net.Listen("tcp", address); err == nil {
			_ = ln.Close()
			return address
		}
	}
	t.Fatal("no free address")
	return ""
}

// startGateway starts the gateway and what writes status, and returns how to
// stop them.
func (b *bed) startGateway() (stop func()) {
	b.t.Helper()
	log := zaptest.NewLogger(b.t, zaptest.Level(zap.WarnLevel)).Sugar()
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](10*time.Millisecond, time.Second))
	notify := func(_ context.Context, keys map[types.NamespacedName]bool) {
		for key := range keys {
			queue.Add(key)
		}
	}
	b.srv = server.New(serverConfig(b.cfg), b.metrics, log)
	g, err := newGateway(b.cfg, deps{source: clusterSource{b.client}, server: b.srv, settings: b.settings, notify: notify, metrics: b.metrics, log: log})
	if err != nil {
		b.t.Fatal(err)
	}
	b.g = g
	g.patience = cmp.Or(b.patience, g.patience)
	r := &reconciler{
		client: b.client, board: g.board, prober: newProber(),
		envoys:  locator{server: b.srv, source: g.source, envoy: b.cfg.Envoy, alone: b.cfg.LeaseNamespace == ""}.find,
		metrics: b.metrics, log: log,
	}

	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- serve(ctx, g, b.srv) }()
	reconciled := make(chan struct{})
	go func() {
		defer close(reconciled)
		reconcileAll(ctx, r, queue)
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		queue.ShutDown()
		<-reconciled
		if err := <-served; err != nil {
			b.t.Errorf("gateway: %v", err)
		}
	}
	b.t.Cleanup(stop)
	return stop
}

func reconcileAll(ctx context.Context, r reconcile.Reconciler, queue workqueue.TypedRateLimitingInterface[types.NamespacedName]) {
	for {
		key, shutdown := queue.Get()
		if shutdown {
			return
		}
		if _, err := r.Reconcile(ctx, reconcile.Request{NamespacedName: key}); err != nil {
			queue.AddRateLimited(key)
		} else {
			queue.Forget(key)
		}
		queue.Done(key)
	}
}

func (b *bed) put(change func(*changes)) {
	if b.g != nil {
		b.g.inbox.put(change)
	}
}

// save creates or replaces an object, as a user would: again, if its status was
// written meanwhile.
func (b *bed) save(o client.Object) {
	b.t.Helper()
	if err := retry.RetryOnConflict(retry.DefaultRetry, func() error { return b.replace(o) }); err != nil {
		b.t.Fatalf("save %s: %v", o.GetName(), err)
	}
}

func (b *bed) replace(o client.Object) error {
	old := o.DeepCopyObject().(client.Object)
	err := b.client.Get(context.Background(), client.ObjectKeyFromObject(o), old)
	if apierrors.IsNotFound(err) {
		return b.client.Create(context.Background(), o)
	}
	if err != nil {
		return err
	}
	o.SetResourceVersion(old.GetResourceVersion())
	o.SetUID(old.GetUID())
	o.SetGeneration(old.GetGeneration() + 1)
	return b.client.Update(context.Background(), o)
}

func (b *bed) remove(o client.Object) {
	b.t.Helper()
	if err := b.client.Delete(context.Background(), o); err != nil {
		b.t.Fatalf("remove %s: %v", o.GetName(), err)
	}
}

func meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name), Generation: 1}
}

// addNode starts a node's server and adds its Node object.
func (b *bed) addNode(name string) {
	b.t.Helper()
	ip := fmt.Sprintf("%s.%d", b.subnet, len(b.nodes)+1)
	b.nodes[name] = startNode(b.t, name, ip)
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{config.NodeLabel: "true"}}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	b.save(n)
	b.put(func(c *changes) { c.nodes = true })
}

// ranked returns the names of nodes in a revision's order.
func (b *bed) ranked(revision string) []string {
	b.t.Helper()
	var nodes []translate.Node
	byIP := map[string]string{}
	for name, n := range b.nodes {
		nodes = append(nodes, translate.Node{Name: name, IP: n.ip})
		byIP[n.ip] = name
	}
	var out []string
	for _, tier := range translate.Tiers(types.NamespacedName{Namespace: namespace, Name: revision}, nil, nodes)[1:] {
		out = append(out, byIP[tier[0].IP])
	}
	return out
}

// requests counts what all nodes got.
func (b *bed) requests() int64 {
	var n int64
	for _, node := range b.nodes {
		n += node.requests.Load()
	}
	return n
}

func (b *bed) revisionChanged(name string) {
	b.put(func(c *changes) { c.services[types.NamespacedName{Namespace: namespace, Name: name}] = true })
}

func (b *bed) addRevision(name string, p networking.ProtocolType) {
	b.t.Helper()
	pa := &autoscalingv1alpha1.PodAutoscaler{ObjectMeta: meta(name)}
	pa.Annotations = map[string]string{autoscaling.ClassAnnotationKey: config.PodAutoscalerClass}
	pa.Spec.ProtocolType = p
	b.save(pa)
	b.revisionChanged(name)
}

func (b *bed) removeRevision(name string) {
	b.t.Helper()
	b.remove(&autoscalingv1alpha1.PodAutoscaler{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}})
	b.revisionChanged(name)
}

// addPod adds a ready pod of a revision on a node.
func (b *bed) addPod(revision, node string) {
	b.t.Helper()
	p := &corev1.Pod{ObjectMeta: meta(revision + "-" + node)}
	p.Labels = map[string]string{serving.RevisionLabelKey: revision}
	p.Status.PodIP, p.Status.HostIP = b.nodes[node].ip, b.nodes[node].ip
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	b.save(p)
	b.revisionChanged(revision)
}

func (b *bed) removePod(revision, node string) {
	b.t.Helper()
	b.remove(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: revision + "-" + node}})
	b.revisionChanged(revision)
}

type ingressOption func(*v1alpha1.Ingress)

// addIngress adds a KIngress or gives it other rules.
func (b *bed) addIngress(name string, rules ...v1alpha1.IngressRule) {
	b.t.Helper()
	b.addIngressWith(name, nil, rules...)
}

func (b *bed) addIngressWith(name string, options []ingressOption, rules ...v1alpha1.IngressRule) {
	b.t.Helper()
	ing := &v1alpha1.Ingress{ObjectMeta: meta(name)}
	ing.Annotations = map[string]string{networking.IngressClassAnnotationKey: config.IngressClass}
	ing.Spec.Rules = rules
	for _, o := range options {
		o(ing)
	}
	if old := b.find(name); old != nil {
		ing.Status = old.Status
	}
	b.save(ing)
	b.ingressChanged(name)
}

func (b *bed) removeIngress(name string) {
	b.t.Helper()
	b.remove(&v1alpha1.Ingress{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}})
	b.ingressChanged(name)
}

func (b *bed) ingressChanged(name string) {
	b.put(func(c *changes) { c.ingresses[types.NamespacedName{Namespace: namespace, Name: name}] = true })
}

func (b *bed) find(name string) *v1alpha1.Ingress {
	ing := &v1alpha1.Ingress{}
	if err := b.client.Get(context.Background(), types.NamespacedName{Namespace: namespace, Name: name}, ing); err != nil {
		return nil
	}
	return ing
}

func (b *bed) ingress(name string) *v1alpha1.Ingress {
	b.t.Helper()
	ing := b.find(name)
	if ing == nil {
		b.t.Fatalf("no ingress %s", name)
	}
	return ing
}

func (b *bed) waitReady(names ...string) {
	b.t.Helper()
	for _, name := range names {
		b.waitIngress(name, (*v1alpha1.Ingress).IsReady)
	}
}

// waitIngress waits until a KIngress is as wanted, woken by its changes.
func (b *bed) waitIngress(name string, want func(*v1alpha1.Ingress) bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	w, err := b.client.Watch(ctx, &v1alpha1.IngressList{}, client.InNamespace(namespace))
	if err != nil {
		b.t.Fatal(err)
	}
	defer w.Stop()
	for {
		if want(b.ingress(name)) {
			return
		}
		select {
		case <-w.ResultChan():
		case <-ctx.Done():
			b.t.Fatalf("ingress %s after %v: %+v", name, deadline, b.ingress(name).Status)
		}
	}
}

// until polls what has no event to wait for.
func (b *bed) until(what string, done func() bool) {
	b.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.After(deadline)
	for !done() {
		select {
		case <-tick.C:
		case <-end:
			b.t.Fatalf("waited %v for %s", deadline, what)
		}
	}
}

// waitEndpoints waits until Envoy has the endpoints that follow from the objects
// as they are.
func (b *bed) waitEndpoints() {
	b.t.Helper()
	want := b.endpoints()
	b.until("endpoints", func() bool { return b.srv.Envoys(resourcev3.EndpointType, want).Acked == 1 })
}

// endpoints returns the versions of the endpoints that follow from the objects,
// worked out by another gateway.
func (b *bed) endpoints() map[string]string {
	b.t.Helper()
	src := clusterSource{b.client}
	quiet := func(context.Context, map[types.NamespacedName]bool) {}
	g, err := newGateway(b.cfg, deps{source: src, server: b.srv, notify: quiet, metrics: b.metrics, log: zap.NewNop().Sugar()})
	if err != nil {
		b.t.Fatal(err)
	}
	all, err := src.everything(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	if err := g.absorb(context.Background(), all); err != nil {
		b.t.Fatal(err)
	}
	return g.desired.Endpoints.Versions()
}

// metric returns a counter or a gauge, given as its name and one attribute.
func (b *bed) metric(name string) int64 {
	b.t.Helper()
	var all metricdata.ResourceMetrics
	if err := b.reader.Collect(context.Background(), &all); err != nil {
		b.t.Fatal(err)
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			var points []metricdata.DataPoint[int64]
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				points = data.DataPoints
			case metricdata.Gauge[int64]:
				points = data.DataPoints
			}
			for _, p := range points {
				if name == m.Name+" "+p.Attributes.Encoded(attribute.DefaultEncoder()) {
					return p.Value
				}
			}
		}
	}
	return -1
}

// waitClusters waits until Envoy itself says that it has n clusters for
// revisions.
func (b *bed) waitClusters(n int) {
	b.t.Helper()
	want := fmt.Sprintf("cluster_manager.active_clusters: %d\n", n+2) // and xds and admin
	b.until(want, func() bool {
		return ask(b.t, b.cfg.Envoy.AdminAddress, "admin", "/stats?filter=cluster_manager.active_clusters").body == want
	})
}

// rule returns a rule for one host; visibility is External or Local.
func rule(visibility, host string, paths ...v1alpha1.HTTPIngressPath) v1alpha1.IngressRule {
	v := v1alpha1.IngressVisibilityExternalIP
	if visibility == "Local" {
		v = v1alpha1.IngressVisibilityClusterLocal
	}
	return v1alpha1.IngressRule{Hosts: []string{host}, Visibility: v, HTTP: &v1alpha1.HTTPIngressRuleValue{Paths: paths}}
}

type pathOption func(*v1alpha1.HTTPIngressPath)

func path(options ...pathOption) v1alpha1.HTTPIngressPath {
	p := v1alpha1.HTTPIngressPath{AppendHeaders: map[string]string{"Literal": "100 %ENVIRONMENT(PATH)%"}}
	for _, o := range options {
		o(&p)
	}
	return p
}

// to adds a split to a revision, with what Knative's Route adds to it.
func to(revision string, percent ...int) pathOption {
	return func(p *v1alpha1.HTTPIngressPath) {
		s := v1alpha1.IngressBackendSplit{
			IngressBackend: v1alpha1.IngressBackend{ServiceNamespace: namespace, ServiceName: revision, ServicePort: intstr.FromInt32(80)},
			Percent:        100,
			AppendHeaders: map[string]string{
				activator.RevisionHeaderName:      revision,
				activator.RevisionHeaderNamespace: namespace,
			},
		}
		if len(percent) > 0 {
			s.Percent = percent[0]
		}
		p.Splits = append(p.Splits, s)
	}
}

func tagged(tag string) pathOption {
	return func(p *v1alpha1.HTTPIngressPath) {
		p.Headers = map[string]v1alpha1.HeaderMatch{header.RouteTagKey: {Exact: tag}}
	}
}

func under(path string) pathOption {
	return func(p *v1alpha1.HTTPIngressPath) { p.Path = path }
}

func rewrite(host string) pathOption {
	return func(p *v1alpha1.HTTPIngressPath) { p.RewriteHost = host }
}
