package xds

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wisp-serving/wisp/test/envoytest"
)

// BenchmarkChurn measures requests through Envoy, first alone, then while 50 services
// a second change: every other change is of routes, the rest are of endpoints. The
// service that is called isn't among them.
func BenchmarkChurn(b *testing.B) {
	var quiet float64 // p99 of the first
	for _, perSecond := range []int{0, 50} {
		b.Run(fmt.Sprintf("changes=%d/s", perSecond), func(b *testing.B) {
			p99 := benchmarkChurn(b, perSecond)
			if perSecond == 0 {
				quiet = p99
			} else if quiet > 0 {
				b.ReportMetric(p99/quiet, "p99-ratio")
			}
		})
	}
}

func benchmarkChurn(b *testing.B, perSecond int) (p99 float64) {
	const services, clients = 200, 8
	bed := newBed(b, "127.111.0")
	bed.cfg.Envoy.AccessLog = false
	bed.addNode("node-a")
	bed.addNode("node-b")
	for i := range services {
		bed.addTwoRevisions(i)
	}
	bed.addRevision("called-1", translateHTTP1)
	bed.addIngress("called", rule("External", "called.example.com", path(to("called-1"))))
	bed.startGateway()
	envoytest.Start(b, bed.cfg)
	bed.waitReady("called")

	ctx, stop := context.WithCancel(context.Background())
	var changing sync.WaitGroup
	if perSecond > 0 {
		changing.Go(func() { bed.churn(ctx, services, time.Second/time.Duration(perSecond)) })
	}
	took := make([]time.Duration, b.N)
	var next atomic.Int64
	var asking sync.WaitGroup
	b.ResetTimer()
	for range clients {
		asking.Go(func() {
			c := &http.Client{Transport: &http.Transport{}}
			defer c.CloseIdleConnections()
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				start := time.Now()
				if a, err := request(ctx, c, bed.cfg.Envoy.HTTPAddress, "called.example.com", "/"); err != nil || a.status != http.StatusOK {
					b.Errorf("request: %d, %v", a.status, err)
				}
				took[i] = time.Since(start)
			}
		})
	}
	asking.Wait()
	b.StopTimer()
	stop()
	changing.Wait()
	report(b, took)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
	return float64(took[len(took)*99/100].Microseconds())
}

// addTwoRevisions adds a service with two revisions, whose KIngress leads to the first.
func (b *bed) addTwoRevisions(i int) {
	b.t.Helper()
	name := fmt.Sprintf("svc-%d", i)
	b.addRevision(name+"-1", translateHTTP1)
	b.addRevision(name+"-2", translateHTTP1)
	b.addIngress(name, rule("External", name+".example.com", path(to(name+"-1"))))
}

// churn changes one service after the other until ctx ends.
func (b *bed) churn(ctx context.Context, services int, pause time.Duration) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		name, round := fmt.Sprintf("svc-%d", n%services), n/services
		switch {
		case n%2 == 0: // to the other revision
			b.addIngress(name, rule("External", name+".example.com", path(to(fmt.Sprintf("%s-%d", name, 2-round%2)))))
		case round%2 == 0:
			b.addPod(name+"-1", "node-a")
		default:
			b.removePod(name+"-1", "node-a")
		}
	}
}

// held returns the bytes of live objects.
func held() int64 {
	runtime.GC()
	runtime.GC() // what finalizers let go of
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
