package sink

import (
	"context"
	"errors"
	"math"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gorilla/websocket"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/autoscaler/metrics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type got struct {
	Key  types.NamespacedName
	Stat metrics.Stat
}

// serve starts a sink; the stats that it passes on arrive on the channel. The
// test ends only after the sink has.
func serve(t *testing.T) (url string, stats <-chan got, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ch := make(chan got, 16)
	s := New(func(key types.NamespacedName, s metrics.Stat) { ch <- got{key, s} }, zap.NewNop().Sugar())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	ended := false
	stop = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve = %v, want nil", err)
		}
	}
	t.Cleanup(stop)
	return "ws://" + ln.Addr().String(), ch, stop
}

func dial(t *testing.T, url string) *websocket.Conn {
	t.Helper()
	conn, resp, err := websocket.DefaultDialer.Dial(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func send(t *testing.T, conn *websocket.Conn, stats ...metrics.StatMessage) {
	t.Helper()
	batch := metrics.ToWireStatMessages(stats)
	msg, err := batch.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.WriteMessage(websocket.BinaryMessage, msg); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, stats <-chan got) got {
	t.Helper()
	select {
	case g := <-stats:
		return g
	case <-time.After(10 * time.Second):
		t.Fatal("no stat arrived")
		return got{}
	}
}

func TestStatsArrive(t *testing.T) {
	url, stats, _ := serve(t)
	conn := dial(t, url+"/any/path")
	sort := types.NamespacedName{Namespace: "default", Name: "sort-00001"}
	zero := metrics.Stat{PodName: "wisp-0"}
	busy := metrics.Stat{PodName: "wisp-0", AverageConcurrentRequests: 1.5, RequestCount: 3}
	send(t, conn, metrics.StatMessage{Key: sort, Stat: zero}, metrics.StatMessage{Key: sort, Stat: busy})
	for _, want := range []metrics.Stat{zero, busy} {
		if diff := cmp.Diff(got{sort, want}, receive(t, stats)); diff != "" {
			t.Errorf("stat (-want +got):\n%s", diff)
		}
	}
}

func TestStatsThatMakeNoSenseAreDropped(t *testing.T) {
	url, stats, _ := serve(t)
	conn := dial(t, url)
	key := types.NamespacedName{Namespace: "default", Name: "r"}
	bad := []metrics.Stat{
		{PodName: "n", AverageConcurrentRequests: math.NaN()},
		{PodName: "n", RequestCount: math.Inf(1)},
		{PodName: "n", AverageConcurrentRequests: -1},
		{PodName: "n", ProxiedRequestCount: 1e300},
		{PodName: ""},
		{PodName: string(make([]byte, maxName+1))},
	}
	for _, s := range bad {
		send(t, conn, metrics.StatMessage{Key: key, Stat: s})
	}
	good := metrics.Stat{PodName: "n"}
	send(t, conn, metrics.StatMessage{Key: key, Stat: good})
	if diff := cmp.Diff(got{key, good}, receive(t, stats)); diff != "" {
		t.Errorf("first stat that was passed on (-want +got):\n%s", diff)
	}
}

func TestBadMessagesEndTheirConnectionOnly(t *testing.T) {
	tests := []struct {
		name string
		kind int
		msg  []byte
		want int
	}{
		{"not protobuf", websocket.BinaryMessage, []byte{0x0a, 0xff}, websocket.CloseInvalidFramePayloadData},
		{"text", websocket.TextMessage, []byte("hello"), websocket.CloseUnsupportedData},
		{"too long", websocket.BinaryMessage, make([]byte, MaxMessage+1), websocket.CloseMessageTooBig},
	}
	url, stats, _ := serve(t)
	other := dial(t, url)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn := dial(t, url)
			if err := conn.WriteMessage(tt.kind, tt.msg); err != nil {
				t.Fatal(err)
			}
			if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, tt.want) {
				t.Errorf("connection ended with %v, want close code %d", err, tt.want)
			}
			send(t, other, metrics.StatMessage{Stat: metrics.Stat{PodName: "n"}})
			receive(t, stats)
		})
	}
}

func TestPlainHTTPIsRefused(t *testing.T) {
	url, _, _ := serve(t)
	resp, err := http.Get("http" + url[len("ws"):])
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("status = %d, want 400", resp.StatusCode)
	}
}

func TestStopSendsPeersAway(t *testing.T) {
	url, stats, stop := serve(t)
	conn := dial(t, url)
	send(t, conn, metrics.StatMessage{Stat: metrics.Stat{PodName: "n"}})
	receive(t, stats)
	stop()
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseServiceRestart) {
		t.Errorf("connection ended with %v, want close code 1012", err)
	}
}

func TestServeReturnsWhyItCouldNot(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	s := New(func(types.NamespacedName, metrics.Stat) {}, zap.NewNop().Sugar())
	if err := s.Serve(context.Background(), ln); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve = %v, want %v", err, net.ErrClosed)
	}
}

func FuzzPass(f *testing.F) {
	batch := metrics.ToWireStatMessages([]metrics.StatMessage{{
		Key:  types.NamespacedName{Namespace: "default", Name: "sort-00001"},
		Stat: metrics.Stat{PodName: "wisp-0", AverageConcurrentRequests: 1},
	}})
	msg, err := batch.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(msg)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, msg []byte) {
		s := New(func(_ types.NamespacedName, s metrics.Stat) {
			if !sensible(&s) {
				t.Errorf("passed on %+v", s)
			}
		}, zap.NewNop().Sugar())
		_ = s.pass(msg)
	})
}

func TestPlainRequestsKeepNoConnection(t *testing.T) {
	url, _, _ := serve(t)
	resp, err := http.Get("http" + strings.TrimPrefix(url, "ws"))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest || !resp.Close {
		t.Errorf("status %d, closing %t, want 400 and true", resp.StatusCode, resp.Close)
	}
}
