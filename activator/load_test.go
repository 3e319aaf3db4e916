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
	type want struct{ concurrency, proxied, count, proxiedCount float64 }
	tests := []struct {
		name   string
		events func(*load)
		want   want
	}{
		{"idle is an explicit zero", func(*load) {}, want{}},
		{"a request that runs all second", func(l *load) { l.begin(began, false) }, want{concurrency: 1, count: 1}},
		{"one that starts half-way", func(l *load) { l.begin(began.Add(500*time.Millisecond), false) }, want{concurrency: 0.5, count: 1}},
		{"what was poked is not reported again", func(l *load) { l.begin(began, false); l.poke(sortKey, "n") }, want{}},
		{"a second one beside the poked one is", func(l *load) { l.begin(began, false); l.begin(began, false); l.poke(sortKey, "n") }, want{concurrency: 1, count: 1}},
		{"what another node sent is that node's", func(l *load) { l.begin(began, true) }, want{1, 1, 1, 1}},
		{"beside what is ours", func(l *load) { l.begin(began, true); l.begin(began, false); l.poke(sortKey, "n") }, want{1, 1, 1, 1}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l := newLoad(began)
			test.events(l)
			stat := l.report(began.Add(time.Second), sortKey, "n").Stat
			got := want{stat.AverageConcurrentRequests, stat.AverageProxiedConcurrentRequests, stat.RequestCount, stat.ProxiedRequestCount}
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestPokeIsSaidOnceAndOnlyOfOwnRequests(t *testing.T) {
	l := newLoad(time.Now())
	l.begin(time.Now(), true)
	if _, ok := l.poke(sortKey, "n"); ok {
		t.Error("poked for a request that another node has sent, and tells")
	}
	l.begin(time.Now(), false)
	if _, ok := l.poke(sortKey, "n"); !ok {
		t.Error("not poked for an own request")
	}
	if _, ok := l.poke(sortKey, "n"); ok {
		t.Error("poked twice within a second")
	}
	l.report(time.Now(), sortKey, "n")
	if _, ok := l.poke(sortKey, "n"); !ok {
		t.Error("not poked again after a report")
	}
}

func TestDemandLasts(t *testing.T) {
	const after = 3 * time.Second
	tests := []struct {
		name   string
		called string // a letter for each second: c for called, - for not, h for hurry and called
		want   string // y where demand has lasted
	}{
		{"one call", "c---", "nnnn"},
		{"calls that go on", "ccccc", "nnnyy"},
		{"a pause starts anew", "ccc-cccc", "nnnnnnny"},
		{"somebody waits for a Pod", "hcc-c", "yyynn"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var d demand
			now, got := time.Now(), ""
			for _, second := range test.called {
				now = now.Add(time.Second)
				if second == 'h' {
					d.hurry()
				}
				if d.look(now, second != '-', after) {
					got += "y"
				} else {
					got += "n"
				}
			}
			if got != test.want {
				t.Errorf("calls %s: lasted %s, want %s", test.called, got, test.want)
			}
		})
	}
}

func TestStatsAreOfWhatTheNodeHolds(t *testing.T) {
	b := start(t)
	if stats, _ := b.Activator.stats(time.Now()); len(stats) != 0 {
		t.Fatalf("got %v, want nothing before anything runs", stats)
	}
	b.Add(sortKey, "pod", 0, nothing)
	stats, _ := b.Activator.stats(time.Now())
	if len(stats) != 1 || stats[0].Key != sortKey || stats[0].Stat.AverageConcurrentRequests != 0 {
		t.Fatalf("got %v, want an explicit zero for the idle pod", stats)
	}
	b.Remove(sortKey, "pod")
	if stats, _ := b.Activator.stats(time.Now()); len(stats) != 0 {
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

// oneRequest is the stat of a first request.
func oneRequest() metrics.StatMessage {
	l := newLoad(time.Now())
	l.begin(time.Now(), false)
	stat, _ := l.poke(sortKey, "node-a")
	return stat
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
			p.Report([]metrics.StatMessage{oneRequest()})
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
