package chain

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wisp-serving/wisp/runtime/guest"
)

// BenchmarkNode is a request to the node, without an Envoy before it, by each way
// of running a guest and by a native Go handler in a guest's place, over 1, 16 and
// 64 connections: requests a second, that as a ratio of the native one's, and times.
func BenchmarkNode(b *testing.B) {
	native := map[int]float64{}
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello\n") })
	for _, kind := range []struct {
		name, method, path, body string
		options                  options
	}{
		{"native", http.MethodGet, "/", "", options{native: hello}},
		{"server-go", http.MethodGet, "/hello", "", options{guest: "echo", abi: guest.ABIServer}},
		{"cgi-go", http.MethodGet, "/deaf", "", options{guest: "cgi", abi: guest.ABICGI, memory: 1 << 30}},
		{"cgi-c", http.MethodGet, "/", "", options{guest: "sample-hello", abi: guest.ABICGI, memory: 1 << 30}},
		{"argv-c-sort", http.MethodPost, "/", `{"args":["3","1","2"]}`, options{guest: "sample-sort", abi: guest.ABIArgv, memory: 1 << 30}},
	} {
		b.Run(kind.name, func(b *testing.B) {
			f := deploy(b, kind.options)
			for _, conns := range []int{1, 16, 64} {
				b.Run(fmt.Sprint("conns-", conns), func(b *testing.B) {
					rate := load(b, conns, func() *http.Request {
						return f.request(b, kind.method, kind.path, strings.NewReader(kind.body))
					})
					if kind.name == "native" {
						native[conns] = rate
					}
					b.ReportMetric(rate/native[conns], "×native")
				})
			}
		})
	}
}

// load sends b.N requests over conns connections, reports how long they took, and
// returns how many there were in a second.
func load(b *testing.B, conns int, request func() *http.Request) float64 {
	b.ReportAllocs()
	transport := &http.Transport{MaxIdleConnsPerHost: conns, DisableCompression: true}
	defer transport.CloseIdleConnections()
	one := func() {
		answer, err := transport.RoundTrip(request())
		if err != nil {
			b.Error(err)
			return
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			b.Error(answer.Status)
		}
	}
	one()
	took := make([]time.Duration, b.N)
	var next atomic.Int64
	b.ResetTimer()
	var all sync.WaitGroup
	for range conns {
		all.Go(func() {
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				began := time.Now()
				one()
				took[i] = time.Since(began)
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
