package activator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"
	"k8s.io/apimachinery/pkg/types"
	netheader "knative.dev/networking/pkg/http/header"
	knativeactivator "knative.dev/serving/pkg/activator"
	"knative.dev/serving/pkg/autoscaler/metrics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var sortKey = types.NamespacedName{Namespace: "default", Name: "sort-00001"}

// revisionSet is a fixed set of revisions.
type revisionSet map[types.NamespacedName]Revision

func (s revisionSet) Get(key types.NamespacedName) (Revision, bool) {
	r, ok := s[key]
	return r, ok
}

// bench is an Activator that runs, with what it called recorded.
type bench struct {
	*Activator
	url    string
	starts chan Revision
	stats  chan []metrics.StatMessage
}

type option func(*Config)

func start(t *testing.T, options ...option) *bench {
	t.Helper()
	b := &bench{
		url:    "http://" + freeAddr(t),
		starts: make(chan Revision, 100),
		stats:  make(chan []metrics.StatMessage, 100),
	}
	cfg := Config{
		Addr:         strings.TrimPrefix(b.url, "http://"),
		NodeName:     "node-a",
		Revisions:    revisionSet{sortKey: {NamespacedName: sortKey, UID: "u1", Timeout: 10 * time.Second}},
		StartEarly:   func(_ context.Context, r Revision) error { b.starts <- r; return errors.New("not admitted") },
		Report:       func(s []metrics.StatMessage) { b.stats <- s },
		QueueTimeout: 10 * time.Second,
		DrainTimeout: 10 * time.Second,
		Log:          zaptest.NewLogger(t).Sugar(),
	}
	for _, o := range options {
		o(&cfg)
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.Activator = a
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
	})
	select {
	case <-a.Ready():
	case err := <-ended:
		ended <- err
		t.FailNow()
	}
	return b
}

func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func (b *bench) request(t *testing.T, headers ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url, strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(knativeactivator.RevisionHeaderNamespace, sortKey.Namespace)
	r.Header.Set(knativeactivator.RevisionHeaderName, sortKey.Name)
	for i := 0; i < len(headers); i += 2 {
		if headers[i+1] == "" {
			r.Header.Del(headers[i])
		} else {
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	return r
}

func do(t *testing.T, r *http.Request) (int, string, http.Header) {
	t.Helper()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(body)), resp.Header
}

func TestRequestReachesTheFunctionWithoutKnativesHeaders(t *testing.T) {
	b := start(t)
	b.Add(sortKey, "pod", 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{
			knativeactivator.RevisionHeaderNamespace, knativeactivator.RevisionHeaderName,
			netheader.RouteTagKey, netheader.DefaultRouteKey, netheader.HashKey,
		} {
			if v := r.Header.Get(name); v != "" {
				t.Errorf("the function sees %s: %s", name, v)
			}
		}
		if r.Header.Get("X-Own") != "kept" {
			t.Error("the function does not see the client's own header")
		}
		io.Copy(w, r.Body)
	}))
	status, body, _ := do(t, b.request(t, netheader.ProxyKey, "activator", netheader.RouteTagKey, "v1",
		netheader.DefaultRouteKey, "true", netheader.HashKey, "x", "X-Own", "kept"))
	if status != http.StatusOK || body != "body" {
		t.Fatalf("got %d %q, want 200 with the body echoed", status, body)
	}
}

func TestRefusals(t *testing.T) {
	b := start(t)
	tests := []struct {
		name    string
		headers []string
		status  int
		want    string
	}{
		{"no identity", []string{knativeactivator.RevisionHeaderName, ""}, http.StatusNotFound, "names no revision"},
		{"unknown revision is named", []string{knativeactivator.RevisionHeaderName, "gone"}, http.StatusNotFound, "revision default/gone does not exist"},
		{"probe without hash", []string{netheader.ProbeKey, "probe"}, http.StatusBadRequest, "K-Network-Hash"},
		{"unknown probe", []string{netheader.ProbeKey, "what"}, http.StatusBadRequest, "K-Network-Probe must be probe"},
		{"probe for a pod", []string{netheader.ProbeKey, "queue"}, http.StatusServiceUnavailable, "no pod of revision default/sort-00001 is ready here"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			status, body, _ := do(t, b.request(t, test.headers...))
			if status != test.status || !strings.Contains(body, test.want) {
				t.Errorf("got %d %q, want %d with %q", status, body, test.status, test.want)
			}
		})
	}
}

func TestProbeEchoesTheHashAndStartsNothing(t *testing.T) {
	b := start(t)
	status, _, header := do(t, b.request(t, netheader.ProbeKey, netheader.ProbeValue, netheader.HashKey, "h1"))
	if status != http.StatusOK || header.Get(netheader.HashKey) != "h1" {
		t.Fatalf("got %d with hash %q, want 200 with h1", status, header.Get(netheader.HashKey))
	}
	if stats, _ := b.Activator.stats(time.Now()); len(stats) != 0 {
		t.Errorf("the probe was counted: %v", stats)
	}
	select {
	case r := <-b.starts:
		t.Errorf("the probe started %s", r)
	default:
	}
}

func TestProbeForAPod(t *testing.T) {
	b := start(t)
	b.Add(sortKey, "pod", 0, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the probe reached the function") }))
	if status, body, _ := do(t, b.request(t, netheader.ProbeKey, "queue")); status != http.StatusOK || body != "queue" {
		t.Errorf("got %d %q, want 200 queue", status, body)
	}
}

// TestColdRequest shows that a request for a revision without targets starts
// its function, tells the autoscaler at once, and is answered by what started.
func TestColdRequest(t *testing.T) {
	var b *bench
	b = start(t, func(c *Config) {
		c.StartEarly = func(_ context.Context, r Revision) error {
			b.Add(r.NamespacedName, "early", 0, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				io.WriteString(w, "started")
			}))
			return nil
		}
	})
	status, body, _ := do(t, b.request(t))
	if status != http.StatusOK || body != "started" {
		t.Fatalf("got %d %q, want 200 from the started function", status, body)
	}
	poke := <-b.stats
	if len(poke) != 1 || poke[0].Key != sortKey || poke[0].Stat.AverageConcurrentRequests != 1 || poke[0].Stat.PodName != "node-a" {
		t.Errorf("got first stat %+v, want one request for %s from node-a", poke, sortKey)
	}
}

// TestColdBurstStartsOnce shows that requests that come together share a start.
func TestColdBurstStartsOnce(t *testing.T) {
	const burst = 50
	release := make(chan struct{})
	var b *bench
	b = start(t, func(c *Config) {
		c.StartEarly = func(_ context.Context, r Revision) error {
			b.starts <- r
			<-release
			b.Add(r.NamespacedName, "early", 1, nothing)
			return nil
		}
	})
	var all sync.WaitGroup
	for range burst {
		all.Go(func() {
			if status, body, _ := do(t, b.request(t)); status != http.StatusOK {
				t.Errorf("got %d %q, want 200", status, body)
			}
		})
	}
	waitFor(t, func() bool { return b.entry(sortKey).slots.occupancy().waiting == burst })
	close(release)
	all.Wait()
	if n := len(b.starts); n != 1 {
		t.Errorf("got %d starts, want 1", n)
	}
}

// waitFor looks until ok holds, for what other goroutines bring about and
// nothing signals. A condition that never holds ends by the test's own timeout.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for !ok() {
		runtime.Gosched()
	}
}

func TestRequestWithoutEarlyStartWaitsForThePod(t *testing.T) {
	b := start(t)
	answer := make(chan int, 1)
	go func() {
		status, _, _ := do(t, b.request(t))
		answer <- status
	}()
	<-b.starts // refused: "not admitted"
	b.Add(sortKey, "pod", 0, nothing)
	if status := <-answer; status != http.StatusOK {
		t.Fatalf("got %d, want 200 from the pod", status)
	}
}

// TestRequestStartsTheFunctionAgainWhenItsTargetGoes shows that who waits in line
// isn't left there when the last target, busy until then, is removed.
func TestRequestStartsTheFunctionAgainWhenItsTargetGoes(t *testing.T) {
	var b *bench
	b = start(t, func(c *Config) {
		c.StartEarly = func(_ context.Context, r Revision) error {
			b.Add(r.NamespacedName, "early", 1, nothing)
			return nil
		}
	})
	inside, release := make(chan struct{}), make(chan struct{})
	b.Add(sortKey, "pod", 1, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(inside)
		<-release
	}))
	answers := make(chan int, 2)
	send := func() {
		status, _, _ := do(t, b.request(t))
		answers <- status
	}
	go send()
	<-inside
	go send()
	waitFor(t, func() bool { return b.entry(sortKey).slots.occupancy().waiting == 1 })
	b.Remove(sortKey, "pod")
	if status := <-answers; status != http.StatusOK {
		t.Errorf("got %d for the request in line, want 200 from a new start", status)
	}
	close(release)
	<-answers
}

func TestRequestThatNobodyServesGets503(t *testing.T) {
	b := start(t, func(c *Config) { c.QueueTimeout = 10 * time.Millisecond })
	status, body, _ := do(t, b.request(t))
	if status != http.StatusServiceUnavailable || !strings.Contains(body, "default/sort-00001 had no instance ready in time") {
		t.Fatalf("got %d %q, want 503 that names the revision", status, body)
	}
}

func TestRevisionTimeoutReachesTheFunction(t *testing.T) {
	b := start(t, func(c *Config) {
		c.Revisions = revisionSet{sortKey: {NamespacedName: sortKey, Timeout: 10 * time.Millisecond}}
	})
	b.Add(sortKey, "pod", 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		if errors.Is(r.Context().Err(), context.DeadlineExceeded) {
			w.WriteHeader(http.StatusGatewayTimeout)
		}
	}))
	if status, _, _ := do(t, b.request(t)); status != http.StatusGatewayTimeout {
		t.Fatalf("got %d, want the function to see the deadline", status)
	}
}

func TestPanickingFunctionGivesItsSlotBack(t *testing.T) {
	b := start(t)
	calls := 0
	b.Add(sortKey, "pod", 1, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if calls++; calls == 1 {
			panic(http.ErrAbortHandler)
		}
	}))
	if resp, err := http.DefaultClient.Do(b.request(t)); err == nil {
		resp.Body.Close()
		t.Fatalf("got %d from a function that aborted, want a cut connection", resp.StatusCode)
	}
	if status, _, _ := do(t, b.request(t)); status != http.StatusOK {
		t.Fatalf("got %d, want the slot to be free again", status)
	}
}

// TestStalledClientGivesItsSlotBack sends a request whose body never comes, and
// one whose answer is never read.
func TestStalledClientGivesItsSlotBack(t *testing.T) {
	tests := map[string]http.HandlerFunc{
		"Content-Length: 10": func(_ http.ResponseWriter, r *http.Request) { _, _ = io.ReadAll(r.Body) },
		"Content-Length: 0":  func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 64<<20)) },
	}
	for header, h := range tests {
		t.Run(header, func(t *testing.T) {
			b := start(t, func(c *Config) {
				c.Revisions = revisionSet{sortKey: {NamespacedName: sortKey, Timeout: 10 * time.Millisecond}}
				c.DrainTimeout = time.Millisecond
			})
			ended := make(chan struct{})
			b.Add(sortKey, "pod", 1, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(ended)
				h(w, r)
			}))
			conn, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: sort\r\n%s: %s\r\n%s: %s\r\n%s\r\n\r\n",
				knativeactivator.RevisionHeaderNamespace, sortKey.Namespace,
				knativeactivator.RevisionHeaderName, sortKey.Name, header)
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
				t.Error("the function still waits for the client")
			}
		})
	}
}

// TestRunDrainsColdRequests shows that a stop doesn't end the start for which a
// request waits.
func TestRunDrainsColdRequests(t *testing.T) {
	starting, release := make(chan struct{}), make(chan struct{})
	cfg := Config{
		Addr: freeAddr(t), NodeName: "n", Log: zaptest.NewLogger(t).Sugar(),
		Revisions:    revisionSet{sortKey: {NamespacedName: sortKey, Timeout: time.Minute}},
		Report:       func([]metrics.StatMessage) {},
		QueueTimeout: 10 * time.Second, DrainTimeout: time.Minute,
	}
	var a *Activator
	cfg.StartEarly = func(ctx context.Context, r Revision) error {
		close(starting)
		<-release
		if ctx.Err() == nil {
			a.Add(r.NamespacedName, "early", 0, nothing)
		}
		return ctx.Err()
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	<-a.Ready()
	b := &bench{url: "http://" + cfg.Addr}
	answer := make(chan int, 1)
	go func() {
		status, _, _ := do(t, b.request(t))
		answer <- status
	}()
	<-starting
	stop()
	close(release)
	if status := <-answer; status != http.StatusOK {
		t.Errorf("got %d, want the start to go on for the request", status)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestRunDrains shows that a stop lets the running request finish.
func TestRunDrains(t *testing.T) {
	cfg := Config{
		Addr: freeAddr(t), NodeName: "n", Log: zaptest.NewLogger(t).Sugar(),
		Revisions:    revisionSet{sortKey: {NamespacedName: sortKey, Timeout: time.Minute}},
		StartEarly:   func(context.Context, Revision) error { return nil },
		Report:       func([]metrics.StatMessage) {},
		QueueTimeout: time.Minute, DrainTimeout: time.Minute,
	}
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	<-a.Ready()

	inside, release := make(chan struct{}), make(chan struct{})
	a.Add(sortKey, "pod", 0, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(inside)
		<-release
		io.WriteString(w, "finished")
	}))
	b := &bench{url: "http://" + cfg.Addr}
	answer := make(chan string, 1)
	go func() {
		_, body, _ := do(t, b.request(t))
		answer <- body
	}()
	<-inside
	stop()
	select {
	case <-ended:
		t.Fatal("Run returned while a request was running")
	default:
	}
	close(release)
	if body := <-answer; body != "finished" {
		t.Errorf("got %q, want the running request to finish", body)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestRunSaysThatTheAddressIsTaken(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := New(Config{
		Addr: ln.Addr().String(), NodeName: "n", Log: zaptest.NewLogger(t).Sugar(), Revisions: revisionSet{},
		StartEarly: func(context.Context, Revision) error { return nil }, Report: func([]metrics.StatMessage) {},
		QueueTimeout: 1, DrainTimeout: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), ln.Addr().String()) {
		t.Fatalf("got %v, want an error that names the address", err)
	}
}

// TestPod is about requests that come to the address of a pod.
func TestPod(t *testing.T) {
	b := start(t, func(c *Config) {
		c.Revisions = revisionSet{sortKey: {NamespacedName: sortKey, UID: "u1", Concurrency: 1, Timeout: 10 * time.Second}}
	})
	answer := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get(knativeactivator.RevisionHeaderName) != "" {
				t.Error("the function sees whose it is")
			}
			if r.URL.Path == "/block" {
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return
			}
			_, _ = io.WriteString(w, name)
		})
	}
	b.Add(sortKey, "a", 1, answer("a"))
	b.Add(sortKey, "b", 1, answer("b"))
	front := httptest.NewServer(b.Pod(sortKey, "b"))
	defer front.Close()
	ask := func(path string, header ...string) *http.Response {
		t.Helper()
		r := b.request(t, append([]string{knativeactivator.RevisionHeaderName, "", knativeactivator.RevisionHeaderNamespace, ""}, header...)...)
		var err error
		if r.URL, err = r.URL.Parse(front.URL + path); err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	text := func(resp *http.Response) string {
		t.Helper()
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(body)
	}
	for range 3 {
		if got := text(ask("/")); got != "b" {
			t.Errorf("got %q, want the pod's own answer", got)
		}
	}
	if got := text(ask("/", knativeactivator.RevisionHeaderName, "another", knativeactivator.RevisionHeaderNamespace, "one")); got != "b" {
		t.Errorf("got %q for another revision, want the pod's own answer", got)
	}
	if got := text(ask("/", netheader.ProxyKey, knativeactivator.Name)); got != "b" {
		t.Errorf("got %q by Knative's activator, want the pod's own answer", got)
	}
	blocking := ask("/block") // b is busy
	named := []string{knativeactivator.RevisionHeaderName, sortKey.Name, knativeactivator.RevisionHeaderNamespace, sortKey.Namespace}
	if got := text(ask("/", named...)); got != "a" {
		t.Errorf("got %q by a gateway, want whichever is free", got)
	}
	b.Remove(sortKey, "b")
	if got := text(ask("/")); got != "a" {
		t.Errorf("got %q from a pod that ends, want another's answer", got)
	}
	blocking.Body.Close()
}

func TestForgottenRevisionKeepsNothing(t *testing.T) {
	b := start(t)
	b.Add(sortKey, "pod", 0, nothing)
	b.Forget(sortKey)
	if n := len(b.revisions); n != 0 {
		t.Fatalf("got %d entries after Forget, want 0", n)
	}
}

// deadlines is a recorder with the deadlines of a server's writers.
type deadlines struct{ *httptest.ResponseRecorder }

func (deadlines) SetReadDeadline(time.Time) error  { return nil }
func (deadlines) SetWriteDeadline(time.Time) error { return nil }

// BenchmarkServeHTTP is the node's own share of a warm request, over a function
// that does nothing, beside the same function called bare.
func BenchmarkServeHTTP(b *testing.B) {
	m, err := NewMetrics(sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader())))
	if err != nil {
		b.Fatal(err)
	}
	a, err := New(Config{
		Metrics: m,
		Addr:    "127.0.0.1:0", NodeName: "n", Log: zaptest.NewLogger(b).Sugar(),
		Revisions:  revisionSet{sortKey: {NamespacedName: sortKey, Timeout: time.Minute}},
		StartEarly: func(context.Context, Revision) error { return nil }, Report: func([]metrics.StatMessage) {},
		QueueTimeout: time.Minute, DrainTimeout: time.Minute,
	})
	if err != nil {
		b.Fatal(err)
	}
	a.Add(sortKey, "pod", 0, nothing)
	for name, h := range map[string]http.Handler{"bare": nothing, "activator": a} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			w := deadlines{httptest.NewRecorder()}
			for b.Loop() {
				r.Header.Set(knativeactivator.RevisionHeaderNamespace, sortKey.Namespace)
				r.Header.Set(knativeactivator.RevisionHeaderName, sortKey.Name)
				h.ServeHTTP(w, r)
			}
		})
	}
}
