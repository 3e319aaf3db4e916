package queueproxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gorilla/websocket"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	netheader "knative.dev/networking/pkg/http/header"
	"knative.dev/serving/pkg/autoscaler/metrics"
)

// serve serves a Proxy over HTTP/1.1 and returns its URL.
func serve(t *testing.T, cfg Config) (*Proxy, string) {
	t.Helper()
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	return p, server.URL
}

func get(t *testing.T, url string, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("read the answer: %v", err)
	}
	return resp, string(body)
}

var refuses = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "a probe has reached the function", http.StatusTeapot)
})

func TestProbes(t *testing.T) {
	tests := []struct {
		name   string
		header []string
		ready  error
		drain  bool
		status int
		body   string
	}{
		{"the_activator_asks", []string{"K-Network-Probe", "queue", "User-Agent", netheader.ActivatorUserAgent}, nil, false, 200, "queue"},
		{"a_kubelet_asks", []string{"K-Network-Probe", "queue", "User-Agent", "kube-probe/1.35"}, nil, false, 200, "queue"},
		{"the_function_is_not_ready", []string{"K-Network-Probe", "queue"}, errors.New("connection refused"), false, 503, "not ready: connection refused\n"},
		{"draining", []string{"K-Network-Probe", "queue"}, nil, true, 503, "shutting down\n"},
		{"another_value", []string{"K-Network-Probe", "activator"}, nil, false, 400, "unexpected probe header value: activator\n"},
		{"a_kubelet_without_the_header", []string{"User-Agent", "kube-probe/1.35"}, nil, false, 400, "unexpected probe header value: \n"},
		{"the_gateway_asks", []string{"K-Network-Probe", "probe", "K-Network-Hash", "abc"}, nil, false, 200, ""},
		{"the_gateway_asks_without_a_hash", []string{"K-Network-Probe", "probe"}, nil, false, 400, "the probe has no K-Network-Hash header\n"},
		{"the_gateway_asks_while_draining", []string{"K-Network-Probe", "probe", "K-Network-Hash", "abc"}, nil, true, 503, "shutting down\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p, url := serve(t, Config{Function: refuses, Ready: func(context.Context) error { return test.ready }})
			if test.drain {
				p.Drain()
			}
			resp, body := get(t, url, test.header...)
			if resp.StatusCode != test.status || body != test.body {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, body, test.status, test.body)
			}
			if got := p.Stat(time.Now().Add(2 * time.Second)); got.RequestCount != 0 {
				t.Errorf("the probe was counted: %+v", got)
			}
		})
	}
}

func TestHeaders(t *testing.T) {
	var got *http.Request
	_, url := serve(t, Config{Function: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r })})
	get(t, url, "X-Forwarded-For", "1.2.3.4, 5.6.7.8", "X-Forwarded-Proto", "https", "K-Original-Host", "sort.example.com",
		"Knative-Serving-Revision", "rev", "Knative-Serving-Namespace", "ns", "K-Proxy-Request", "activator",
		"Knative-Serving-Tag", "blue", "K-Passthrough-Lb", "true", "X-Mine", "stays")
	if want := "for=1.2.3.4;proto=https, for=5.6.7.8"; got.Header.Get("Forwarded") != want {
		t.Errorf("got Forwarded %q, want %q", got.Header.Get("Forwarded"), want)
	}
	if got.Host != "sort.example.com" {
		t.Errorf("got host %q, want the one that the client named", got.Host)
	}
	if got.Header.Get("X-Mine") != "stays" {
		t.Error("a header of the client's is gone")
	}
	for name := range got.Header {
		if strings.HasPrefix(name, "K-") || strings.HasPrefix(name, "Knative-") {
			t.Errorf("the function sees %s", name)
		}
	}
}

// late is a function that ends with its request's context, as guests do.
func late(before string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if before != "" {
			_, _ = io.WriteString(w, before)
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
		if errors.Is(context.Cause(r.Context()), context.DeadlineExceeded) {
			http.Error(w, "what a function says too late", http.StatusBadGateway)
		}
	})
}

func TestLateAnswers(t *testing.T) {
	tests := []struct {
		name     string
		settings Settings
		before   string
	}{
		{"nothing_by_the_start_timeout", Settings{ResponseStartTimeout: time.Millisecond}, ""},
		{"nothing_by_the_idle_timeout", Settings{IdleTimeout: time.Millisecond}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, url := serve(t, Config{Settings: test.settings, Function: late("")})
			if resp, body := get(t, url); resp.StatusCode != http.StatusGatewayTimeout || body != "request timeout\n" {
				t.Errorf("got %d %q, want 504 \"request timeout\"", resp.StatusCode, body)
			}
		})
	}
	t.Run("an_answer_that_stalls_is_cut_off", func(t *testing.T) {
		_, url := serve(t, Config{Settings: Settings{IdleTimeout: 20 * time.Millisecond}, Function: late("half")})
		resp, err := http.Get(url) //nolint:noctx // the test ends with the answer
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if string(body) != "half" || err == nil {
			t.Errorf("got %q, error %v; want half of an answer, and an error", body, err)
		}
	})
	t.Run("an_answer_that_has_begun_is_not_late_to_start", func(t *testing.T) {
		_, url := serve(t, Config{
			Settings: Settings{ResponseStartTimeout: time.Millisecond},
			Function: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusAccepted)
				select {
				case <-r.Context().Done():
					t.Errorf("the request was ended: %v", context.Cause(r.Context()))
				case <-time.After(50 * time.Millisecond): // many times the timeout
				}
			}),
		})
		if resp, _ := get(t, url); resp.StatusCode != http.StatusAccepted {
			t.Errorf("got %d, want %d", resp.StatusCode, http.StatusAccepted)
		}
	})
}

func TestWebsocketThatStallsIsClosed(t *testing.T) {
	_, url := serve(t, Config{
		Settings: Settings{IdleTimeout: 50 * time.Millisecond},
		Function: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, text, _ := conn.ReadMessage()
			_ = conn.WriteMessage(websocket.TextMessage, text)
			<-r.Context().Done()
		}),
	})
	conn, resp, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(url, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	defer conn.Close()
	if err := conn.WriteMessage(websocket.TextMessage, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, got, err := conn.ReadMessage(); err != nil || string(got) != "hello" {
		t.Fatalf("got %q, error %v; want the echo", got, err)
	}
	if _, got, err := conn.ReadMessage(); err == nil {
		t.Errorf("got %q, want the connection closed", got)
	}
}

func TestStat(t *testing.T) {
	block := make(chan struct{})
	var arrived sync.WaitGroup
	p, url := serve(t, Config{Pod: "pod-1", Function: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/block" {
			arrived.Done()
			<-block
		}
	})})
	get(t, url)
	get(t, url, "K-Proxy-Request", "activator")
	arrived.Add(1)
	var ended sync.WaitGroup
	ended.Go(func() { get(t, url+"/block") })
	arrived.Wait()
	stat := p.Stat(time.Now().Add(2 * time.Second))
	if stat.PodName != "pod-1" || stat.RequestCount <= 0 || stat.ProxiedRequestCount <= 0 || stat.AverageConcurrentRequests <= 0 {
		t.Errorf("got %+v, want requests, one of them proxied and one running", stat)
	}
	close(block)
	ended.Wait()

	w := httptest.NewRecorder()
	p.Ports(refuses, nil)[9090].ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	var scraped metrics.Stat
	if err := scraped.Unmarshal(w.Body.Bytes()); err != nil || scraped.PodName != "pod-1" {
		t.Errorf("got %+v, error %v; want the pod's stat", scraped, err)
	}
	if got := w.Header().Get("Content-Type"); got != "application/protobuf" {
		t.Errorf("got content type %q; Knative's scraper takes application/protobuf alone", got)
	}
}

// A function that has run without a pod becomes the pod's: its name, its log and
// its probes; what has been counted goes on.
func TestBecome(t *testing.T) {
	var log bytes.Buffer
	settings := Settings{Revision: "rev", RequestLog: `{{.Revision.PodName}} {{.Request.URL.Path}}`}
	function := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	p, url := serve(t, Config{Settings: settings, Function: function})
	get(t, url+"/before")
	err := p.Become(Config{
		Settings: settings, Function: function, Pod: "pod-1", RequestLog: &log,
		Ready: func(context.Context) error { return errors.New("not yet") },
	})
	if err != nil {
		t.Fatal(err)
	}
	get(t, url+"/after")
	if got, want := log.String(), "pod-1 /after\n"; got != want {
		t.Errorf("got the log %q, want %q", got, want)
	}
	if got := p.Stat(time.Now().Add(2 * time.Second)); got.PodName != "pod-1" || got.RequestCount == 0 {
		t.Errorf("got the stat %+v, want the pod's, with the requests before", got)
	}
	if resp, _ := get(t, url, "K-Network-Probe", "queue"); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a probe got %d, want the pod's answer", resp.StatusCode)
	}
}

func TestEntrance(t *testing.T) {
	p, _ := serve(t, Config{Function: refuses})
	entrance := httptest.NewServer(p.Ports(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "the node")
	}), nil)[8012])
	defer entrance.Close()
	if _, body := get(t, entrance.URL); body != "the node" {
		t.Errorf("a request got %q, want it to go by the node", body)
	}
	if _, body := get(t, entrance.URL, "K-Network-Probe", "queue"); body != "queue" {
		t.Errorf("a probe got %q, want the pod's own answer", body)
	}
}

// A preStop hook waits for the requests that its pod has when it ends, and not at
// all if the pod doesn't end.
func TestWaitForDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		p, err := New(Config{Function: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release })})
		if err != nil {
			t.Fatal(err)
		}
		admin := p.Ports(p, nil)[8022]
		hook := func() <-chan struct{} {
			done := make(chan struct{})
			go func() {
				defer close(done)
				admin.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/wait-for-drain", nil))
			}()
			synctest.Wait()
			return done
		}
		<-hook() // by itself: nothing ends

		go p.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
		early := hook()
		p.Drain()
		late := hook()
		time.Sleep(time.Minute) // of the bubble's clock
		synctest.Wait()
		for _, done := range []<-chan struct{}{early, late} {
			select {
			case <-done:
				t.Error("a hook was answered while a request ran")
			default:
			}
		}
		close(release)
		<-early
		<-late
	})
}

func TestRequestLog(t *testing.T) {
	var log bytes.Buffer
	_, url := serve(t, Config{
		Settings:   Settings{Revision: "rev", RequestLog: `{{.Revision.Name}} {{.Revision.PodName}} {{.Request.URL.Path}} {{.Response.Code}} {{.Response.Size}}`},
		Pod:        "pod-1",
		Function:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusNotFound) }),
		RequestLog: &log,
	})
	get(t, url+"/a")
	get(t, url+"/healthz", "K-Network-Probe", "queue")
	if got, want := log.String(), "rev pod-1 /a 404 3\n"; got != want {
		t.Errorf("got the log %q, want %q: the request's line and none for the probe", got, want)
	}
}

func TestMetrics(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	m, err := NewMetrics(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	if err != nil {
		t.Fatal(err)
	}
	_, url := serve(t, Config{Settings: Settings{Namespace: "ns", Revision: "rev"}, Metrics: []*Metrics{m}, Function: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/missing":
			http.NotFound(w, r)
		case "/broken":
			panic(http.ErrAbortHandler)
		}
	})})
	get(t, url)
	get(t, url+"/missing")
	// POST: a client sends a GET again whose connection breaks.
	if resp, err := http.Post(url+"/broken", "text/plain", nil); err == nil { //nolint:noctx // the test ends with the answer
		resp.Body.Close()
		t.Error("an answer was not cut off")
	}
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, point := range all.ScopeMetrics[0].Metrics[0].Data.(metricdata.Histogram[float64]).DataPoints {
		status, _ := point.Attributes.Value("http.response.status_code")
		revision, _ := point.Attributes.Value("kn.revision.name")
		got[revision.AsString()+" "+status.String()] = point.Count
	}
	if diff := cmp.Diff(map[string]uint64{"rev 200": 1, "rev 404": 1, "rev 500": 1}, got); diff != "" {
		t.Errorf("requests by revision and status (-want +got):\n%s", diff)
	}
}

func TestNewNamesABrokenTemplate(t *testing.T) {
	_, err := New(Config{Settings: Settings{Namespace: "ns", Revision: "rev", RequestLog: "{{"}, Function: refuses, RequestLog: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "ns/rev") {
		t.Errorf("got %v, want an error that names the revision", err)
	}
}

// BenchmarkServeHTTP measures the chain around a function that does nothing,
// beside that function alone.
func BenchmarkServeHTTP(b *testing.B) {
	nothing := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	m, err := NewMetrics(sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader())))
	if err != nil {
		b.Fatal(err)
	}
	chain := func(s Settings) http.Handler {
		p, err := New(Config{Settings: s, Function: nothing, Metrics: []*Metrics{m}})
		if err != nil {
			b.Fatal(err)
		}
		return p
	}
	for _, variant := range []struct {
		name    string
		handler http.Handler
	}{
		{"bare", nothing},
		{"chain", chain(Settings{})},
		{"chain_with_timeouts", chain(Settings{ResponseStartTimeout: time.Minute, IdleTimeout: time.Minute})},
	} {
		b.Run(variant.name, func(b *testing.B) {
			b.ReportAllocs()
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			w := httptest.NewRecorder()
			for b.Loop() {
				r.Header.Set("X-Forwarded-For", "1.2.3.4")
				r.Header.Del("Forwarded")
				variant.handler.ServeHTTP(w, r)
			}
		})
	}
}
