package xds

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/wisp-serving/wisp/test/envoytest"
	"k8s.io/apimachinery/pkg/api/resource"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/networking/pkg/http/header"
	"knative.dev/serving/pkg/activator"
)

// fakeNode answers for every revision at one loopback address, as wasm nodes do.
type fakeNode struct {
	name, ip string
	port     int
	srv      *http.Server
	requests atomic.Int64
	// status is what requests are answered with.
	status atomic.Int64
	// hold, where not nil, keeps answers back until it is closed.
	hold atomic.Pointer[chan struct{}]
	// arrived receives for a request that is held back.
	arrived chan struct{}
}

// startNode serves on ip:8012.
func startNode(t testing.TB, name, ip string) *fakeNode {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(ip, "8012"))
	if err != nil {
		t.Fatalf("start node %s: %v", name, err)
	}
	return serveNode(t, name, ln)
}

// serveNode serves on ln.
func serveNode(t testing.TB, name string, ln net.Listener) *fakeNode {
	n := &fakeNode{name: name, ip: ln.Addr().(*net.TCPAddr).IP.String(), arrived: make(chan struct{}, 1)}
	n.status.Store(http.StatusOK)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	n.srv = &http.Server{Handler: http.HandlerFunc(n.serve), Protocols: protocols}
	var served sync.WaitGroup
	served.Go(func() { _ = n.srv.Serve(ln) })
	t.Cleanup(func() {
		n.stop()
		served.Wait()
	})
	return n
}

func (n *fakeNode) stop() { _ = n.srv.Close() }

func (n *fakeNode) serve(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get(header.ProbeKey) == header.ProbeValue {
		w.Header().Set(header.HashKey, r.Header.Get(header.HashKey))
		return
	}
	n.requests.Add(1)
	if r.Header.Get("Upgrade") == "websocket" {
		echoUpgrade(w)
		return
	}
	if hold := n.hold.Load(); hold != nil {
		select {
		case n.arrived <- struct{}{}:
		default:
		}
		<-*hold
	}
	w.Header().Set("Node", n.name)
	w.Header().Set("Got-Host", r.Host)
	w.Header().Set("Got-Path", r.URL.Path)
	w.Header().Set("Got-Proto", r.Proto)
	for name, values := range r.Header {
		w.Header()["Got-"+name] = values
	}
	body, _ := io.ReadAll(r.Body)
	w.WriteHeader(int(n.status.Load()))
	_, _ = w.Write(body)
}

// echoUpgrade switches protocols and sends back one line.
func echoUpgrade(w http.ResponseWriter) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	_ = rw.Flush()
	line, err := rw.ReadString('\n')
	if err != nil {
		return
	}
	_, _ = rw.WriteString(line)
	_ = rw.Flush()
}

// answer is what a client got.
type answer struct {
	status int
	header http.Header
	body   string
}

// ask sends a request to a listener; mods change it before.
func ask(t testing.TB, address, host, path string, mods ...func(*http.Request)) answer {
	t.Helper()
	a, err := request(context.Background(), http.DefaultClient, address, host, path, mods...)
	if err != nil {
		t.Fatalf("ask %s for %s%s: %v", address, host, path, err)
	}
	return a
}

func request(ctx context.Context, c *http.Client, address, host, path string, mods ...func(*http.Request)) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return answer{}, err
	}
	req.Host = host
	for _, mod := range mods {
		mod(req)
	}
	resp, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, header: resp.Header, body: string(body)}, err
}

func withHeader(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

func TestEnvoyServesKIngress(t *testing.T) {
	b := newBed(t, "127.81.0")
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	b.addRevision("sort-2", translateHTTP1)
	b.addRevision("grpc-1", translateH2C)
	b.addPod("sort-1", "node-a")
	b.addIngress("sort",
		rule("External", "sort.default.example.com", path(tagged("two"), to("sort-2")), path(to("sort-1")),
			path(under("/deep/er"), to("sort-2")), path(under("/deep"), to("sort-1"), rewrite("inner.example.com"))),
		rule("Local", "sort.default.svc.cluster.local", path(to("sort-1"))))
	b.addIngress("grpc", rule("External", "grpc.default.example.com", path(to("grpc-1"))))
	b.addIngress("split", rule("External", "split.default.example.com", path(to("sort-1", 90), to("sort-2", 10))))
	bare := path(to("sort-1"))
	bare.Splits[0].AppendHeaders = nil
	b.addIngress("bare", rule("External", "bare.default.example.com", bare))
	b.startGateway()
	envoytest.Start(t, b.cfg)
	b.waitReady("sort", "grpc", "split", "bare")

	external, internal := b.cfg.Envoy.HTTPAddress, b.cfg.Envoy.InternalAddress
	const host, local = "sort.default.example.com", "sort.default.svc.cluster.local"

	t.Run("hosts", func(t *testing.T) {
		for _, tt := range []struct {
			address, host string
			want          int
		}{
			{external, host, 200},
			{external, host + ":8080", 200},
			{external, "SORT.default.example.com", 200},
			{internal, host, 200},
			{internal, local, 200},
			{internal, local + ":80", 200},
			{external, local, 404},
			{external, "other.example.com", 404},
		} {
			if got := ask(t, tt.address, tt.host, "/").status; got != tt.want {
				t.Errorf("%s asked for %s: status %d, want %d", tt.address, tt.host, got, tt.want)
			}
		}
	})
	t.Run("paths and headers", func(t *testing.T) {
		for _, tt := range []struct {
			path string
			tag  string
			want string
		}{
			{"/", "", "sort-1"},
			{"/", "two", "sort-2"},
			{"/", "three", "sort-1"},
			{"/deep", "", "sort-1"},
			{"/deep/er/x", "", "sort-2"},
		} {
			a := ask(t, external, host, tt.path, withHeader(header.RouteTagKey, tt.tag))
			if got := a.header.Get("Got-" + activator.RevisionHeaderName); got != tt.want {
				t.Errorf("%s with tag %q went to %q, want %q", tt.path, tt.tag, got, tt.want)
			}
		}
	})
	t.Run("identity is the gateway's to set", func(t *testing.T) {
		for host, want := range map[string]string{host: "sort-", "split.default.example.com": "sort-", "bare.default.example.com": ""} {
			a := ask(t, external, host, "/",
				withHeader(activator.RevisionHeaderName, "other"), withHeader(activator.RevisionHeaderNamespace, "kube-system"),
				withHeader(header.ProxyKey, "activator"))
			revision := a.header.Values("Got-" + activator.RevisionHeaderName)
			namespaces := a.header.Values("Got-" + activator.RevisionHeaderNamespace)
			if want == "" && len(revision)+len(namespaces) > 0 {
				t.Errorf("%s: a client's identity passed: %q, %q", host, revision, namespaces)
			}
			if want != "" && (len(revision) != 1 || !strings.HasPrefix(revision[0], want) || len(namespaces) != 1 || namespaces[0] != namespace) {
				t.Errorf("%s: identity is %q, %q, want the route's alone", host, revision, namespaces)
			}
			if got := a.header.Values("Got-" + header.ProxyKey); len(got) != 0 {
				t.Errorf("%s: a client's %s passed: %q", host, header.ProxyKey, got)
			}
		}
	})
	t.Run("percent signs are literal", func(t *testing.T) {
		if got := ask(t, external, host, "/").header.Get("Got-Literal"); got != "100 %ENVIRONMENT(PATH)%" {
			t.Errorf("appended header is %q", got)
		}
	})
	t.Run("rewritten host", func(t *testing.T) {
		if got := ask(t, external, host, "/deep").header.Get("Got-Host"); got != "inner.example.com" {
			t.Errorf("host is %q, want inner.example.com", got)
		}
		if got := ask(t, external, host+":8080", "/").header.Get("Got-Host"); got != host+":8080" {
			t.Errorf("host is %q, want it as the client sent it", got)
		}
	})
	t.Run("forwarded headers", func(t *testing.T) {
		a := ask(t, external, host, "/", withHeader("X-Forwarded-For", "1.2.3.4"), withHeader("X-Forwarded-Proto", "https"))
		// In place of a loopback peer Envoy names an address of the machine.
		if got := a.header.Get("Got-X-Forwarded-For"); !strings.HasPrefix(got, "1.2.3.4,") || net.ParseIP(got[len("1.2.3.4,"):]) == nil {
			t.Errorf("X-Forwarded-For is %q, want an address appended", got)
		}
		if got := a.header.Get("Got-X-Forwarded-Proto"); got != "http" {
			t.Errorf("X-Forwarded-Proto is %q, want what the connection is", got)
		}
		for name := range a.header {
			if strings.HasPrefix(name, "X-Envoy-") || strings.HasPrefix(name, "Got-X-Envoy-") || name == "Server" {
				t.Errorf("header %s is of Envoy's own making", name)
			}
		}
	})
	t.Run("h2c upstream", func(t *testing.T) {
		if got := ask(t, external, "grpc.default.example.com", "/").header.Get("Got-Proto"); got != "HTTP/2.0" {
			t.Errorf("node was asked in %s, want HTTP/2.0", got)
		}
	})
	t.Run("split", func(t *testing.T) {
		const n = 1000
		second := 0
		for range n {
			if ask(t, external, "split.default.example.com", "/").header.Get("Got-"+activator.RevisionHeaderName) == "sort-2" {
				second++
			}
		}
		if second < n/20 || second > n/5 {
			t.Errorf("%d of %d requests went to the 10 %% split", second, n)
		}
	})
	t.Run("websocket", func(t *testing.T) { echo(t, external, host) })
	t.Run("probe", func(t *testing.T) {
		a := ask(t, external, host, "/healthz", withHeader(header.ProbeKey, header.ProbeValue), withHeader(header.HashKey, "mine"))
		if got := a.header.Get(header.HashKey); got != "mine" {
			t.Errorf("a client's own hash came back as %q", got)
		}
	})
}

// echo sends a line by websocket and wants it back.
func echo(t *testing.T, address, host string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", host)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("status %d, want 101", resp.StatusCode)
	}
	fmt.Fprintln(conn, "hello")
	if got, err := r.ReadString('\n'); got != "hello\n" {
		t.Errorf("echo is %q, %v", got, err)
	}
}

// TestEnvoyTakesManyPaths has one KIngress with 10,000 paths beside another.
func TestEnvoyTakesManyPaths(t *testing.T) {
	b := newBed(t, "127.104.0")
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-1"))))
	b.startGateway()
	envoytest.Start(t, b.cfg)
	b.waitReady("sort")

	paths := make([]v1alpha1.HTTPIngressPath, 10_000)
	for i := range paths {
		paths[i] = path(under(fmt.Sprintf("/p/%d/", i)), to("sort-1"))
	}
	b.addIngress("many", rule("External", "many.example.com", paths...))
	b.waitReady("many")
	if got := ask(t, b.cfg.Envoy.HTTPAddress, "sort.example.com", "/").status; got != 200 {
		t.Errorf("the other one answers %d, want 200", got)
	}
	for path, want := range map[string]int{"/p/0/": 200, "/p/9999/x": 200, "/p/10000/": 404} {
		if got := ask(t, b.cfg.Envoy.HTTPAddress, "many.example.com", path).status; got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
}

// TestEnvoyTells reads what Envoy writes of requests, and what others may read of
// its admin interface.
func TestEnvoyTells(t *testing.T) {
	b := newBed(t, "127.101.0")
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-1"))))
	b.startGateway()
	e := envoytest.Start(t, b.cfg)
	b.waitReady("sort")
	ask(t, b.cfg.Envoy.HTTPAddress, "sort.example.com", "/path?q=1", withHeader("User-Agent", `a "quoted" one`))

	if got := ask(t, b.cfg.Envoy.StatsAddress, "any", "/ready"); got.status != 200 {
		t.Errorf("/ready is %d", got.status)
	}
	if got := ask(t, b.cfg.Envoy.StatsAddress, "any", "/stats/prometheus").body; !strings.Contains(got, `envoy_cluster_upstream_rq_total{envoy_cluster_name="default/sort-1"}`) {
		t.Error("/stats/prometheus has no requests by revision")
	}
	for _, path := range []string{"/config_dump", "/quitquitquit", "/", "/stats/prometheus/x"} {
		if got := ask(t, b.cfg.Envoy.StatsAddress, "any", path).status; got != 404 {
			t.Errorf("%s is %d, want 404", path, got)
		}
	}
	if got := ask(t, b.cfg.Envoy.StatsAddress, "any", "/ready", func(r *http.Request) { r.Method = http.MethodPost }).status; got != 404 {
		t.Errorf("POST is %d, want 404", got)
	}
	for name, want := range map[string]int{"too long": 431, "too many": 431} {
		got := ask(t, b.cfg.Envoy.HTTPAddress, "sort.example.com", "/", func(r *http.Request) {
			if name == "too long" {
				r.Header.Set("Long", strings.Repeat("x", 100<<10))
				return
			}
			for i := range 300 {
				r.Header.Set(fmt.Sprintf("H-%d", i), "x")
			}
		}).status
		if got != want {
			t.Errorf("headers that are %s: %d, want %d", name, got, want)
		}
	}

	log := e.Stop() // which writes it as it ends
	for line := range strings.Lines(log) {
		var got map[string]any
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if got["path"] != "/path?q=1" {
			continue
		}
		for key, want := range map[string]any{
			"revision": "sort-1", "namespace": namespace, "host": "sort.example.com", "method": "GET", "status": 200.,
			"listener": "external", "userAgent": `a "quoted" one`, "upstream": "127.101.0.1:8012", "attempts": 1.,
		} {
			if got[key] != want {
				t.Errorf("%s is %v, want %v", key, got[key], want)
			}
		}
		for _, key := range []string{"time", "duration", "upstreamTime", "requestId"} {
			if got[key] == nil {
				t.Errorf("no %s in %s", key, line)
			}
		}
		return
	}
	t.Errorf("the request is not in the log:\n%s", log)
}

func TestEnvoyFailsOver(t *testing.T) {
	b := newBed(t, "127.82.0")
	for _, name := range []string{"node-a", "node-b", "node-c", "node-d"} {
		b.addNode(name)
	}
	b.addRevision("sort-1", translateHTTP1)
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-1"))))
	b.startGateway()
	envoytest.Start(t, b.cfg)
	b.waitReady("sort")
	ranked := b.ranked("sort-1")

	post := func(r *http.Request) {
		r.Method, r.Body, r.ContentLength = http.MethodPost, io.NopCloser(strings.NewReader("body")), 4
	}
	served := func(t *testing.T, n int, want string) {
		t.Helper()
		for range n {
			a := ask(t, b.cfg.Envoy.HTTPAddress, "sort.example.com", "/", post)
			if a.status != 200 || a.header.Get("Node") != want || a.body != "body" {
				t.Fatalf("status %d from %q with body %q, want 200 from %s", a.status, a.header.Get("Node"), a.body, want)
			}
		}
	}
	t.Run("no pods: the first in rank order", func(t *testing.T) { served(t, 30, ranked[0]) })
	t.Run("a pod takes over", func(t *testing.T) {
		before := b.sent()
		b.addPod("sort-1", ranked[2])
		b.waitEndpoints()
		served(t, 30, ranked[2])
		after := b.sent()
		if before["ClusterLoadAssignment"] == after["ClusterLoadAssignment"] {
			t.Error("no endpoints were sent")
		}
		delete(before, "ClusterLoadAssignment")
		delete(after, "ClusterLoadAssignment")
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("bytes sent of other types (-before +after):\n%s", diff)
		}
	})
	t.Run("pods gone again", func(t *testing.T) {
		b.removePod("sort-1", ranked[2])
		b.waitEndpoints()
		served(t, 30, ranked[0])
	})
	t.Run("an answer is never retried", func(t *testing.T) {
		n := b.nodes[ranked[0]]
		n.status.Store(http.StatusServiceUnavailable)
		defer n.status.Store(http.StatusOK)
		before := b.requests()
		for range 30 {
			a := ask(t, b.cfg.Envoy.HTTPAddress, "sort.example.com", "/", post,
				withHeader("X-Envoy-Retry-On", "5xx"), withHeader("X-Envoy-Max-Retries", "3"))
			if a.status != http.StatusServiceUnavailable {
				t.Fatalf("status %d, want the function's 503", a.status)
			}
		}
		if got := b.requests() - before; got != 30 {
			t.Errorf("nodes got %d requests, want 30", got)
		}
	})
	t.Run("clients set no timeout", func(t *testing.T) {
		n := b.nodes[ranked[0]]
		hold := make(chan struct{})
		n.hold.Store(&hold)
		defer n.hold.Store(nil)
		time.AfterFunc(200*time.Millisecond, func() { close(hold) })
		if a := ask(t, b.cfg.Envoy.HTTPAddress, "sort.example.com", "/", withHeader("X-Envoy-Upstream-Rq-Timeout-Ms", "1")); a.status != 200 {
			t.Errorf("status %d, want 200", a.status)
		}
	})
	t.Run("a dead node", func(t *testing.T) {
		b.nodes[ranked[0]].stop()
		served(t, 30, ranked[1])
		const ejections = "cluster.default/sort-1.outlier_detection.ejections_active"
		if got, want := ask(t, b.cfg.Envoy.AdminAddress, "admin", "/stats?filter="+ejections).body, ejections+": 1\n"; got != want {
			t.Errorf("stats say %q, want %q", got, want)
		}
	})
	t.Run("two dead nodes", func(t *testing.T) {
		b.nodes[ranked[1]].stop()
		served(t, 30, ranked[2])
	})
	t.Run("a pod on a dead node", func(t *testing.T) {
		b.addPod("sort-1", ranked[0])
		b.waitEndpoints()
		served(t, 30, ranked[2])
	})
}

// sent returns the bytes that were sent to Envoys, by type.
func (b *bed) sent() map[string]int64 {
	out := map[string]int64{}
	for _, kind := range []string{"Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration", "Secret"} {
		out[kind] = b.metric("kn.wasm.gateway.sent type=" + kind)
	}
	return out
}

// TestEnvoyRefusesRatherThanBeKilled has Envoy need more memory than it may have.
func TestEnvoyRefusesRatherThanBeKilled(t *testing.T) {
	b := newBed(t, "127.118.0")
	b.cfg.Envoy.Heap = resource.MustParse("1Mi")
	b.startGateway()
	envoytest.Start(t, b.cfg)
	b.until("all actions", func() bool {
		a, err := request(t.Context(), http.DefaultClient, b.cfg.Envoy.AdminAddress, "admin", "/stats?filter=^overload.*(shrink_heap|stop_accepting_requests|stop_accepting_connections).active$")
		return err == nil && strings.Count(a.body, "active: 1\n") == 3
	})
}

// load asks one host again and again until stopped.
type load struct {
	stop     context.CancelFunc
	wg       sync.WaitGroup
	total    atomic.Int64
	failures atomic.Int64
	first    atomic.Pointer[string]
}

func startLoad(address, host string, clients int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{stop: cancel}
	for range clients {
		l.wg.Go(func() {
			c := &http.Client{Transport: &http.Transport{}}
			defer c.CloseIdleConnections()
			for ctx.Err() == nil {
				a, err := request(context.Background(), c, address, host, "/")
				l.total.Add(1)
				if err == nil && a.status == 200 {
					continue
				}
				l.failures.Add(1)
				text := fmt.Sprintf("status %d %s, error %v", a.status, a.body, err)
				l.first.CompareAndSwap(nil, &text)
			}
		})
	}
	return l
}

// end stops the load and fails the test where a request failed.
func (l *load) end(t testing.TB) {
	t.Helper()
	l.stop()
	l.wg.Wait()
	if n := l.failures.Load(); n > 0 {
		t.Errorf("%d of %d requests failed, the first with %s", n, l.total.Load(), *l.first.Load())
	}
	if l.total.Load() == 0 {
		t.Error("no request was sent")
	}
	t.Logf("%d requests", l.total.Load())
}

func TestEnvoyLosesNothingWhileServicesChange(t *testing.T) {
	b := newBed(t, "127.83.0")
	b.addNode("node-a")
	b.addNode("node-b")
	b.addRevision("sort-0", translateHTTP1)
	b.addPod("sort-0", "node-a")
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-0"))))
	b.startGateway()
	envoytest.Start(t, b.cfg)
	b.waitReady("sort")

	l := startLoad(b.cfg.Envoy.HTTPAddress, "sort.example.com", 4)
	for i := 1; i <= 20; i++ {
		next, other := fmt.Sprintf("sort-%d", i), fmt.Sprintf("other-%d", i)
		b.addRevision(next, translateHTTP1)
		b.addRevision(other, translateHTTP1)
		b.addPod(next, "node-b")
		b.addIngress(other, rule("External", other+".example.com", path(to(other))))
		b.addIngress("sort", rule("External", "sort.example.com", path(to(next))))
		b.waitReady("sort", other)
		// Ready means now: a new connection meets the new revision.
		a := ask(t, b.cfg.Envoy.HTTPAddress, "sort.example.com", "/")
		if got := a.header.Get("Got-" + activator.RevisionHeaderName); got != next {
			t.Errorf("after Ready, %s answered, want %s", got, next)
		}
		b.removePod(next, "node-b")
		b.removeIngress(other)
		b.removeRevision(other)
		b.removeRevision(fmt.Sprintf("sort-%d", i-1))
	}
	l.end(t)
}

// TestEnvoyLosesNothingWhenRevisionsComeBack goes back to a revision while Envoy
// may still be about to drop it.
func TestEnvoyLosesNothingWhenRevisionsComeBack(t *testing.T) {
	b := newBed(t, "127.85.0")
	b.addNode("node-a")
	for _, name := range []string{"sort-0", "sort-1"} {
		b.addRevision(name, translateHTTP1)
		b.addPod(name, "node-a")
	}
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-0"))))
	b.startGateway()
	envoytest.Start(t, b.cfg)
	b.waitReady("sort")

	l := startLoad(b.cfg.Envoy.HTTPAddress, "sort.example.com", 4)
	for i := 1; i <= 500; i++ {
		b.addIngress("sort", rule("External", "sort.example.com", path(to(fmt.Sprintf("sort-%d", i%2)))))
	}
	b.waitReady("sort")
	l.end(t)
}

func TestEnvoyFinishesWhatItBegan(t *testing.T) {
	b := newBed(t, "127.86.0")
	b.addNode("node-a")
	b.addNode("node-b")
	b.addRevision("old", translateHTTP1)
	b.addRevision("new", translateHTTP1)
	b.addPod("old", "node-a")
	b.addPod("new", "node-b")
	b.addIngress("sort", rule("External", "sort.example.com", path(to("old"))))
	b.startGateway()
	envoytest.Start(t, b.cfg)
	b.waitReady("sort")

	hold := make(chan struct{})
	b.nodes["node-a"].hold.Store(&hold)
	got := make(chan answer, 1)
	go func() { got <- ask(t, b.cfg.Envoy.HTTPAddress, "sort.example.com", "/") }()
	<-b.nodes["node-a"].arrived
	b.removePod("old", "node-a")
	b.waitEndpoints()
	b.addIngress("sort", rule("External", "sort.example.com", path(to("new"))))
	b.waitReady("sort")
	b.waitClusters(1)
	close(hold)
	if a := <-got; a.status != http.StatusOK || a.header.Get("Node") != "node-a" {
		t.Errorf("the request under way ended with %d from %q, want 200 from node-a", a.status, a.header.Get("Node"))
	}
}

func TestEnvoyOutlivesTheGateway(t *testing.T) {
	b := newBed(t, "127.84.0")
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	b.addRevision("sort-2", translateHTTP1)
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-1"))))
	stop := b.startGateway()
	envoytest.Start(t, b.cfg)
	b.waitReady("sort")

	l := startLoad(b.cfg.Envoy.HTTPAddress, "sort.example.com", 2)
	stop()
	if _, err := os.Stat(b.cfg.XDSSocket); !os.IsNotExist(err) {
		t.Errorf("socket after the stop: %v, want it gone", err)
	}
	ask(t, b.cfg.Envoy.HTTPAddress, "sort.example.com", "/")
	status := b.ingress("sort").ResourceVersion
	b.startGateway()
	b.addIngress("more", rule("External", "more.example.com", path(to("sort-2"))))
	b.waitReady("more") // so Envoy is back, and has taken an update
	l.end(t)
	if got := b.ingress("sort").ResourceVersion; got != status {
		t.Error("a restart wrote the status of a KIngress that was Ready")
	}
}

func TestEnvoyDiesAndComesBack(t *testing.T) {
	b := newBed(t, "127.90.0")
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-1"))))
	b.startGateway()
	e := envoytest.Start(t, b.cfg)
	b.waitReady("sort")

	e.Kill()
	b.addIngress("late", rule("External", "late.example.com", path(to("sort-1"))))
	b.waitCondition("late", v1alpha1.IngressConditionLoadBalancerReady, "NoEnvoy", "no Envoy")
	if !b.ingress("sort").IsReady() {
		t.Error("what was proved is not Ready any more")
	}
	envoytest.Start(t, b.cfg)
	b.waitReady("late")
	for _, host := range []string{"sort.example.com", "late.example.com"} {
		if got := ask(t, b.cfg.Envoy.HTTPAddress, host, "/").status; got != 200 {
			t.Errorf("%s: status %d, want 200", host, got)
		}
	}
}
