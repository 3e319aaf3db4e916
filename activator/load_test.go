package activator

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/zap/zaptest"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/autoscaler/metrics"
	"knative.dev/serving/pkg/autoscaler/statserver"
)

func TestLoadCountsOnce(t *testing.T) {
	began := time.Now()
	tests := []struct {
		name        string
		events      func(*load)
		concurrency float64
		count       float64
	}{
		{"idle is an explicit zero", func(*load) {}, 0, 0},
		{"a request that runs all second", func(l *load) { l.begin(began) }, 1, 1},
		{"one that starts half-way", func(l *load) { l.begin(began.Add(500 * time.Millisecond)) }, 0.5, 1},
		{"what was poked is not reported again", func(l *load) { l.begin(began); l.poke(sortKey, "n") }, 0, 0},
		{"a second one beside the poked one is", func(l *load) { l.begin(began); l.begin(began); l.poke(sortKey, "n") }, 1, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := newLoad(began)
			test.events(l)
			got := l.report(began.Add(time.Second), sortKey, "n").Stat
			if got.AverageConcurrentRequests != test.concurrency || got.RequestCount != test.count {
				t.Errorf("got concurrency %v, count %v, want %v, %v", got.AverageConcurrentRequests, got.RequestCount, test.concurrency, test.count)
			}
		})
	}
}

func TestStatsAreOfWhatTheNodeHolds(t *testing.T) {
	b := start(t)
	if stats := b.Activator.stats(time.Now()); len(stats) != 0 {
		t.Fatalf("got %v, want nothing before anything runs", stats)
	}
	b.Add(sortKey, "pod", 0, nothing)
	stats := b.Activator.stats(time.Now())
	if len(stats) != 1 || stats[0].Key != sortKey || stats[0].Stat.AverageConcurrentRequests != 0 {
		t.Fatalf("got %v, want an explicit zero for the idle pod", stats)
	}
	b.Remove(sortKey, "pod")
	if stats := b.Activator.stats(time.Now()); len(stats) != 0 {
		t.Fatalf("got %v, want nothing once nothing runs", stats)
	}
}

// TestPusherReachesKnativesStatServer sends to the server that Knative's own
// autoscaler uses, through a restart of it.
func TestPusherReachesKnativesStatServer(t *testing.T) {
	log := zaptest.NewLogger(t).Sugar()
	addr := freeAddr(t)
	pusher, err := NewPusher("ws://"+addr, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- pusher.Run(ctx) }()
	for range 2 {
		received := make(chan metrics.StatMessage, 1000)
		server := statserver.New(addr, received, log, nil)
		served := make(chan error, 1)
		go func() { served <- server.ListenAndServe() }()
		waitFor(t, func() bool {
			conn, err := net.Dial("tcp", addr)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
		got := sendUntilReceived(pusher, received)
		if got.Key != sortKey || got.Stat.PodName != "node-a" {
			t.Fatalf("got %+v, want the stat that was sent", got)
		}
		server.Shutdown(time.Second)
		if err := <-served; err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// sendUntilReceived reports as a node does, again and again: what is sent while
// there is no connection is dropped.
func sendUntilReceived(p *Pusher, received <-chan metrics.StatMessage) metrics.StatMessage {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case got := <-received:
			return got
		case <-tick.C:
			p.Report([]metrics.StatMessage{newLoad(time.Now()).poke(sortKey, "node-a")})
		}
	}
}

// TestPusherStopsAtOnce holds for an autoscaler that reads and for one that
// doesn't, whose full buffers block a write.
func TestPusherStopsAtOnce(t *testing.T) {
	for _, reads := range []bool{true, false} {
		t.Run(fmt.Sprintf("reads %v", reads), func(t *testing.T) {
			connected, release := make(chan struct{}), make(chan struct{})
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				conn, err := new(websocket.Upgrader).Upgrade(w, r, nil)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				close(connected)
				for err == nil && reads {
					_, _, err = conn.NextReader()
				}
				<-release
			}))
			defer server.Close()
			defer close(release)
			pusher, err := NewPusher("ws"+strings.TrimPrefix(server.URL, "http"), zaptest.NewLogger(t).Sugar())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- pusher.Run(ctx) }()
			<-connected
			if !reads {
				stats := make([]metrics.StatMessage, 100_000) // more than a socket buffers
				for i := range stats {
					stats[i].Key = types.NamespacedName{Namespace: strings.Repeat("n", 253), Name: "r"}
				}
				pusher.Report(stats)
				waitFor(t, func() bool { return len(pusher.batches) == 0 })
			}
			cancel()
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(writeTimeout - time.Second):
				t.Error("Run still goes on")
			}
		})
	}
}

func TestPusherRefusesWhatIsNoWebsocket(t *testing.T) {
	for _, target := range []string{"http://a:1", "ws://", "::"} {
		if _, err := NewPusher(target, zaptest.NewLogger(t).Sugar()); err == nil {
			t.Errorf("NewPusher(%q): got no error", target)
		}
	}
}
