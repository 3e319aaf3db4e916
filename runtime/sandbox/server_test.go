package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/wisp-serving/wisp/runtime/guest"
)

// serve starts a server whose guest runs, behind a real HTTP server of both
// versions, and returns that one's address. The guest ends with the test.
func serve(t testing.TB, spec Spec) (*Sandbox, *httptest.Server) {
	t.Helper()
	spec.ABI = guest.ABIServer
	if spec.Module == "" {
		spec.Module = "guest:echo"
	}
	s := start(t, spec)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	front := httptest.NewUnstartedServer(s)
	front.Config.Protocols = new(http.Protocols)
	front.Config.Protocols.SetHTTP1(true)
	front.Config.Protocols.SetUnencryptedHTTP2(true)
	front.Start()
	t.Cleanup(func() {
		front.CloseClientConnections()
		front.Close()
		cancel()
		<-ended
	})
	return s, front
}

// fetch sends a request and returns the answer with its body.
func fetch(t testing.TB, method, url, body string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Forwarded-For", "192.0.2.1")
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Errorf("%s: %v", url, err)
	}
	answer.Body.Close()
	return answer, string(text)
}

func TestServerAnswers(t *testing.T) {
	_, front := serve(t, Spec{})
	answer, text := fetch(t, http.MethodPut, front.URL+"/a%2fb;c?x=1;y&z", "the body")
	want := fmt.Sprintf("PUT /a%%2fb;c?x=1;y&z HTTP/1.1 %s\n", front.Listener.Addr())
	if answer.StatusCode != http.StatusOK || !strings.HasPrefix(text, want) || !strings.HasSuffix(text, "\n\nthe body") {
		t.Errorf("got %d %q, want %q and the body", answer.StatusCode, text, want)
	}
	if !strings.Contains(text, `X-Forwarded-For: ["192.0.2.1"]`) {
		t.Errorf("headers: %q", text)
	}
	if got := answer.Trailer.Get("X-Read"); got != "8" {
		t.Errorf("trailer %q", got)
	}
}

func TestServerByHTTP2(t *testing.T) {
	_, front := serve(t, Spec{H2C: true})
	if _, text := fetch(t, http.MethodGet, front.URL+"/", ""); !strings.HasPrefix(text, "GET / HTTP/2.0 ") {
		t.Errorf("got %q", text)
	}
}

// Bytes flow both ways at once, as they come.
func TestServerStreamsBothWays(t *testing.T) {
	for _, h2c := range []bool{false, true} {
		_, front := serve(t, Spec{H2C: h2c})
		transport := &http.Transport{Protocols: new(http.Protocols)}
		transport.Protocols.SetUnencryptedHTTP2(true)
		defer transport.CloseIdleConnections()
		in, out := io.Pipe()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, front.URL+"/", in)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(answer.Body)
		for line, err := lines.ReadString('\n'); line != "\n"; line, err = lines.ReadString('\n') {
			if err != nil {
				t.Fatal(err)
			}
		}
		for i := range 50 {
			want := fmt.Sprintln("line", i)
			if _, err := io.WriteString(out, want); err != nil {
				t.Fatal(err)
			}
			if got, err := lines.ReadString('\n'); got != want {
				t.Fatalf("h2c %v: got %q, %v, want %q", h2c, got, err, want)
			}
		}
		_ = out.Close()
		if rest, err := io.ReadAll(lines); len(rest) > 0 || err != nil {
			t.Errorf("got %q, %v", rest, err)
		}
		answer.Body.Close()
	}
}

func TestServerTakesRequestsAtOnce(t *testing.T) {
	_, front := serve(t, Spec{})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for range 5 {
				body := strings.Repeat(fmt.Sprint(i, " "), 5000)
				if _, text := fetch(t, http.MethodPost, front.URL+"/", body); !strings.HasSuffix(text, "\n\n"+body) {
					t.Errorf("request %d: %d bytes", i, len(text))
				}
			}
		})
	}
	wg.Wait()
}

// What a guest may do wrong costs that request, and no other.
func TestServerHostileAnswers(t *testing.T) {
	s, front := serve(t, Spec{})
	raw := func(text string) (int, string) {
		answer, body := fetch(t, http.MethodPost, front.URL+"/raw", text)
		return answer.StatusCode, body
	}
	for name, tc := range map[string]struct {
		answer string
		status int
	}{
		"right":             {"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok", 201},
		"nothing":           {"", 502},
		"no HTTP":           {"hello\r\n\r\n", 502},
		"status 99":         {"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n", 502},
		"status 1000":       {"HTTP/1.1 1000 X\r\nContent-Length: 0\r\n\r\n", 502},
		"status 999":        {"HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n", 502},
		"headers for ever":  {"HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", 2*256<<10) + "\r\n\r\n", 502},
		"two lengths":       {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 502},
		"negative length":   {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", 502},
		"a header's break":  {"HTTP/1.1 200 OK\r\nA: b\rX-Evil: 1\r\nContent-Length: 0\r\n\r\n", 502},
		"a folded header":   {"HTTP/1.1 200 OK\r\nA: b\r\n X-Evil: 1\r\nContent-Length: 0\r\n\r\n", 200},
		"answers unasked":   {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 200},
		"switches protocol": {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", 502},
	} {
		status, body := raw(tc.answer)
		if status != tc.status {
			t.Errorf("%s: got %d %q, want %d", name, status, body, tc.status)
		}
		if status == http.StatusBadGateway && body != "bad gateway\n" {
			t.Errorf("%s: the caller sees %q", name, body)
		}
		if _, text := fetch(t, http.MethodGet, front.URL+"/hello", ""); text != "hello\n" {
			t.Errorf("after %s: %q", name, text)
		}
	}
	// An answer that breaks off is an answer that breaks off.
	for _, target := range []string{"/panic", "/raw"} {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, front.URL+target, strings.NewReader("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbegun"))
		answer, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(answer.Body); err == nil || string(text) != "begun" {
			t.Errorf("%s: got %q, %v", target, text, err)
		}
		answer.Body.Close()
	}
	if s.Usage().Memory == 0 {
		t.Error("the guest has gone")
	}
}

// A client that leaves ends its request in the guest.
func TestServerSeesClientsLeave(t *testing.T) {
	_, front := serve(t, Spec{})
	ctx, cancel := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, http.MethodGet, front.URL+"/hang", nil)
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	answer.Body.Close()
	for text := ""; text != "1\n"; {
		_, text = fetch(t, http.MethodGet, front.URL+"/gone", "")
	}
}

func TestServerUpgrades(t *testing.T) {
	_, front := serve(t, Spec{})
	conn, err := net.Dial("tcp", front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: Upgrade\r\n\r\nwelcome"
	fmt.Fprintf(conn, "POST /raw HTTP/1.1\r\nHost: x\r\nUpgrade: chat\r\nConnection: Upgrade\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	text, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(text), "HTTP/1.1 101 ") || !strings.HasSuffix(string(text), "\r\n\r\nwelcome") {
		t.Errorf("got %q, %v", text, err)
	}
}

// Requests that come before the guest listens wait for it; connections don't.
func TestServerStartsLate(t *testing.T) {
	s := start(t, Spec{ABI: guest.ABIServer, Module: "guest:echo", Env: []string{"PORT=9000"}})
	if _, err := s.Dial(t.Context(), 9000); !errors.Is(err, errNoListener) {
		t.Errorf("dial: %v", err)
	}
	answered := make(chan *httptest.ResponseRecorder)
	go func() {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/hello", nil))
		answered <- w
	}()
	waitRunning(s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	if w := <-answered; w.Body.String() != "hello\n" {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	waiting, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequestWithContext(waiting, http.MethodGet, "/hello", nil))
	if w.Code != http.StatusGatewayTimeout {
		t.Errorf("without an instance: got %d %q", w.Code, w.Body)
	}
}

func TestServerPorts(t *testing.T) {
	s, front := serve(t, Spec{Ports: []int{8080, 9090}})
	if _, text := fetch(t, http.MethodGet, front.URL+"/hello", ""); text != "hello\n" {
		t.Fatalf("got %q", text)
	}
	if _, err := s.Dial(t.Context(), 9090); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("before it listens: %v", err)
	}
	if _, text := fetch(t, http.MethodGet, front.URL+"/listen/9090", ""); text != ":9090\n" {
		t.Fatalf("got %q", text)
	}
	conn, err := s.Dial(t.Context(), 9090)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		_, _ = conn.Write(want)
		_ = conn.(interface{ CloseWrite() error }).CloseWrite()
	}()
	if got, err := io.ReadAll(conn); !bytes.Equal(got, want) || err != nil {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if _, err := s.Dial(t.Context(), 7070); !errors.Is(err, errNoListener) {
		t.Errorf("another port: %v", err)
	}
}

// The guest ends; the next one is another.
func TestServerRestarts(t *testing.T) {
	s := start(t, Spec{ABI: guest.ABIServer, Module: "guest:echo"})
	for range 3 {
		ended := make(chan error, 1)
		go func() { ended <- s.Run(t.Context()) }()
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/exit/3", nil))
		if w.Code != http.StatusBadGateway {
			t.Errorf("got %d %q", w.Code, w.Body)
		}
		exit := new(guest.ExitError)
		if err := <-ended; !errors.As(err, &exit) || exit.Status != 3 {
			t.Errorf("Run: %v", err)
		}
	}
}

// Close lets a request finish, and ends the guest then.
func TestServerCloses(t *testing.T) {
	s := start(t, Spec{ABI: guest.ABIServer, Module: "guest:echo"})
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context()) }()
	in, out := io.Pipe()
	w := httptest.NewRecorder()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", in))
	}()
	_, _ = io.WriteString(out, "begun") // it is read by then
	closed := make(chan error, 1)
	go func() { closed <- s.Close(t.Context()) }()
	waitClosed(s)
	if _, err := s.Dial(t.Context(), 8080); !errors.Is(err, guest.ErrClosed) {
		t.Errorf("dial: %v", err)
	}
	_, _ = io.WriteString(out, " and ended")
	_ = out.Close()
	<-answered
	if !strings.HasSuffix(w.Body.String(), "begun and ended") {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := <-ended; !errors.Is(err, guest.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
}

// Requests that come one after the other share a connection, whatever they bring; an
// answer that isn't read to its end costs one.
func TestServerKeepsConnections(t *testing.T) {
	_, front := serve(t, Spec{})
	conns := func() (had, open int) {
		_, text := fetch(t, http.MethodGet, front.URL+"/conns", "")
		if _, err := fmt.Sscan(text, &had, &open); err != nil {
			t.Fatal(err)
		}
		return had, open
	}
	for i := range 50 {
		body := strings.Repeat("x", i*1000)
		if _, text := fetch(t, http.MethodPost, front.URL+"/", body); !strings.HasSuffix(text, "\n\n"+body) {
			t.Fatalf("request %d: got %d bytes", i, len(text))
		}
		fetch(t, http.MethodHead, front.URL+"/hello", "")
	}
	if had, open := conns(); had != 1 || open != 1 {
		t.Errorf("the guest has had %d connections and has %d, want one", had, open)
	}
	ctx, leave := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, http.MethodGet, front.URL+"/hang", nil)
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	leave()
	answer.Body.Close()
	had, open := conns()
	for ; open != 1; had, open = conns() { // until it has noticed
	}
	if had != 2 {
		t.Errorf("the guest has had %d connections, want a second one", had)
	}
}

// A guest that hangs up after an answer, without having said so, breaks no request
// that has no body: one of which it has read nothing goes out again.
func TestServerHangsUp(t *testing.T) {
	_, front := serve(t, Spec{})
	for range 200 {
		if _, text := fetch(t, http.MethodPost, front.URL+"/raw", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); text != "ok" {
			t.Fatalf("got %q", text)
		}
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			if _, text := fetch(t, method, front.URL+"/hello", ""); text != "hello\n" {
				t.Fatalf("%s: got %q", method, text)
			}
		}
	}
}

// What comes before an answer goes on to who has asked, as it comes.
func TestServerAnswersInAdvance(t *testing.T) {
	_, front := serve(t, Spec{})
	var early []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
		early = append(early, fmt.Sprintln(code, header.Get("Link")))
		return nil
	}})
	text := "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	r, _ := http.NewRequestWithContext(ctx, http.MethodPost, front.URL+"/raw", strings.NewReader(text))
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); string(body) != "ok" || err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("got %d %q, %v", answer.StatusCode, body, err)
	}
	if diff := cmp.Diff(early, []string{"103 </a>\n", "102 \n"}); diff != "" {
		t.Errorf("got -, want +:\n%s", diff)
	}
}

// A server that nobody asks does nothing, not even call its host: it gets no turn on
// a core, for as long as another one answers a few hundred requests.
func TestIdleServerGetsNoTurn(t *testing.T) {
	idle, front := serve(t, Spec{})
	if _, text := fetch(t, http.MethodGet, front.URL+"/hello", ""); text != "hello\n" {
		t.Fatalf("got %q", text)
	}
	_, busy := serve(t, Spec{})
	for range 50 { // it may have had something left to do
		before := idle.Usage().CPU
		for range 200 {
			fetch(t, http.MethodGet, busy.URL+"/hello", "")
		}
		if idle.Usage().CPU == before {
			return
		}
	}
	t.Error("a guest that nobody asks gets turn after turn")
}
