package xds

import (
	"context"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds/server"
	"github.com/wisp-serving/wisp/xds/translate"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/pkg/apis"
)

// TestGatewayWithoutEnvoy runs everything but Envoy: what a KIngress's status says
// before one is there.
func TestGatewayWithoutEnvoy(t *testing.T) {
	b := newBed(t, "127.87.0")
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	b.addIngress("early", rule("External", "early.example.com", path(to("sort-1"))))
	foreign := &v1alpha1.Ingress{ObjectMeta: meta("foreign")}
	foreign.Annotations = map[string]string{networking.IngressClassAnnotationKey: "other"}
	foreign.Spec.Rules = []v1alpha1.IngressRule{rule("External", "early.example.com", path(to("sort-1")))}
	b.save(foreign)
	b.startGateway()

	b.waitCondition("early", v1alpha1.IngressConditionLoadBalancerReady, "NoEnvoy", "no Envoy is connected")

	b.addIngress("late", rule("External", "early.example.com", path(to("sort-1"))))
	b.waitCondition("late", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonConflict, "older ingress default/early")
	b.removeIngress("early")
	b.waitCondition("late", v1alpha1.IngressConditionLoadBalancerReady, "NoEnvoy", "no Envoy")

	b.addIngress("orphan", rule("External", "orphan.example.com", path(to("sort-9"))))
	b.waitCondition("orphan", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonNoBackend, "there is no backend service sort-9")
	b.addRevision("sort-9", translateH2C)
	b.waitCondition("orphan", v1alpha1.IngressConditionLoadBalancerReady, "NoEnvoy", "no Envoy")
	b.removeRevision("sort-9")
	b.waitCondition("orphan", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonNoBackend, "sort-9")

	spaced := path(to("sort-1"))
	spaced.AppendHeaders = map[string]string{"a": "b\nc"}
	b.addIngress("spaced", rule("External", "spaced.example.com", spaced))
	b.waitCondition("spaced", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonInvalid, "virtual host default/spaced/0")

	if got := b.ingress("foreign").Status; got.ObservedGeneration != 0 || len(got.Conditions) > 0 {
		t.Errorf("a KIngress of another class got the status %+v", got)
	}
}

// TestGatewayWithMuteEnvoy connects an Envoy that takes clusters and never says a
// word about them.
func TestGatewayWithMuteEnvoy(t *testing.T) {
	b := newBed(t, "127.88.0")
	b.patience = 300 * time.Millisecond
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-1"))))
	b.startGateway()

	e := b.dial()
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	if _, err := e.stream.Recv(); err != nil {
		t.Fatal(err)
	}
	// Endpoints that move meanwhile don't prolong its time.
	pod := false
	b.until("EnvoySilent", func() bool {
		if pod = !pod; pod {
			b.addPod("sort-1", "node-a")
		} else {
			b.removePod("sort-1", "node-a")
		}
		c := b.ingress("sort").Status.GetCondition(v1alpha1.IngressConditionLoadBalancerReady)
		return c != nil && c.Reason == "EnvoySilent"
	})
	b.waitCondition("sort", v1alpha1.IngressConditionLoadBalancerReady, "EnvoySilent", "does not answer")
	e.hangUp()
	b.waitCondition("sort", v1alpha1.IngressConditionLoadBalancerReady, "NoEnvoy", "no Envoy")
}

// TestGatewayWithRejectingEnvoy plays an Envoy that refuses the routes to sort-2.
func TestGatewayWithRejectingEnvoy(t *testing.T) {
	b := newBed(t, "127.89.0")
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	b.addRevision("sort-2", translateHTTP1)
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-1"))))
	b.startGateway()
	b.dial().answer(func(resp *discoveryv3.DeltaDiscoveryResponse) string {
		if resp.GetTypeUrl() == resourcev3.RouteType && strings.Contains(resp.String(), "sort-2") {
			return "no such thing"
		}
		return ""
	})
	b.waitCondition("sort", v1alpha1.IngressConditionLoadBalancerReady, "ProbeFailed", "Envoy has the configuration")
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-2"))))
	b.waitCondition("sort", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonRejected, "no such thing")
	if got := b.srv.Rejections(); got == 0 {
		t.Error("the rejection was not counted")
	}
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-1"))))
	b.waitCondition("sort", v1alpha1.IngressConditionLoadBalancerReady, "ProbeFailed", "Envoy has the configuration")
}

// TestStopDuringPublish stops the gateway when it has endpoints to publish, again
// and again, since go-control-plane sees the stop in half of the cases.
func TestStopDuringPublish(t *testing.T) {
	b := newBed(t, "127.91.0")
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-1"))))
	g := b.stillGateway(nil)
	b.dial().answer(func(*discoveryv3.DeltaDiscoveryResponse) string { return "" })
	stopped, stop := context.WithCancel(t.Context())
	stop()
	for i := range 20 {
		if i%2 == 0 {
			b.addPod("sort-1", "node-a")
		} else {
			b.removePod("sort-1", "node-a")
		}
		b.until("Envoy", func() bool {
			return b.srv.Envoys(resourcev3.EndpointType, g.published.Endpoints.Versions()).Acked == 1
		})
		if err := g.absorb(t.Context(), changes{services: map[types.NamespacedName]bool{{Namespace: namespace, Name: "sort-1"}: true}}); err != nil {
			t.Fatal(err)
		}
		if err := g.run(stopped); err != nil {
			t.Fatalf("stop %d: %v", i, err)
		}
		if err := g.publish(t.Context(), g.desired); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEnvoyGoneBeforeItWasCounted lets an Envoy come and go while a KIngress is
// read, which must be told that there is none.
func TestEnvoyGoneBeforeItWasCounted(t *testing.T) {
	b := newBed(t, "127.92.0")
	b.addRevision("sort-1", translateHTTP1)
	told := 0
	g := b.stillGateway(func(_ context.Context, keys map[types.NamespacedName]bool) { told += len(keys) })
	connected := func() int { return b.srv.Envoys(resourcev3.RouteType, nil).Connected() }
	e := b.dial()
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	b.until("Envoy", func() bool { return connected() == 1 })
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-1"))))
	if err := g.absorb(t.Context(), changes{ingresses: map[types.NamespacedName]bool{{Namespace: namespace, Name: "sort"}: true}}); err != nil {
		t.Fatal(err)
	}
	e.hangUp()
	b.until("no Envoy", func() bool { return connected() == 0 })
	g.countEnvoys(t.Context())
	if told != 1 {
		t.Errorf("%d KIngresses were told, want 1", told)
	}
}

// stillGateway returns a gateway that is seeded and served, and whose loop the
// test itself takes the place of.
func (b *bed) stillGateway(notify func(context.Context, map[types.NamespacedName]bool)) *gateway {
	b.t.Helper()
	if notify == nil {
		notify = func(context.Context, map[types.NamespacedName]bool) {}
	}
	log := zap.NewNop().Sugar()
	b.srv = server.New(serverConfig(b.cfg), b.metrics, log)
	g, err := newGateway(b.cfg, deps{source: clusterSource{b.client}, server: b.srv, notify: notify, metrics: b.metrics, log: log})
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := g.seed(ctx); err != nil {
		b.t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.srv.Run(ctx) }()
	b.t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			b.t.Errorf("server: %v", err)
		}
	})
	return g
}

// waitCondition waits for a condition that isn't true.
func (b *bed) waitCondition(name string, condition apis.ConditionType, reason, message string) {
	b.t.Helper()
	b.waitIngress(name, func(i *v1alpha1.Ingress) bool {
		for _, c := range i.Status.Conditions {
			if c.Type == condition {
				return !c.IsTrue() && c.Reason == reason && strings.Contains(c.Message, message)
			}
		}
		return false
	})
}

func TestNewGatewayRefusesAddresses(t *testing.T) {
	_, err := newGateway(config.Gateway{Envoy: config.Envoy{HTTPAddress: "127.0.0.1:http", InternalAddress: "127.0.0.1:1"}}, deps{})
	if err == nil || !strings.Contains(err.Error(), "listener external: parse address 127.0.0.1:http") {
		t.Errorf("error is %v", err)
	}
}
