// Package load measures a server under a number of connections, for benchmarks.
package load

import (
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// P99 returns the 99th percentile of the times of a thousand requests, one after the
// other, a millisecond apart.
func P99(b *testing.B, request func() *http.Request) time.Duration {
	b.Helper()
	transport := &http.Transport{DisableCompression: true}
	defer transport.CloseIdleConnections()
	took := make([]time.Duration, 1000)
	for i := range took {
		time.Sleep(time.Millisecond)
		took[i] = one(b, transport, request())
	}
	slices.Sort(took)
	return took[len(took)*99/100]
}

// one sends a request, which must be answered 200, and returns how long that took.
func one(b *testing.B, transport http.RoundTripper, r *http.Request) time.Duration {
	began := time.Now()
	answer, err := transport.RoundTrip(r)
	if err != nil {
		b.Error(err)
		return 0
	}
	_, _ = io.Copy(io.Discard, answer.Body)
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		b.Error(answer.Status)
	}
	return time.Since(began)
}

// Run sends b.N requests over conns connections, reports how long they took, and
// returns how many there were in a second.
func Run(b *testing.B, conns int, request func() *http.Request) float64 {
	b.ReportAllocs()
	transport := &http.Transport{MaxIdleConnsPerHost: conns, DisableCompression: true}
	defer transport.CloseIdleConnections()
	one(b, transport, request())
	took := make([]time.Duration, b.N)
	var next atomic.Int64
	b.ResetTimer()
	var all sync.WaitGroup
	for range conns {
		all.Go(func() {
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				took[i] = one(b, transport, request())
			}
		})
	}
	all.Wait()
	b.StopTimer()
	slices.Sort(took)
	rate := float64(b.N) / b.Elapsed().Seconds()
	b.ReportMetric(rate, "req/s")
	b.ReportMetric(float64(took[b.N/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[b.N*99/100].Microseconds()), "p99-µs")
	return rate
}
