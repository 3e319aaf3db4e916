package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/wisp-serving/wisp/runtime/api"
	"github.com/wisp-serving/wisp/runtime/compile"
	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/runtime/instance"
	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
	"github.com/wisp-serving/wisp/runtime/modcache"
	"github.com/wisp-serving/wisp/test/guests"
)

// modules is shared by all tests: compiling the puppet takes a while.
var modules *modcache.Cache

// host has more cores than tests run guests that wait without saying so.
var host = instance.NewHost(instance.HostConfig{Cores: 100})

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sandbox-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	binaries := map[string][]byte{
		"loop":    wasmtest.Command(wasmtest.Loop),
		"imports": wasmtest.Importing([2]string{"env", "f"}),
		"reactor": wasmtest.Reactor(), // it has no _start
		"trap":    wasmtest.Command(wasmtest.Trap),
	}
	if binaries["puppet"], err = wasmtest.Puppet(); err != nil {
		log.Fatal(err)
	}
	modules, err = modcache.New(modcache.Config{
		Dir: dir, Memory: 1 << 30, Disk: 1 << 30, Compile: compile.Here,
		Load: func(digest string) ([]byte, error) {
			if b, ok := binaries[digest]; ok {
				return b, nil
			}
			if digest == "hello-c" {
				return os.ReadFile(os.Getenv("WISP_HELLO_WASM"))
			}
			if name, ok := strings.CutPrefix(digest, "guest:"); ok {
				return guestModule(name)
			}
			return nil, api.ImagePull(errors.New("no such module"))
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	status := m.Run()
	if err := modules.Close(); err != nil {
		log.Print(err)
		status = 1
	}
	if err := goleak.Find(); err != nil {
		log.Print(err)
		status = 1
	}
	return status
}

// guestModule returns a program of test/guests, or one of Knative's test images.
func guestModule(name string) ([]byte, error) {
	compile := guests.Program
	if strings.Contains(name, "/") {
		compile = guests.Knative
	}
	path, err := compile(context.Background(), name)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

// start starts a sandbox that is closed with the test.
func start(t testing.TB, spec Spec) *Sandbox {
	t.Helper()
	if spec.Module == "" {
		spec.Module = "puppet"
	}
	spec.ID, spec.Argv0 = t.Name(), "puppet.wasm"
	if spec.ABI == "" {
		spec.ABI = guest.ABIArgv
	}
	deps := Deps{Modules: modules, Host: host, Memory: 64 << 20, Limits: guest.DefaultLimits(64 << 10), Log: zap.NewNop().Sugar()}
	s, err := New(t.Context(), deps, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel() // stop what a failed test left
		_ = s.Close(ended)
	})
	return s
}

// call sends the puppet its verbs.
func call(ctx context.Context, s *Sandbox, verbs ...string) *httptest.ResponseRecorder {
	body, err := json.Marshal(map[string][]string{"args": verbs})
	if err != nil {
		panic(err)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodPost, "/", strings.NewReader(string(body))))
	return w
}

// record is a log that tests read.
type record struct {
	mu    sync.Mutex
	lines []string
	hold  chan struct{} // unless nil, each Write waits for it
}

func (r *record) Write(p []byte) (int, error) {
	if r.hold != nil {
		<-r.hold
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, string(p))
	return len(p), nil
}

func (r *record) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string{}, r.lines...)
}

func TestGuestSeesItsSpec(t *testing.T) {
	s := start(t, Spec{Args: []string{"env", "COLOUR"}, Env: []string{"COLOUR=red=green"}})
	w := call(t.Context(), s, "args", "out", "ü")
	want := "red=green\n\"puppet.wasm\"\n\"env\"\n\"COLOUR\"\n\"args\"\n\"out\"\n\"ü\"\nü\n"
	if w.Code != http.StatusOK || w.Body.String() != want {
		t.Errorf("got %d %q, want %q", w.Code, w.Body, want)
	}
}

func TestGuestSeesNothingOfTheNode(t *testing.T) {
	t.Setenv("SECRET", "of the node")
	s := start(t, Spec{})
	if w := call(t.Context(), s, "env", "SECRET"); w.Body.String() != "\n" {
		t.Errorf("a guest reads the node's environment: %q", w.Body)
	}
}

func TestStatuses(t *testing.T) {
	s := start(t, Spec{})
	for verb, want := range map[string]struct {
		status int
		body   string
	}{
		"out":  {200, "\n"},
		"exit": {200, ""}, // exit 0
		"x":    {500, "exit status 2\n"},
	} {
		if w := call(t.Context(), s, verb); w.Code != want.status || w.Body.String() != want.body {
			t.Errorf("%s: got %d %q, want %d %q", verb, w.Code, w.Body, want.status, want.body)
		}
	}
	if w := call(t.Context(), s, "out", "lost", "exit", "1"); w.Code != 500 || w.Body.String() != "exit status 1\n" {
		t.Errorf("exit 1: got %d %q", w.Code, w.Body)
	}
	if w := call(t.Context(), s, "exit", "-1"); w.Code != 500 || w.Body.String() != "exit status 4294967295\n" {
		t.Errorf("exit -1: got %d %q", w.Code, w.Body)
	}
}

// A hundred requests at once, each in an instance of its own: each counts from
// zero and gets its own answer.
func TestParallelRequestsShareNothing(t *testing.T) {
	s := start(t, Spec{})
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			own := fmt.Sprint("request ", i)
			w := call(t.Context(), s, "count", "out", own, "count")
			if want := "0\n" + own + "\n1\n"; w.Code != http.StatusOK || w.Body.String() != want {
				t.Errorf("got %d %q, want %q", w.Code, w.Body, want)
			}
		})
	}
	wg.Wait()
}

func TestDeadlineStopsTheGuest(t *testing.T) {
	for _, verb := range []string{"loop", "sleep", "floodlog"} {
		t.Run(verb, func(t *testing.T) {
			s := start(t, Spec{Stderr: io.Discard})
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if w := call(ctx, s, verb); w.Code != http.StatusGatewayTimeout || w.Body.String() != "request timeout\n" {
				t.Errorf("got %d %q, want 504 request timeout", w.Code, w.Body)
			}
			if w := call(t.Context(), s, "out", "next"); w.Body.String() != "next\n" {
				t.Errorf("the next request got %d %q", w.Code, w.Body)
			}
		})
	}
}

func TestClientThatWentAwayStopsTheGuest(t *testing.T) {
	log := &record{}
	s := start(t, Spec{Stderr: log})
	srv := httptest.NewServer(s)
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL, strings.NewReader(`{"args":["err","here","sleep"]}`))
	if err != nil {
		t.Fatal(err)
	}
	client := srv.Client()
	done := make(chan error, 1)
	go func() {
		resp, err := client.Do(r)
		if err == nil {
			resp.Body.Close()
		}
		done <- err
	}()
	waitRunning(s)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("client got %v", err)
	}
	if err := s.Close(t.Context()); err != nil { // without a deadline: the guest must have ended
		t.Error(err)
	}
}

// waitRunning waits until a request runs.
func waitRunning(s *Sandbox) {
	for {
		s.mu.Lock()
		running := s.running
		s.mu.Unlock()
		if running == 1 {
			return
		}
		goruntime.Gosched()
	}
}

func TestOutputIsBounded(t *testing.T) {
	s := start(t, Spec{})
	if w := call(t.Context(), s, "flood"); w.Code != 500 || w.Body.String() != "output is longer than 65536 bytes\n" {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
}

func TestLogGetsLinesInOrder(t *testing.T) {
	log := &record{}
	s := start(t, Spec{Stderr: log})
	if w := call(t.Context(), s, "err", "one", "out", "answer", "err", "two\nthree"); w.Body.String() != "answer\n" {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(log.all(), []string{"one\n", "two\n", "three\n"}); diff != "" {
		t.Errorf("got -, want +:\n%s", diff)
	}
}

func TestTrapIsInTheLogNotInTheAnswer(t *testing.T) {
	log := &record{}
	s := start(t, Spec{Stderr: log})
	if w := call(t.Context(), s, "panic"); w.Code != 500 || strings.Contains(w.Body.String(), "as told") {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(log.all(), ""); !strings.Contains(text, "as told") {
		t.Errorf("log: %q", text)
	}
}

func TestSlowLogSlowsNoAnswer(t *testing.T) {
	log := &record{hold: make(chan struct{})}
	s := start(t, Spec{Stderr: log})
	for range 3 {
		if w := call(t.Context(), s, "err", "line", "out", "answer"); w.Code != http.StatusOK {
			t.Errorf("got %d", w.Code)
		}
	}
	// The guest is stopped by its deadline, not by the log.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if w := call(ctx, s, "floodlog"); w.Code != http.StatusGatewayTimeout {
		t.Errorf("got %d", w.Code)
	}
	close(log.hold)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := log.all(); len(got) < 3 || got[2] != "line\n" {
		t.Errorf("%d lines", len(got))
	}
}

func TestLineQueueDropsAndSaysSo(t *testing.T) {
	log := &record{hold: make(chan struct{})}
	q := newLineQueue(nil, log)
	line := []byte(strings.Repeat("x", 1023))
	for range 4096 {
		q.offer(line)
	}
	close(log.hold)
	q.wait()
	q.offer([]byte("later"))
	q.wait()
	var got []string
	dropped := 0
	for _, l := range log.all() {
		// Once for each batch: the writer may have begun in the midst of the flood.
		var n int
		if found, _ := fmt.Sscanf(l, "wisp: %d lines dropped here", &n); found == 1 {
			dropped += n
			continue
		}
		got = append(got, l)
	}
	if dropped == 0 || len(got)+dropped != 4097 || got[len(got)-1] != "later\n" {
		t.Errorf("%d lines written, %d said to be dropped, of 4097; the last is %q", len(got), dropped, got[len(got)-1])
	}
}

func TestCloseWaitsForRequests(t *testing.T) {
	s := start(t, Spec{})
	answered := make(chan *httptest.ResponseRecorder, 1)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	go func() { answered <- call(ctx, s, "loop") }()
	waitRunning(s)
	closed := make(chan error, 1)
	go func() { closed <- s.Close(t.Context()) }()
	waitClosed(s)
	if w := call(t.Context(), s, "out", "x"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("a request after Close got %d, want 503", w.Code)
	}
	select {
	case err := <-closed:
		t.Fatalf("Close returned %v while a request ran", err)
	default:
	}
	leave()
	if w := <-answered; w.Code != 499 { // its client has gone; Close didn't stop it
		t.Errorf("the running request got %d, want 499", w.Code)
	}
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
}

func waitClosed(s *Sandbox) {
	for {
		s.mu.Lock()
		closed := s.closed
		s.mu.Unlock()
		if closed {
			return
		}
		goruntime.Gosched()
	}
}

func TestCloseStopsWhatIsLeft(t *testing.T) {
	for _, module := range []string{"loop", "puppet"} {
		t.Run(module, func(t *testing.T) {
			var closes int
			s := start(t, Spec{Module: module})
			s.deps.OnClose = func(*Sandbox) { closes++ }
			answered := make(chan *httptest.ResponseRecorder, 1)
			go func() { answered <- call(t.Context(), s, "sleep") }()
			waitRunning(s)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if err := s.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Close: got %v, want DeadlineExceeded", err)
			}
			if w := <-answered; w.Code != http.StatusServiceUnavailable {
				t.Errorf("the stopped request got %d, want 503", w.Code)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Errorf("a second Close: %v", err)
			}
			if closes != 1 {
				t.Errorf("OnClose was called %d times", closes)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	deps := Deps{Modules: modules, Host: host, Memory: 64 << 20, Limits: guest.DefaultLimits(1), Log: zap.NewNop().Sugar()}
	for name, tc := range map[string]struct {
		spec Spec
		kind error
		want string
	}{
		"abi":     {Spec{ID: "ns/pod", Module: "puppet", Argv0: "x", ABI: "http"}, api.ErrUnusable, `start ns/pod: abi = "http", must be one of cgi, argv, server, command`},
		"env":     {Spec{ID: "ns/pod", Module: "puppet", Argv0: "x", ABI: "argv", Env: []string{"A"}}, api.ErrUnusable, "KEY=value"},
		"imports": {Spec{ID: "ns/pod", Module: "imports", Argv0: "x", ABI: "argv"}, api.ErrUnusable, "unknown imports: env.f"},
		"module":  {Spec{ID: "ns/pod", Module: "other", Argv0: "x", ABI: "argv"}, api.ErrImagePull, "no such module"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(t.Context(), deps, tc.spec)
			if !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %v with %q", err, tc.kind, tc.want)
			}
		})
	}
}

func TestProvenSkipsTheTrial(t *testing.T) {
	deps := Deps{Modules: modules, Host: host, Memory: 64 << 20, Limits: guest.DefaultLimits(1), Log: zap.NewNop().Sugar()}
	spec := Spec{ID: "ns/pod", Module: "reactor", Argv0: "x", ABI: "argv"}
	if _, err := New(t.Context(), deps, spec); !errors.Is(err, api.ErrUnusable) {
		t.Errorf("tried: got %v, want ErrUnusable", err)
	}
	spec.Proven = true
	s, err := New(t.Context(), deps, spec)
	if err != nil {
		t.Fatalf("proven: %v", err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
