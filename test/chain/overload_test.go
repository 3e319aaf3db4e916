package chain

import (
	"context"
	"net/http"
	goruntime "runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wisp-serving/wisp/provider/queueproxy"
	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/test/load"
)

// BenchmarkOverload is what a neighbour sees of a pod to which ten times the requests
// come that it can answer: the 99th percentile of its own answers' times before and
// meanwhile. A run is 2,000 requests of the neighbour's.
func BenchmarkOverload(b *testing.B) {
	neighbour := deploy(b, options{guest: "sample-hello", abi: guest.ABICGI, memory: 1 << 30})
	busy := deploy(b, options{
		guest: "hostile", abi: guest.ABICGI, memory: 1 << 30, beside: neighbour.served, name: "busy",
		settings: queueproxy.Settings{Concurrency: goruntime.GOMAXPROCS(0)},
	})
	ask := func() *http.Request { return neighbour.request(b, http.MethodGet, "/", nil) }
	for b.Loop() {
		before := load.P99(b, ask)
		rate := busy.capacity(b)
		var meanwhile time.Duration
		refused := busy.pour(b, 10*rate, func() { meanwhile = load.P99(b, ask) })
		b.ReportMetric(rate, "busy-req/s")
		b.ReportMetric(refused, "busy-refused/s")
		b.ReportMetric(float64(before.Microseconds()), "p99-before-µs")
		b.ReportMetric(float64(meanwhile.Microseconds()), "p99-during-µs")
		b.ReportMetric(float64(meanwhile)/float64(before), "ratio")
	}
}

// work is what the busy function is asked for: some milliseconds of a core.
const work = "/busy/5"

// capacity returns how many requests a second the function answers.
func (f *function) capacity(b *testing.B) float64 {
	b.Helper()
	const n = 200
	var next atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for range goruntime.GOMAXPROCS(0) {
		all.Go(func() {
			for next.Add(1) <= n {
				f.expect(b, http.MethodGet, work, "", http.StatusOK, "busy")
			}
		})
	}
	all.Wait()
	return n / time.Since(began).Seconds()
}

// pour sends requests at a rate, whether they are answered or not, for as long as
// during takes, and returns how many of them were refused in a second.
func (f *function) pour(b *testing.B, rate float64, during func()) (refused float64) {
	b.Helper()
	// Streams of few connections: the client shouldn't be what is overloaded.
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	var count atomic.Int64
	var all sync.WaitGroup
	all.Go(func() {
		began, sent := time.Now(), 0
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			for due := int(rate * time.Since(began).Seconds()); sent < due; sent++ {
				r := f.request(b, http.MethodGet, work, nil).WithContext(ctx)
				all.Go(func() {
					answer, err := transport.RoundTrip(r)
					if err != nil {
						return // it has ended meanwhile
					}
					answer.Body.Close()
					if answer.StatusCode != http.StatusOK {
						count.Add(1)
					}
				})
			}
			<-tick.C
		}
	})
	began := time.Now()
	during()
	refused = float64(count.Load()) / time.Since(began).Seconds()
	stop()
	all.Wait()
	return refused
}
