package e2e

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/wisp-serving/wisp/test/platform"
)

// stillness is how long nothing happens before a measured call, cold or warm: a
// machine that has been idle answers its first request slower, whatever it is.
const stillness = time.Second

// BenchmarkColdRequest calls a function that has no pod, and the same function
// warm, both through Envoy. An iteration takes as long as scaling to zero does,
// so run it for a number of iterations, as in -benchtime=20x.
func BenchmarkColdRequest(b *testing.B) {
	p := platform.Start(b, platform.Options{WithoutRace: true})
	service := createSort(b, p)
	var cold, warm []time.Duration
	for b.Loop() {
		b.StopTimer()
		awaitZero(b, p, service)
		b.StartTimer()
		cold = append(cold, timed(b, func() { expect(b, p, service, numbers, http.StatusOK, sorted) }))
		b.StopTimer()
		awaitReadyPod(b, p, service)
		warm = append(warm, timed(b, func() { expect(b, p, service, numbers, http.StatusOK, sorted) }))
		b.StartTimer()
	}
	for name, samples := range map[string][]time.Duration{"cold": cold, "warm": warm} {
		b.ReportMetric(quantile(samples, 0.5), name+"-p50-µs")
		b.ReportMetric(quantile(samples, 0.99), name+"-p99-µs")
	}
	b.ReportMetric(quantile(cold, 0.5)-quantile(warm, 0.5), "cold-minus-warm-p50-µs")
}

func timed(b *testing.B, f func()) time.Duration {
	b.Helper()
	time.Sleep(stillness)
	began := time.Now()
	f()
	return time.Since(began)
}

// quantile returns the q-quantile of the samples, in microseconds.
func quantile(samples []time.Duration, q float64) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	i := min(int(q*float64(len(sorted))), len(sorted)-1)
	return float64(sorted[i]) / float64(time.Microsecond)
}
