package chain

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	knativeactivator "knative.dev/serving/pkg/activator"

	"github.com/wisp-serving/wisp/provider/queueproxy"
	"github.com/wisp-serving/wisp/runtime/guest"
)

// program deploys the guest that does what a good one doesn't. What its requests
// leave is looked for at the end.
func program(t *testing.T, o options) *function {
	t.Helper()
	o.guest, o.abi = "hostile", guest.ABICGI
	f := deploy(t, o)
	t.Cleanup(func() { f.nothingLeft(t) })
	return f
}

// nothingLeft waits until no instance is left, nor memory of one: an answer may be
// read before its guest has ended, and the request of a client that has gone may
// only begin, but every guest ends.
func (f *function) nothingLeft(t *testing.T) {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		used := f.Usage()
		if used.Instances == 0 && used.Memory == 0 {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("%d instances are left, and %d bytes", used.Instances, used.Memory)
		}
	}
}

// well checks that the next request is answered.
func (f *function) well(t *testing.T) {
	t.Helper()
	f.expect(t, http.MethodGet, "/hello", "", http.StatusOK, "hello\n")
}

// connect opens a connection for what no client of net/http would send.
func (f *function) connect(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// head is the beginning of a request, to which headers and a blank line belong.
func head(method, path string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: fn\r\n%s: %s\r\n%s: %s\r\n", method, path,
		knativeactivator.RevisionHeaderNamespace, revision.Namespace, knativeactivator.RevisionHeaderName, revision.Name)
}

// status reads the status of the answer on a connection.
func status(t *testing.T, conn io.Reader) int {
	t.Helper()
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	answer.Body.Close()
	return answer.StatusCode
}

// pour writes text until that fails, as it must, and returns how much has gone.
func pour(t *testing.T, conn net.Conn, text string) (written int) {
	t.Helper()
	const most = 1 << 30
	for written < most {
		n, err := io.WriteString(conn, text)
		written += n
		if err != nil {
			return written
		}
	}
	t.Errorf("%d bytes were taken", written)
	return written
}

func TestFloodOfHeaders(t *testing.T) {
	f := program(t, options{})
	for name, line := range map[string]string{
		"many headers":       "X-A: b\r\n",
		"one without an end": strings.Repeat("x", 1000),
	} {
		conn := f.connect(t)
		begin := head(http.MethodGet, "/hello")
		if name != "many headers" {
			begin += "X-A: "
		}
		answered := make(chan int, 1)
		go func() { // it is answered while more is on its way
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				answered <- 0
				return
			}
			answer.Body.Close()
			answered <- answer.StatusCode
		}()
		_, _ = io.WriteString(conn, begin)
		taken := pour(t, conn, strings.Repeat(line, 100))
		// A reset may overtake the answer.
		if got := <-answered; got != http.StatusRequestHeaderFieldsTooLarge && got != 0 {
			t.Errorf("%s: got %d after %d bytes, want 431", name, got, taken)
		}
		f.well(t)
	}
}

// As many headers as there is room for are the guest's affair.
func TestTenThousandHeaders(t *testing.T) {
	f := program(t, options{})
	var text strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&text, "%c:\r\n", 'a'+i%26)
	}
	conn := f.connect(t)
	_, _ = io.WriteString(conn, head(http.MethodGet, "/env/HTTP_A")+text.String()+"\r\n")
	if got := status(t, conn); got != http.StatusOK && got != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("got %d, want 200 or 431", got)
	}
	f.well(t)

	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	r := f.request(t, http.MethodGet, "/hello", nil)
	for i := range 10_000 {
		r.Header.Set(fmt.Sprint("X-", i), strings.Repeat("y", 20))
	}
	answer, err := transport.RoundTrip(r) // the client itself may refuse: it knows the bound
	if err == nil {
		answer.Body.Close()
		if answer.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("over HTTP/2: got %d, want 431", answer.StatusCode)
		}
	}
	f.well(t)
}

// A client that doesn't come to the end of its headers is cut off in time.
func TestSlowHeaders(t *testing.T) {
	t.Parallel()
	f := program(t, options{})
	conn := f.connect(t)
	_, _ = io.WriteString(conn, head(http.MethodGet, "/hello"))
	if text, err := io.ReadAll(conn); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %q, %v, want the connection's end", text, err)
	}
	f.well(t)
}

// A body that is announced and comes slowly, or not at all, keeps a slot until the
// revision's timeout and no longer.
func TestSlowBody(t *testing.T) {
	f := program(t, options{timeout: 300 * time.Millisecond, settings: queueproxy.Settings{Concurrency: 1}})
	conn := f.connect(t)
	_, _ = io.WriteString(conn, head(http.MethodPost, "/wait")+"Content-Length: 1000000\r\n\r\nbegun")
	if got := status(t, conn); got != http.StatusGatewayTimeout {
		t.Errorf("got %d, want 504", got)
	}
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("the connection wasn't closed: %v", err)
	}
	f.well(t) // the only slot is free again
}

// A client that doesn't read what it has asked for holds a slot until the
// revision's timeout, and no core.
func TestSlowReader(t *testing.T) {
	f := program(t, options{timeout: time.Second, settings: queueproxy.Settings{Concurrency: 2}})
	conn := f.connect(t)
	_, _ = io.WriteString(conn, head(http.MethodGet, "/flood")+"\r\n")
	for f.Usage().Instances == 0 {
		time.Sleep(time.Millisecond)
	}
	f.well(t)
	f.nothingLeft(t) // though nobody has read a byte
	// What was on its way breaks off: its end isn't one.
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err == nil {
		_, err = io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
	}
	if err == nil {
		t.Error("an endless answer came to its end")
	}
}

// A guest answers before it has read, reads what it likes of a body of 1 GiB, and
// the rest isn't read for it.
func TestLargeBody(t *testing.T) {
	f := program(t, options{})
	for path, want := range map[string]string{"/early/16777216": "early\n16777216\n", "/deaf": "deaf\n"} {
		conn := f.connect(t)
		_, _ = fmt.Fprintf(conn, "%sContent-Length: %d\r\n\r\n", head(http.MethodPost, path), 1<<30)
		taken := make(chan int, 1)
		go func() { taken <- pour(t, conn, strings.Repeat("x", 64<<10)) }()
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if !strings.HasPrefix(want, string(text)) || (err == nil && string(text) != want) {
			t.Errorf("%s: got %q, %v, want %q", path, text, err, want)
		}
		if n := <-taken; n > 64<<20 {
			t.Errorf("%s: %d bytes were taken", path, n)
		}
		f.well(t)
	}
}

// A body that is shorter than its length, since its client leaves, ends its guest.
func TestClientLiesAboutItsLength(t *testing.T) {
	f := program(t, options{})
	conn := f.connect(t)
	_, _ = io.WriteString(conn, head(http.MethodPost, "/wait")+"Content-Length: 10\r\n\r\nshort")
	for f.Usage().Instances == 0 {
		time.Sleep(time.Millisecond)
	}
	conn.Close()
	f.nothingLeft(t)
	for _, length := range []string{"-1", "1e3", "9999999999999999999999", "5\r\nContent-Length: 6"} {
		conn := f.connect(t)
		_, _ = io.WriteString(conn, head(http.MethodPost, "/wait")+"Content-Length: "+length+"\r\n\r\nshort")
		if got := status(t, conn); got != http.StatusBadRequest {
			t.Errorf("length %q: got %d, want 400", length, got)
		}
	}
	f.well(t)
}

// What a guest may do wrong costs that request, and no other.
func TestHostilePrograms(t *testing.T) {
	f := program(t, options{timeout: 10 * time.Second})
	for name, tc := range map[string]struct {
		path, body string
		status     int // 0: the answer breaks off
		text       string
	}{
		"without a word":         {"/silent", "", 200, ""},
		"traps mid-body":         {"/trap", "", 0, ""},
		"exits mid-body":         {"/exit/3", "", 0, ""},
		"status 99":              {"/raw", "Status: 99\n\n", 502, "Status"},
		"status 1000":            {"/raw", "Status: 1000\n\n", 502, "Status"},
		"status 101":             {"/raw", "Status: 101\n\n", 502, "Status"},
		"carriage return":        {"/raw", "Status: 200\nX-A: b\rX-Evil: 1\n\nbody", 502, "control"},
		"carriage return, twice": {"/raw", "Status: 200\r\nX-A: b\r\r\nX-Evil: 1\r\n\r\nbody", 502, "control"},
		"header in a location":   {"/raw", "Status: 302\nLocation: /\rSet-Cookie: evil=1\n\n", 502, "control"},
		"answer in an answer":    {"/raw", "Status: 200\nContent-Length: 2\n\nokHTTP/1.1 200 OK\r\n\r\nevil", 0, ""},
		"promises more":          {"/raw", "Status: 200\nContent-Length: 10\n\nshort", 0, ""},
		"promises nonsense":      {"/raw", "Status: 200\nContent-Length: -1\n\nbody", 502, "Content-Length"},
		"chunks of its own":      {"/raw", "Status: 200\nTransfer-Encoding: chunked\n\n0\r\n\r\n", 200, "0\r\n\r\n"},
		"10,000 headers":         {"/headers/10000", "", 502, "headers"},
		"headers without end":    {"/raw", "Status: 200\nA: " + strings.Repeat("x", 1<<20), 502, "headers"},
	} {
		r := f.request(t, http.MethodPost, tc.path, strings.NewReader(tc.body))
		answer, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			if tc.status != 0 {
				t.Errorf("%s: %v", name, err)
			}
			f.well(t)
			continue
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		switch {
		case tc.status == 0 && err == nil:
			t.Errorf("%s: got %d %q, whole", name, answer.StatusCode, text)
		case tc.status != 0 && (err != nil || answer.StatusCode != tc.status || !strings.Contains(string(text), tc.text)):
			t.Errorf("%s: got %d %.100q, %v, want %d with %q", name, answer.StatusCode, text, err, tc.status, tc.text)
		}
		for _, not := range []string{"X-Evil", "Set-Cookie"} {
			if _, ok := answer.Header[not]; ok {
				t.Errorf("%s: header %s got through", name, not)
			}
		}
		f.well(t)
	}
}

// A guest whose time is over says nothing any more: its caller has 504, or an
// answer that breaks off.
func TestAfterTheTimeout(t *testing.T) {
	f := program(t, options{timeout: 300 * time.Millisecond})
	f.expect(t, http.MethodGet, "/never", "", http.StatusGatewayTimeout, "request timeout")
	for _, path := range []string{"/late", "/flood"} {
		if got, text, err := send(f.request(t, http.MethodGet, path, nil)); err == nil {
			t.Errorf("%s: got %d and %d bytes, whole", path, got, len(text))
		}
	}
	f.well(t)
}

// Clients that ask and leave at once, by streams of one connection, keep nothing.
func TestClientsThatLeave(t *testing.T) {
	f := program(t, options{settings: queueproxy.Settings{Concurrency: 4}})
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	for range 500 {
		ctx, leave := context.WithCancel(t.Context())
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			if answer, err := transport.RoundTrip(f.request(t, http.MethodGet, "/late", nil).WithContext(ctx)); err == nil {
				answer.Body.Close()
			}
		}()
		leave()
		<-sent
	}
	f.nothingLeft(t)
	f.well(t)
}

// A server's client that neither reads nor stops to write stalls its own stream,
// until the revision's timeout; the others of the same guest go on.
func TestSlowClientsOfAServer(t *testing.T) {
	f := deploy(t, options{guest: "echo", abi: guest.ABIServer, timeout: 2 * time.Second})
	f.expect(t, http.MethodGet, "/hello", "", http.StatusOK, "hello\n")
	conn := f.connect(t)
	_, _ = fmt.Fprintf(conn, "%sContent-Length: %d\r\n\r\n", head(http.MethodPost, "/"), 1<<30)
	poured := make(chan int, 1)
	go func() { poured <- pour(t, conn, strings.Repeat("x", 64<<10)) }()
	for n := -1; n < 0; {
		f.expect(t, http.MethodGet, "/hello", "", http.StatusOK, "hello\n")
		select {
		case n = <-poured: // cut off
			if n > 64<<20 {
				t.Errorf("%d bytes were taken that nobody reads", n)
			}
		default:
		}
	}
	slow := f.connect(t)
	_, _ = io.WriteString(slow, head(http.MethodPost, "/")+"Content-Length: 1000\r\n\r\nbegun")
	answer, err := http.ReadResponse(bufio.NewReader(slow), nil)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(answer.Body); err == nil || !strings.HasSuffix(string(text), "begun") {
		t.Errorf("got %q, %v, want what it has sent, broken off", text, err)
	}
	answer.Body.Close()
	f.expect(t, http.MethodGet, "/hello", "", http.StatusOK, "hello\n")
}

// Requests of a revision without containerConcurrency are bounded by what its memory
// has room for: the others wait, and all are answered.
func TestBurstIsBoundByMemory(t *testing.T) {
	const limit, burst = 64 << 20, 200
	f := program(t, options{memory: limit})
	var all sync.WaitGroup
	for range burst {
		all.Go(func() { f.expect(t, http.MethodGet, "/busy/1", "", http.StatusOK, "busy\n") })
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		all.Wait()
	}()
	var most, instances int64
	for done := false; !done; {
		now := f.Usage()
		most, instances = max(most, now.Memory), max(instances, now.Instances)
		select {
		case <-answered:
			done = true
		case <-time.After(time.Millisecond):
		}
	}
	if most > limit || instances >= burst {
		t.Errorf("%d instances held %d bytes at once, more than %d", instances, most, limit)
	}
}

// A request that fails by the function's fault is in the log by its id, with more than
// its caller learns.
func TestFailuresAreInTheLog(t *testing.T) {
	log := &lines{}
	f := program(t, options{stderr: log})
	r := f.request(t, http.MethodPost, "/trap", nil, "X-Request-Id", "5f1c-77")
	if status, text, err := send(r); err == nil {
		t.Errorf("got %d %q, whole", status, text)
	}
	for !strings.Contains(log.String(), "request 5f1c-77: POST /trap: ") { // it is written beside the answer
		time.Sleep(time.Millisecond)
	}
	if !strings.Contains(log.String(), "wasm stack trace") {
		t.Errorf("no stack in the log: %s", log)
	}
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
