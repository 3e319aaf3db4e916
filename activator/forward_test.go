package activator

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	netheader "knative.dev/networking/pkg/http/header"
)

// pair is two nodes; the second one has a ready pod of the revision, of which
// the first one knows.
func pair(t *testing.T, pod http.Handler) (first, second *bench) {
	t.Helper()
	second = start(t, func(c *Config) { c.NodeName = "node-b" })
	second.Add(sortKey, "pod", 0, pod)
	first = start(t)
	first.SetElsewhere(sortKey, map[string]int{second.address(): 0})
	return first, second
}

func (b *bench) address() string { return strings.TrimPrefix(b.url, "http://") }

// deadAddress is one that nobody listens at.
func deadAddress(t *testing.T) string { return freeAddr(t) }

func TestRequestGoesToTheNodeThatHasAPod(t *testing.T) {
	first, second := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(netheader.ProxyKey) != "activator" {
			t.Error("the pod is not told that a node has sent the request")
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s %s", r.Host, r.URL.RequestURI(), r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Own"), body)
	}))
	r := first.request(t, "X-Own", "kept", "X-Forwarded-For", "192.0.2.1")
	r.Host = "sort.example"
	r.URL.Path, r.URL.RawQuery = "/a", "x=1;y" // no query that Go parses
	status, body, _ := do(t, r)
	if want := "sort.example /a?x=1;y 192.0.2.1 kept body"; status != http.StatusOK || body != want {
		t.Errorf("got %d %q, want 200 %q", status, body, want)
	}
	if n := len(first.starts) + len(second.starts); n != 0 {
		t.Errorf("%d functions were started for a revision that has a ready pod", n)
	}
	if len(first.stats)+len(second.stats) != 0 {
		t.Error("the autoscaler was woken for a revision that has a ready pod")
	}
}

// TestForwardedRequestIsCountedOnce adds up what both nodes report.
func TestForwardedRequestIsCountedOnce(t *testing.T) {
	first, second := pair(t, nothing)
	do(t, first.request(t))
	sum := 0.0
	for _, b := range []*bench{first, second} {
		stats, _ := b.Activator.stats(time.Now())
		for _, s := range stats {
			sum += s.Stat.RequestCount - s.Stat.ProxiedRequestCount
		}
	}
	if sum != 1 {
		t.Errorf("got %v requests in all, want 1", sum)
	}
}

// TestForwardedRequestGoesNoFurther is two nodes of which each believes that the
// other has a pod.
func TestForwardedRequestGoesNoFurther(t *testing.T) {
	first, second := pair(t, nothing)
	second.Remove(sortKey, "pod")
	second.SetElsewhere(sortKey, map[string]int{first.address(): 0})
	answer := make(chan int, 1)
	go func() {
		status, _, _ := do(t, first.request(t))
		answer <- status
	}()
	<-second.starts // activated where it was sent
	second.Add(sortKey, "pod", 0, nothing)
	if status := <-answer; status != http.StatusOK {
		t.Errorf("got %d, want 200", status)
	}
	if len(first.starts) != 0 {
		t.Error("the request came back")
	}
}

func TestNodeThatCannotBeReachedIsPassedOver(t *testing.T) {
	dead := deadAddress(t)
	t.Run("for another with a pod", func(t *testing.T) {
		first, second := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
		first.SetElsewhere(sortKey, map[string]int{dead: 1000, second.address(): 0})
		for range 5 {
			if status, body, _ := do(t, first.request(t)); status != http.StatusOK || body != "body" {
				t.Errorf("got %d %q, want 200 with the whole body", status, body)
			}
		}
	})
	t.Run("for a start here", func(t *testing.T) {
		b := start(t)
		b.SetElsewhere(sortKey, map[string]int{dead: 0})
		go func() {
			<-b.starts
			b.Add(sortKey, "early", 0, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }))
		}()
		if status, body, _ := do(t, b.request(t)); status != http.StatusOK || body != "body" {
			t.Errorf("got %d %q, want 200 with the whole body", status, body)
		}
	})
}

// TestRequestThatHasLeftIsNotSentAgain is a node that dies with the request.
func TestRequestThatHasLeftIsNotSentAgain(t *testing.T) {
	var calls atomic.Int32
	first, _ := pair(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		calls.Add(1)
		panic(http.ErrAbortHandler)
	}))
	if status, body, _ := do(t, first.request(t)); status != http.StatusBadGateway || !strings.Contains(body, sortKey.String()) {
		t.Errorf("got %d %q, want 502 that names the revision", status, body)
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("the function was called %d times, want once", n)
	}
}

func TestForwardedAnswerIsStreamed(t *testing.T) {
	read := make(chan struct{})
	first, _ := pair(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "first")
		w.(http.Flusher).Flush()
		<-read
		fmt.Fprintln(w, "second")
	}))
	resp, err := http.DefaultClient.Do(first.request(t))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() || lines.Text() != "first" {
		t.Fatalf("got %q, want the first line before the answer's end", lines.Text())
	}
	close(read)
	if !lines.Scan() || lines.Text() != "second" {
		t.Errorf("got %q, want the second line", lines.Text())
	}
}

// TestForwardedProtocols sends over each protocol and looks at what arrives.
func TestForwardedProtocols(t *testing.T) {
	first, _ := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-End")
		fmt.Fprint(w, r.Proto)
		w.Header().Set("X-End", "done")
	}))
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			transport := &http.Transport{Protocols: new(http.Protocols)}
			transport.Protocols.SetHTTP1(proto == "HTTP/1.1")
			transport.Protocols.SetUnencryptedHTTP2(proto == "HTTP/2.0")
			defer transport.CloseIdleConnections()
			resp, err := (&http.Client{Transport: transport}).Do(first.request(t))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || string(body) != proto || resp.Trailer.Get("X-End") != "done" {
				t.Errorf("the function saw %q and its trailer came as %q (%v), want %s and done", body, resp.Trailer.Get("X-End"), err, proto)
			}
		})
	}
}

func TestForwardedUpgrade(t *testing.T) {
	first, _ := pair(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		rw.Flush()
		line, _ := rw.ReadString('\n')
		io.WriteString(rw, "echo "+line)
		rw.Flush()
	}))
	conn, err := net.Dial("tcp", first.address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := first.request(t, "Connection", "Upgrade", "Upgrade", "echo")
	r.Method, r.Body, r.ContentLength = http.MethodGet, nil, 0
	if err := r.Write(conn); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, r)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got %v, %v, want 101", resp, err)
	}
	defer resp.Body.Close()
	io.WriteString(conn, "hello\n")
	if line, _ := in.ReadString('\n'); line != "echo hello\n" {
		t.Errorf("got %q, want the echo", line)
	}
}

// TestConnectionsToNodesAreReused counts the connections that 50 requests, one
// after the other, make.
func TestConnectionsToNodesAreReused(t *testing.T) {
	remotes := map[string]bool{}
	first, _ := pair(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { remotes[r.RemoteAddr] = true }))
	for range 50 {
		do(t, first.request(t))
	}
	if len(remotes) != 1 {
		t.Errorf("50 requests came over %d connections, want 1", len(remotes))
	}
}

func TestRevisionTimeoutHoldsForwardedRequests(t *testing.T) {
	second := start(t, func(c *Config) { c.NodeName = "node-b" })
	second.Add(sortKey, "pod", 0, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // net/http notices that a peer has gone once it has read all
		<-r.Context().Done()
	}))
	first := start(t, func(c *Config) {
		c.Revisions = revisionSet{sortKey: {NamespacedName: sortKey, Timeout: 50 * time.Millisecond}}
	})
	first.SetElsewhere(sortKey, map[string]int{second.address(): 0})
	if status, body, _ := do(t, first.request(t)); status != http.StatusGatewayTimeout || body != "request timeout" {
		t.Errorf("got %d %q, want 504 request timeout", status, body)
	}
}

// TestCordonedNodeSendsOn is about a node that may start nothing.
func TestCordonedNodeSendsOn(t *testing.T) {
	cordoned := func(next func() string) option {
		return func(c *Config) {
			c.MayStart = func() bool { return false }
			c.Next = func(types.NamespacedName) string { return next() }
			c.QueueTimeout = 100 * time.Millisecond
		}
	}
	t.Run("to where it may start", func(t *testing.T) {
		var second *bench
		second = start(t, func(c *Config) {
			c.NodeName = "node-b"
			c.StartEarly = func(_ context.Context, r Revision) error {
				second.AddEarly(r.NamespacedName, "early", 0, nothing)
				return nil
			}
		})
		first := start(t, cordoned(func() string { return second.address() }))
		if status, body, _ := do(t, first.request(t)); status != http.StatusOK {
			t.Errorf("got %d %q, want 200 from the other node", status, body)
		}
		if len(first.starts) != 0 {
			t.Error("the cordoned node started the function")
		}
		// The sender tells the autoscaler, the receiver doesn't.
		if poke := <-first.stats; poke[0].Stat.RequestCount != 1 {
			t.Errorf("got %+v told at once, want one request", poke)
		}
		if len(second.stats) != 0 {
			t.Errorf("the receiver told %v as well", <-second.stats)
		}
	})
	t.Run("or waits for the pod, if there is none", func(t *testing.T) {
		b := start(t, cordoned(func() string { return "" }))
		status, body, _ := do(t, b.request(t))
		if status != http.StatusServiceUnavailable || !strings.Contains(body, "cordoned") {
			t.Errorf("got %d %q, want 503 that says why", status, body)
		}
		if len(b.starts) != 0 {
			t.Error("the cordoned node started the function")
		}
	})
	t.Run("or if that can't be reached", func(t *testing.T) {
		dead := deadAddress(t)
		b := start(t, cordoned(func() string { return dead }))
		if status, body, _ := do(t, b.request(t)); status != http.StatusServiceUnavailable {
			t.Errorf("got %d %q, want 503", status, body)
		}
	})
	t.Run("but serves what runs here", func(t *testing.T) {
		b := start(t, cordoned(func() string { t.Error("asked for another node"); return "" }))
		b.Add(sortKey, "pod", 0, nothing)
		if status, _, _ := do(t, b.request(t)); status != http.StatusOK {
			t.Errorf("got %d, want 200", status)
		}
	})
}

// TestDrainingNodeSendsOn keeps a connection open across the begin of the end, as
// a proxy does.
func TestDrainingNodeSendsOn(t *testing.T) {
	second := start(t, func(c *Config) { c.NodeName = "node-b" })
	second.Add(sortKey, "early", 0, nothing)
	first := start(t, func(c *Config) { c.Next = func(types.NamespacedName) string { return second.address() } })
	first.draining.Store(true)
	if status, body, _ := do(t, first.request(t)); status != http.StatusOK {
		t.Errorf("got %d %q, want 200 from the other node", status, body)
	}
	if len(first.starts) != 0 {
		t.Error("the draining node started the function")
	}
}

func TestCallerIsToldWhyNothingRuns(t *testing.T) {
	tests := []struct {
		name    string
		options option
		want    string
	}{
		{"Kubernetes refuses the pod", func(c *Config) {
			c.Refusal = func(types.NamespacedName) string { return "exceeded quota: pods" }
		}, "exceeded quota: pods"},
		{"the start failed", func(c *Config) {
			c.StartEarly = func(context.Context, Revision) error { return errors.New("no such import") }
		}, "no such import"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			b := start(t, test.options, func(c *Config) { c.QueueTimeout = 50 * time.Millisecond })
			status, body, _ := do(t, b.request(t))
			if status != http.StatusServiceUnavailable || !strings.Contains(body, test.want) {
				t.Errorf("got %d %q, want 503 with %q", status, body, test.want)
			}
		})
	}
}

// TestPodIsAskedForOnlyWhenDemandLasts is wisp.dev/pod-after.
func TestPodIsAskedForOnlyWhenDemandLasts(t *testing.T) {
	late := func(c *Config) {
		c.Revisions = revisionSet{sortKey: {NamespacedName: sortKey, Timeout: 10 * time.Second, PodAfter: 3 * time.Second}}
	}
	t.Run("not at once, nor while it is young", func(t *testing.T) {
		var b *bench
		b = start(t, late, func(c *Config) {
			c.StartEarly = func(_ context.Context, r Revision) error {
				b.AddEarly(r.NamespacedName, "early", 0, nothing)
				return nil
			}
		})
		if status, _, _ := do(t, b.request(t)); status != http.StatusOK {
			t.Fatalf("got %d, want 200", status)
		}
		if len(b.stats) != 0 {
			t.Errorf("told %v at once", <-b.stats)
		}
		at := time.Now().Add(time.Hour) // the reporter's own looks are long past
		told := func() bool { stats, _ := b.Activator.stats(at); at = at.Add(time.Second); return len(stats) > 0 }
		for second := range 3 {
			do(t, b.request(t))
			if told() {
				t.Errorf("told of it after %d s", second)
			}
		}
		do(t, b.request(t))
		if !told() {
			t.Error("not told of demand that lasts")
		}
		b.Adopted(sortKey, "early")
		if !told() {
			t.Error("no zero for a pod that is idle")
		}
	})
	t.Run("at once where only a Pod helps", func(t *testing.T) {
		b := start(t, late)
		answer := make(chan int, 1)
		go func() {
			status, _, _ := do(t, b.request(t))
			answer <- status
		}()
		<-b.stats
		b.Add(sortKey, "pod", 0, nothing)
		if status := <-answer; status != http.StatusOK {
			t.Errorf("got %d, want 200", status)
		}
	})
}

func TestQueueIsBoundedInBytes(t *testing.T) {
	b := start(t, func(c *Config) { c.QueueBytes = 1 })
	answers := make(chan int, 1)
	go func() {
		status, _, _ := do(t, b.request(t))
		answers <- status
	}()
	waitFor(t, func() bool { return b.entry(sortKey).slots.occupancy().waiting == 1 })
	if status, body, _ := do(t, b.request(t)); status != http.StatusServiceUnavailable || !strings.Contains(body, "its queue is full") {
		t.Errorf("got %d %q, want 503: the queue is full", status, body)
	}
	b.Add(sortKey, "pod", 0, nothing)
	if status := <-answers; status != http.StatusOK {
		t.Errorf("got %d for the one that waits, want 200", status)
	}
}

func TestHeldBytes(t *testing.T) {
	tests := []struct {
		name   string
		major  int
		length int64
		want   int64
	}{
		{"a small body counts as declared", 1, 100, 100},
		{"a large one as far as it is taken in", 1, 1 << 30, lineBuffer},
		{"and one of unknown length", 1, -1, lineBuffer},
		{"over HTTP/2", 2, -1, streamBuffer},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := &http.Request{ProtoMajor: test.major, ContentLength: test.length, RequestURI: "/abc", Header: http.Header{"A": {"bc"}}}
			if got, want := held(r), test.want+4+3; got != want {
				t.Errorf("got %d, want %d", got, want)
			}
		})
	}
}

// TestRequestIsAnsweredWhenPodsElsewhereGo is a request in line for a busy pod of
// another node, which is deleted meanwhile.
func TestRequestIsAnsweredWhenPodsElsewhereGo(t *testing.T) {
	inside, release := make(chan struct{}, 1), make(chan struct{})
	second := start(t)
	second.Add(sortKey, "pod", 1, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		inside <- struct{}{}
		<-release
	}))
	var first *bench
	first = start(t, func(c *Config) {
		c.StartEarly = func(_ context.Context, r Revision) error {
			first.AddEarly(r.NamespacedName, "early", 0, nothing)
			return nil
		}
	})
	first.SetElsewhere(sortKey, map[string]int{second.address(): 1})
	answers := make(chan int, 2)
	send := func() {
		status, _, _ := do(t, first.request(t))
		answers <- status
	}
	go send()
	<-inside
	go send()
	waitFor(t, func() bool { return first.entry(sortKey).slots.occupancy().waiting == 1 })
	first.SetElsewhere(sortKey, nil)
	if status := <-answers; status != http.StatusOK {
		t.Errorf("got %d for the request in line, want 200 from a start here", status)
	}
	close(release)
	if status := <-answers; status != http.StatusOK {
		t.Errorf("got %d for the request that was sent on, want 200", status)
	}
}

func TestPodsOfADeletedRevisionLeaveNothing(t *testing.T) {
	b := start(t)
	gone := types.NamespacedName{Namespace: "default", Name: "gone"}
	b.SetElsewhere(gone, map[string]int{"10.0.0.2:8012": 0})
	b.SetElsewhere(gone, nil)
	if _, ok := b.lookUp(gone); ok {
		t.Error("an entry is left of a revision that does not exist")
	}
}
