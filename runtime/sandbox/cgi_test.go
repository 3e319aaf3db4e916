package sandbox

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wisp-serving/wisp/runtime/guest"
)

// serveCGI starts CGI functions behind a real server.
func serveCGI(t testing.TB, spec Spec) (*Sandbox, *httptest.Server) {
	t.Helper()
	spec.ABI = guest.ABICGI
	spec.Module = "guest:cgi"
	s := start(t, spec)
	front := httptest.NewServer(s)
	t.Cleanup(func() {
		front.CloseClientConnections()
		front.Close()
	})
	return s, front
}

func TestCGI(t *testing.T) {
	_, front := serveCGI(t, Spec{Env: []string{"K_SERVICE=fn", "HTTP_PROXY=http://proxy", "REQUEST_METHOD=mine"}})
	host := front.Listener.Addr().String()
	for range 2 { // a fresh instance each time
		answer, text := fetch(t, http.MethodPut, front.URL+"/a%20b?c=d", "the body")
		if want := "PUT /a%20b?c=d " + host + " \"\" 1\nthe body"; answer.StatusCode != http.StatusOK || text != want {
			t.Errorf("got %d %q, want %q", answer.StatusCode, text, want)
		}
	}
	for path, want := range map[string]string{
		"/env/K_SERVICE":      "fn\n",
		"/env/REQUEST_METHOD": "GET\n",          // the request's, whatever the container's is
		"/env/HTTP_PROXY":     "http://proxy\n", // the container's; no header can be it
		"/env/REMOTE_ADDR":    "192.0.2.1\n",
	} {
		if _, text := fetch(t, http.MethodGet, front.URL+path, ""); text != want {
			t.Errorf("%s: got %q, want %q", path, text, want)
		}
	}
	for path, want := range map[string]int{"/status/404": 404, "/status/503": 503, "/silent": 200, "/exit/0": 200} {
		if answer, text := fetch(t, http.MethodGet, front.URL+path, ""); answer.StatusCode != want {
			t.Errorf("%s: got %d %q, want %d", path, answer.StatusCode, text, want)
		}
	}
	if answer, text := fetch(t, http.MethodGet, front.URL+"/%00", ""); answer.StatusCode != http.StatusBadRequest {
		t.Errorf("zero byte: got %d %q", answer.StatusCode, text)
	}
}

func TestCGIFailures(t *testing.T) {
	log := &record{}
	s, front := serveCGI(t, Spec{Stderr: log})
	for _, path := range []string{"/panic", "/exit/3"} {
		answer, err := http.Get(front.URL + path)
		if err != nil {
			continue // broken before it was sent, which is as good
		}
		if text, err := io.ReadAll(answer.Body); err == nil {
			t.Errorf("%s: got %q, whole", path, text)
		}
		answer.Body.Close()
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if text := strings.Join(log.all(), ""); !strings.Contains(text, "as told") {
		t.Errorf("log: %q", text)
	}
}

// endless is a body without an end.
type endless struct{ left int }

func (e *endless) Read(b []byte) (int, error) {
	if e.left <= 0 {
		return 0, io.EOF
	}
	n := min(len(b), e.left)
	e.left -= n
	return n, nil
}

// A guest that doesn't read answers at once, and the body isn't read for it.
func TestCGIThatDoesNotRead(t *testing.T) {
	_, front := serveCGI(t, Spec{})
	body := &endless{1 << 30}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, front.URL+"/deaf", body)
	if err != nil {
		t.Fatal(err)
	}
	r.ContentLength = 1 << 30
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(answer.Body)
	answer.Body.Close()
	if string(text) != "what?\n" {
		t.Errorf("got %q, %v", text, err)
	}
}

// Requests with many headers cost themselves.
func TestCGIManyHeaders(t *testing.T) {
	_, front := serveCGI(t, Spec{})
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, front.URL+"/", nil)
	for i := range 10_000 {
		r.Header["X-"+strings.Repeat("a", 1+i%10)+string(rune('A'+i%26))+strings.Repeat("b", i/260)] = []string{"v"}
	}
	r.Header.Set("X-Custom", "here")
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(answer.Body)
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK && answer.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("got %d %.100q", answer.StatusCode, text)
	}
	if _, text := fetch(t, http.MethodGet, front.URL+"/deaf", ""); text != "what?\n" {
		t.Errorf("the next one got %q", text)
	}
}

// A deadline and a client that leaves end a guest that sleeps, computes nothing,
// or waits for a body that doesn't come.
func TestCGIEnds(t *testing.T) {
	for _, path := range []string{"/sleep", "/listen"} {
		s, _ := serveCGI(t, Spec{})
		front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), 100*time.Millisecond)
			defer cancel()
			s.ServeHTTP(w, r.WithContext(ctx))
		}))
		in, out := io.Pipe()
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, front.URL+path, in)
		r.ContentLength = 100 // of which a part comes
		var writing sync.WaitGroup
		writing.Go(func() { _, _ = io.WriteString(out, "begun") })
		answer, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if answer.StatusCode != http.StatusGatewayTimeout {
			t.Errorf("%s: got %d", path, answer.StatusCode)
		}
		answer.Body.Close()
		_ = out.Close()
		writing.Wait()
		front.CloseClientConnections()
		front.Close()
		if err := s.Close(t.Context()); err != nil { // it has ended, hence doesn't wait
			t.Error(err)
		}
	}
}
