package xds

import (
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds/translate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
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
	b.waitCondition("orphan", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonNoBackend, "backend service sort-9 has no Wisp revision")
	b.addRevision("sort-9", translateH2C)
	b.waitCondition("orphan", v1alpha1.IngressConditionLoadBalancerReady, "NoEnvoy", "no Envoy")
	b.removeRevision("sort-9")
	b.waitCondition("orphan", v1alpha1.IngressConditionNetworkConfigured, translate.ReasonNoBackend, "sort-9")

	spaced := path(to("sort-1"))
	spaced.AppendHeaders = map[string]string{"a\nb": "c"}
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
	b.patience = 50 * time.Millisecond
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-1"))))
	b.startGateway()

	conn, err := grpc.NewClient("unix:"+b.cfg.XDSSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context(), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	b.waitCondition("sort", v1alpha1.IngressConditionLoadBalancerReady, "EnvoySilent", "does not answer")
	_ = conn.Close()
	b.waitCondition("sort", v1alpha1.IngressConditionLoadBalancerReady, "NoEnvoy", "no Envoy")
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
	_, err := newGateway(config.Envoy{HTTPAddress: "127.0.0.1:http", InternalAddress: "127.0.0.1:1"}, clusterSource{}, nil, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "listener external: parse address 127.0.0.1:http") {
		t.Errorf("error is %v", err)
	}
}
