package xds

import (
	"context"
	"sync"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/wisp-serving/wisp/xds/translate"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
)

// fakeEnvoy plays an Envoy that says what a real one can't be made to say. It
// serves no requests.
type fakeEnvoy struct {
	t      testing.TB
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	hangUp func()
}

func (b *bed) dial() *fakeEnvoy {
	b.t.Helper()
	conn, err := grpc.NewClient("unix:"+b.cfg.XDSSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.t.Fatal(err)
	}
	hangUp := sync.OnceFunc(func() { _ = conn.Close() })
	b.t.Cleanup(hangUp)
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(context.Background(), grpc.WaitForReady(true))
	if err != nil {
		b.t.Fatal(err)
	}
	return &fakeEnvoy{t: b.t, stream: stream, hangUp: hangUp}
}

func (e *fakeEnvoy) send(req *discoveryv3.DeltaDiscoveryRequest) {
	e.t.Helper()
	if err := e.stream.Send(req); err != nil {
		e.t.Fatal(err)
	}
}

// answer subscribes to what Envoy subscribes to and answers until the test ends.
// refuse returns why a response is refused, or nothing.
func (e *fakeEnvoy) answer(refuse func(*discoveryv3.DeltaDiscoveryResponse) string) {
	e.t.Helper()
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ListenerType})
	e.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.RouteType, ResourceNamesSubscribe: []string{string(translate.External), string(translate.Secure), string(translate.Internal)}})
	var answering sync.WaitGroup
	answering.Go(func() {
		for {
			resp, err := e.stream.Recv()
			if err != nil || e.reply(resp, refuse(resp)) != nil {
				return
			}
		}
	})
	e.t.Cleanup(func() {
		e.hangUp()
		answering.Wait()
	})
}

func (e *fakeEnvoy) reply(resp *discoveryv3.DeltaDiscoveryResponse, refusal string) error {
	reply := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	if refusal != "" {
		reply.ErrorDetail = &statuspb.Status{Code: int32(codes.InvalidArgument), Message: refusal}
	}
	if err := e.stream.Send(reply); err != nil || resp.GetTypeUrl() != resourcev3.ClusterType {
		return err
	}
	endpoints := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.EndpointType, ResourceNamesUnsubscribe: resp.GetRemovedResources()}
	for _, r := range resp.GetResources() {
		endpoints.ResourceNamesSubscribe = append(endpoints.ResourceNamesSubscribe, r.GetName())
	}
	return e.stream.Send(endpoints)
}
