package activator

import (
	"context"
	"errors"
	"maps"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap/zaptest"
	"knative.dev/serving/pkg/autoscaler/metrics"
	"knative.dev/serving/pkg/autoscaler/statserver"
)

// TestPushersReachEveryAutoscaler pushes to two of Knative's stat servers.
func TestPushersReachEveryAutoscaler(t *testing.T) {
	log := zaptest.NewLogger(t).Sugar()
	var targets []string
	received := make([]chan metrics.StatMessage, 2)
	for i := range received {
		received[i] = make(chan metrics.StatMessage, 1000)
		addr := freeAddr(t)
		server := statserver.New(addr, received[i], log, nil)
		served := make(chan error, 1)
		go func() { served <- server.ListenAndServe() }()
		t.Cleanup(func() {
			server.Shutdown(time.Second)
			<-served
		})
		targets = append(targets, "ws://"+addr)
	}
	pushers, err := NewPushers(targets, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- pushers.Run(ctx) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for len(received[0]) == 0 || len(received[1]) == 0 {
		<-tick.C // what is sent while there is no connection is dropped
		pushers.Report([]metrics.StatMessage{oneRequest()})
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestPushersFollowTheAddresses is a Service whose pods come and go.
func TestPushersFollowTheAddresses(t *testing.T) {
	u, err := url.Parse("ws://autoscaler.wisp-system:9460")
	if err != nil {
		t.Fatal(err)
	}
	var addresses []string
	var failure error
	p := &Pushers{
		targets: []*url.URL{u}, log: zaptest.NewLogger(t).Sugar(), pushers: map[string]*pushing{},
		lookUp: func(context.Context, string) ([]string, error) { return addresses, failure },
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	expect := func(when string, want ...string) {
		t.Helper()
		p.follow(ctx, p.addresses(ctx), &running)
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(p.current()))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	addresses = []string{"127.0.0.250", "::1"}
	expect("at first", "ws://127.0.0.250:9460", "ws://[::1]:9460")
	addresses = []string{"::1", "127.0.0.251"}
	expect("once one was replaced", "ws://127.0.0.251:9460", "ws://[::1]:9460")
	addresses, failure = nil, errors.New("no such host")
	expect("while the name can't be looked up", "ws://127.0.0.251:9460", "ws://[::1]:9460")
	cancel()
	running.Wait()
}

func TestPushersNeedTargets(t *testing.T) {
	for _, targets := range [][]string{nil, {"http://a:1"}} {
		if _, err := NewPushers(targets, zaptest.NewLogger(t).Sugar()); err == nil {
			t.Errorf("NewPushers(%q): got no error", targets)
		}
	}
}
