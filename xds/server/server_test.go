package server

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/wisp-serving/wisp/xds/snapshot"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// start runs a Server that has published state, and returns how to stop it.
func start(t *testing.T, s *Server, state snapshot.State) (stop func() error) {
	t.Helper()
	publish(t, s, state)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}

func publish(t *testing.T, s *Server, state snapshot.State) {
	t.Helper()
	snap, err := state.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(t.Context(), snap); err != nil {
		t.Fatal(err)
	}
}

// state has a cluster with endpoints for each name.
func state(t *testing.T, names ...string) snapshot.State {
	t.Helper()
	out := snapshot.State{Clusters: snapshot.Set{}, Endpoints: snapshot.Set{}}
	for _, name := range names {
		c, err := snapshot.NewResource(&clusterv3.Cluster{
			Name:                 name,
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: &corev3.ConfigSource{
				ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		e, err := snapshot.NewResource(&endpointv3.ClusterLoadAssignment{ClusterName: name})
		if err != nil {
			t.Fatal(err)
		}
		out.Clusters[name], out.Endpoints[name] = c, e
	}
	return out
}

// client plays Envoy.
type client struct {
	t      *testing.T
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	close  func()
}

func connect(t *testing.T, socket string) *client {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, stream: stream, close: func() { cancel(); _ = conn.Close() }}
	t.Cleanup(c.close)
	return c
}

func (c *client) send(req *discoveryv3.DeltaDiscoveryRequest) {
	c.t.Helper()
	req.Node = &corev3.Node{Id: "envoy-1"}
	if err := c.stream.Send(req); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) receive() *discoveryv3.DeltaDiscoveryResponse {
	c.t.Helper()
	resp, err := c.stream.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	return resp
}

func (c *client) ack(resp *discoveryv3.DeltaDiscoveryResponse) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()})
}

func (c *client) nack(resp *discoveryv3.DeltaDiscoveryResponse) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce(),
		ErrorDetail: &statuspb.Status{Code: 3, Message: "no such thing"},
	})
}

func names(resp *discoveryv3.DeltaDiscoveryResponse) []string {
	var out []string
	for _, r := range resp.GetResources() {
		out = append(out, r.GetName())
	}
	return out
}

// await waits until the Envoys stand as wanted.
func await(t *testing.T, s *Server, typeURL string, versions map[string]string, want Envoys) {
	t.Helper()
	late := time.After(patience)
	for {
		got := s.Envoys(typeURL, versions)
		if got == want {
			return
		}
		select {
		case <-s.Progress():
		case <-late:
			t.Fatalf("envoys stand at %+v, want %+v", got, want)
		}
	}
}

type nobody struct{}

func (nobody) Sent(string, int)   {}
func (nobody) Rejected(Rejection) {}

func newServer(t *testing.T) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "wisp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return New(Config{Socket: filepath.Join(dir, "x.sock")}, nobody{}, zap.NewNop().Sugar())
}

func TestAcknowledgements(t *testing.T) {
	s := newServer(t)
	first, second := state(t, "a"), state(t, "a", "b")
	start(t, s, first)
	c := connect(t, s.cfg.Socket)

	await(t, s, resourcev3.ClusterType, first.Clusters.Versions(), Envoys{Pending: 1})
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	resp := c.receive()
	await(t, s, resourcev3.ClusterType, first.Clusters.Versions(), Envoys{Pending: 1})
	c.ack(resp)
	await(t, s, resourcev3.ClusterType, first.Clusters.Versions(), Envoys{Acked: 1})
	if diff := cmp.Diff([]string{""}, s.Hosts()); diff != "" {
		t.Errorf("hosts (-want +got):\n%s", diff)
	}

	publish(t, s, second)
	resp = c.receive()
	if diff := cmp.Diff([]string{"b"}, names(resp)); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
	c.nack(resp)
	await(t, s, resourcev3.ClusterType, second.Clusters.Versions(), Envoys{Rejected: 1, Rejection: "no such thing"})
	if nodes := s.Silence(resourcev3.ClusterType, second.Clusters.Versions(), time.Now()); len(nodes) > 0 {
		t.Errorf("%v refused and was made silent", nodes)
	}
	// What it has, it keeps.
	await(t, s, resourcev3.ClusterType, first.Clusters.Versions(), Envoys{Acked: 1})
	if got := s.Rejections(); got != 1 {
		t.Errorf("%d rejections counted, want 1", got)
	}

	publish(t, s, first)
	resp = c.receive()
	if diff := cmp.Diff([]string{"b"}, resp.GetRemovedResources()); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	c.ack(resp)
	await(t, s, resourcev3.ClusterType, map[string]string{"b": snapshot.Absent}, Envoys{Acked: 1})
	await(t, s, resourcev3.ClusterType, map[string]string{"a": snapshot.Absent}, Envoys{Pending: 1})
	await(t, s, resourcev3.ClusterType, second.Clusters.Versions(), Envoys{Pending: 1})

	c.close()
	await(t, s, resourcev3.ClusterType, first.Clusters.Versions(), Envoys{})
}

func TestStateOfTheWorldIsRefused(t *testing.T) {
	s := newServer(t)
	start(t, s, state(t, "a"))
	conn, err := grpc.NewClient("unix:"+s.cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(t.Context(), grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented {
		t.Errorf("error is %v, want that it is unimplemented", err)
	}
}

func TestReconnectingEnvoyIsSentNothingItHas(t *testing.T) {
	s := newServer(t)
	st := state(t, "a", "b")
	start(t, s, st)
	c := connect(t, s.cfg.Socket)
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType, InitialResourceVersions: st.Clusters.Versions()})
	if resp := c.receive(); len(resp.GetResources())+len(resp.GetRemovedResources()) > 0 {
		t.Errorf("sent %v again, removed %v", names(resp), resp.GetRemovedResources())
	}
	await(t, s, resourcev3.ClusterType, st.Clusters.Versions(), Envoys{Acked: 1})
}

func TestRepeatedSubscriptionIsAnswered(t *testing.T) {
	s := newServer(t)
	st := state(t, "a")
	start(t, s, st)
	c := connect(t, s.cfg.Socket)
	subscribe := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.EndpointType, ResourceNamesSubscribe: []string{"a"}}
	for range 2 {
		c.send(subscribe)
		resp := c.receive()
		if diff := cmp.Diff([]string{"a"}, names(resp)); diff != "" {
			t.Fatalf("sent (-want +got):\n%s", diff)
		}
		c.ack(resp)
	}
	await(t, s, resourcev3.EndpointType, map[string]string{"a": ""}, Envoys{Acked: 1})
	unsubscribe := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.EndpointType, ResourceNamesUnsubscribe: []string{"a"}}
	c.send(unsubscribe)
	await(t, s, resourcev3.EndpointType, map[string]string{"a": ""}, Envoys{Pending: 1})

	// An answer that crosses with the end of the subscription brings nothing back.
	c.send(subscribe)
	resp := c.receive()
	c.send(unsubscribe)
	c.ack(resp)
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	c.ack(c.receive()) // so all before it has been read
	await(t, s, resourcev3.ClusterType, st.Clusters.Versions(), Envoys{Acked: 1})
	await(t, s, resourcev3.EndpointType, map[string]string{"a": snapshot.Absent}, Envoys{Acked: 1})
}

func TestSilence(t *testing.T) {
	s := newServer(t)
	st := state(t, "a")
	start(t, s, st)
	c := connect(t, s.cfg.Socket)
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	resp := c.receive()
	want := st.Clusters.Versions()
	if nodes := s.Silence(resourcev3.ClusterType, want, time.Now().Add(-time.Hour)); len(nodes) > 0 {
		t.Errorf("%v was heard lately and made silent", nodes)
	}
	if diff := cmp.Diff([]string{"envoy-1"}, s.Silence(resourcev3.ClusterType, want, time.Now())); diff != "" {
		t.Errorf("silenced (-want +got):\n%s", diff)
	}
	await(t, s, resourcev3.ClusterType, want, Envoys{Silent: 1})
	c.ack(resp)
	await(t, s, resourcev3.ClusterType, want, Envoys{Acked: 1})
}

func TestStopEndsStreams(t *testing.T) {
	s := newServer(t)
	stop := start(t, s, state(t, "a"))
	c := connect(t, s.cfg.Socket)
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	c.receive()
	if err := s.Serving(); err != nil {
		t.Errorf("serving: %v", err)
	}
	if err := stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if got := s.Envoys(resourcev3.ClusterType, nil); got != (Envoys{}) {
		t.Errorf("streams outlive the server: %+v", got)
	}
	if _, err := os.Lstat(s.cfg.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket file: %v, want none", err)
	}
	if err := s.Serving(); err == nil {
		t.Error("serves after the stop")
	}
}

func TestListen(t *testing.T) {
	dir, err := os.MkdirTemp("", "wisp")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "deep", "x.sock")

	ln, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "another process serves it") {
		t.Errorf("second listener: %v", err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = ln.Close()
	if ln, err = listenUnix(path); err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	_ = ln.Close()
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("over a file: %v", err)
	}
}

// TestRefusedResourcesAreSentAgain refuses a response of which Envoy may have
// taken a part.
func TestRefusedResourcesAreSentAgain(t *testing.T) {
	s := newServer(t)
	first, both, good := state(t, "a"), state(t, "a", "b", "bad"), state(t, "a", "b")
	start(t, s, first)
	c := connect(t, s.cfg.Socket)
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	c.ack(c.receive())

	publish(t, s, both)
	c.nack(c.receive())
	await(t, s, resourcev3.ClusterType, both.Clusters.Versions(), Envoys{Rejected: 1, Rejection: "no such thing"})
	// Nothing of it comes again for the sake of another type.
	other := both
	other.Endpoints = snapshot.Set{}
	for name := range both.Clusters {
		e, err := snapshot.NewResource(&endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{}}})
		if err != nil {
			t.Fatal(err)
		}
		other.Endpoints[name] = e
	}
	publish(t, s, other)
	await(t, s, resourcev3.ClusterType, both.Clusters.Versions(), Envoys{Rejected: 1, Rejection: "no such thing"})

	publish(t, s, good)
	await(t, s, resourcev3.ClusterType, good.Clusters.Versions(), Envoys{Pending: 1})
	resp := c.receive()
	if diff := cmp.Diff([]string{"b"}, names(resp)); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"bad"}, resp.GetRemovedResources()); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	c.ack(resp)
	await(t, s, resourcev3.ClusterType, good.Clusters.Versions(), Envoys{Acked: 1})
}

// TestLateRefusalIsAnsweredAtOnce refuses what is outdated by then, so that no
// other publish follows.
func TestLateRefusalIsAnsweredAtOnce(t *testing.T) {
	s := newServer(t)
	start(t, s, state(t, "a", "bad"))
	c := connect(t, s.cfg.Socket)
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	resp := c.receive()
	good := state(t, "a")
	publish(t, s, good)
	c.nack(resp)
	resp = c.receive()
	if diff := cmp.Diff([]string{"a"}, names(resp)); diff != "" {
		t.Errorf("sent (-want +got):\n%s", diff)
	}
	if got := s.Envoys(resourcev3.ClusterType, good.Clusters.Versions()); got != (Envoys{Pending: 1}) {
		t.Errorf("envoys stand at %+v, want one pending", got)
	}
}

// TestParkedWatchEndsWithItsStream leaves a refusal without an answer.
func TestParkedWatchEndsWithItsStream(t *testing.T) {
	s := newServer(t)
	st := state(t, "a")
	start(t, s, st)
	c := connect(t, s.cfg.Socket)
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	c.nack(c.receive())
	await(t, s, resourcev3.ClusterType, st.Clusters.Versions(), Envoys{Rejected: 1, Rejection: "no such thing"})
	c.close()
	await(t, s, resourcev3.ClusterType, st.Clusters.Versions(), Envoys{})
	s.watches.mu.Lock()
	defer s.watches.mu.Unlock()
	if len(s.watches.parked)+len(s.watches.refusals) > 0 {
		t.Errorf("%d parked and %d refusals are left", len(s.watches.parked), len(s.watches.refusals))
	}
}
