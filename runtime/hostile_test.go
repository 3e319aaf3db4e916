package runtime_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	goruntime "runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wisp-serving/wisp/runtime"
	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/sandbox"
)

// attack is a guest and what it is sent.
type attack struct {
	module []byte
	body   string
}

// attacks are all that we know a guest may try once it runs.
func attacks(t testing.TB) map[string]attack {
	t.Helper()
	puppet, err := wasmtest.Puppet()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]attack{
		"sleep":      {puppet, `{"args":["sleep"]}`},
		"output":     {puppet, `{"args":["flood"]}`},
		"log":        {puppet, `{"args":["floodlog"]}`},
		"go loop":    {puppet, `{"args":["loop"]}`},
		"goroutines": {puppet, `{"args":["spin"]}`},
	}
	for name, module := range wasmtest.Hostile() {
		all[name] = attack{module, `{}`}
	}
	return all
}

// deploy starts a module as a pod with limits does, without a trial: a loop in a
// start function would fail that.
func deploy(t testing.TB, r *runtime.Runtime, host, name string, module []byte) *sandbox.Sandbox {
	t.Helper()
	s, err := r.Start(t.Context(), push(t, r, host, name, module))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// attackers send n requests at once and return what waits for their answers.
func attackers(ctx context.Context, s *sandbox.Sandbox, body string, n int) (wait func() []int) {
	status := make([]int, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodPost, "/", strings.NewReader(body)))
			status[i] = w.Code
		})
	}
	return func() []int { all.Wait(); return status }
}

// Whatever a guest does: it ends when its requests do, its neighbour is answered
// meanwhile, and what it held is given back. That goroutines are too is checked
// after all tests.
func TestHostileGuests(t *testing.T) {
	r, host := newRuntime(t, t.TempDir()), newRegistry(t)
	neighbour := deploy(t, r, host, "neighbour", wasmtest.Command(wasmtest.Nothing))
	all := attacks(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) {
			s := deploy(t, r, host, name, all[name].module)
			before := openFiles(t)
			ctx, cancel := context.WithCancel(t.Context())
			wait := attackers(ctx, s, all[name].body, 1000)
			for range 20 {
				if w := post(neighbour, `{}`); w.Code != http.StatusOK {
					t.Fatalf("the neighbour got %d %q", w.Code, w.Body)
				}
				goruntime.GC() // which stops the world
			}
			if used := s.Usage().Memory; used > 64<<20 {
				t.Errorf("it holds %d bytes, its limit is 64 MiB", used)
			}
			cancel()
			for _, status := range wait() {
				if status != 499 && status != http.StatusInternalServerError {
					t.Errorf("a request got %d, want 499 for its client's end or 500 for its own", status)
				}
			}
			if used := s.Usage().Memory; used != 0 {
				t.Errorf("%d bytes are charged after the end", used)
			}
			if after := openFiles(t); after > before {
				t.Errorf("%d files are open, %d were", after, before)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// A trial ends too.
func TestStartFunctionThatLoops(t *testing.T) {
	r, host := newRuntime(t, t.TempDir()), newRegistry(t)
	ref := host + "/start:v1"
	if _, err := oci.Push(t.Context(), oci.PushConfig{Reference: ref, Module: wasmtest.Starting(wasmtest.Loop), FileName: "fn.wasm"}); err != nil {
		t.Fatal(err)
	}
	img, err := r.Pull(t.Context(), oci.Request{Reference: ref})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = r.Start(ctx, sandbox.Spec{ID: "x", Module: img.ModuleDigest, ABI: "argv"})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// samples are the neighbour's requests beside an attack. Of 1,000, the 99th
// percentile would be the tenth worst, which two of the machine's own pauses decide.
const samples = 3000

// client measures the neighbour as its users see it: by HTTP, one request after
// another with a pause.
type client struct {
	b   *testing.B
	url string
}

func (c client) p99() time.Duration {
	took := make([]time.Duration, samples)
	for i := range took {
		time.Sleep(time.Millisecond)
		asked := time.Now()
		resp, err := http.Post(c.url, "application/json", strings.NewReader(`{}`))
		if err != nil {
			c.b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		took[i] = time.Since(asked)
		if resp.StatusCode != http.StatusOK {
			c.b.Fatalf("the neighbour got %d", resp.StatusCode)
		}
	}
	return quantile(took, 0.99)
}

func quantile(of []time.Duration, q float64) time.Duration {
	slices.Sort(of)
	return of[int(float64(len(of)-1)*q)]
}

// BenchmarkHostile is what a neighbour sees of a thousand hostile requests at
// once: the 99th percentile of its answers' times before and meanwhile, and what
// the node took for it. The beginning, when all of them come within some
// milliseconds, is part of it.
func BenchmarkHostile(b *testing.B) {
	all := attacks(b)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		b.Run(name, func(b *testing.B) {
			r, host := newRuntime(b, b.TempDir()), newRegistry(b)
			// As a node does, and after the runtime has seen how many cores there are.
			defer runtime.SetUpProcess()()
			neighbour := deploy(b, r, host, "neighbour", wasmtest.Command(wasmtest.Nothing))
			srv := httptest.NewServer(neighbour)
			defer srv.Close()
			c := client{b, srv.URL}
			s := deploy(b, r, host, name, all[name].module)
			for b.Loop() {
				before := c.p99()
				pauses := readPauses()
				ctx, cancel := context.WithCancel(b.Context())
				var waits []func() []int
				for range 10 { // again and again, for those that end by themselves
					waits = append(waits, attackers(ctx, s, all[name].body, 100))
				}
				during := c.p99()
				b.ReportMetric(float64(resident(b))/(1<<20), "RSS-MiB")
				cancel()
				for _, wait := range waits {
					wait()
				}
				b.ReportMetric(float64(before.Microseconds()), "p99-before-µs")
				b.ReportMetric(float64(during.Microseconds()), "p99-during-µs")
				b.ReportMetric(float64(during)/float64(before), "ratio")
				b.ReportMetric(longest(pauses, readPauses())*1e3, "pause-ms")
			}
		})
	}
}

func readPauses() *metrics.Float64Histogram {
	sample := []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}
	metrics.Read(sample)
	return sample[0].Value.Float64Histogram()
}

// longest returns the longest pause of the collector between two readings, in
// seconds, rounded up to the histogram's next step.
func longest(before, after *metrics.Float64Histogram) float64 {
	for i := len(after.Counts) - 1; i >= 0; i-- {
		if after.Counts[i] > before.Counts[i] {
			return after.Buckets[i+1]
		}
	}
	return 0
}

func resident(b *testing.B) int {
	var size, pages int
	text, err := os.ReadFile("/proc/self/statm")
	if err == nil {
		_, err = fmt.Sscan(string(text), &size, &pages)
	}
	if err != nil {
		b.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// BenchmarkDeadline is how much later than its deadline a busy guest ends, while
// as many run as there are cores.
func BenchmarkDeadline(b *testing.B) {
	for _, name := range []string{"loop", "fib", "fill", "memory bomb"} {
		b.Run(name, func(b *testing.B) {
			r, host := newRuntime(b, b.TempDir()), newRegistry(b)
			s := deploy(b, r, host, name, wasmtest.Hostile()[name])
			var mu sync.Mutex
			var late []time.Duration
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					deadline := time.Now().Add(5 * time.Millisecond)
					ctx, cancel := context.WithDeadline(b.Context(), deadline)
					post(withContext(ctx, s), `{}`)
					mu.Lock()
					late = append(late, time.Since(deadline))
					mu.Unlock()
					cancel()
				}
			})
			b.ReportMetric(float64(quantile(late, 0.99).Microseconds()), "p99-late-µs")
		})
	}
}

func withContext(ctx context.Context, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r.WithContext(ctx)) })
}
