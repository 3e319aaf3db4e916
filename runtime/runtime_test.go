package runtime_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"go.uber.org/zap"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/runtime"
	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/sandbox"
)

// newRegistry returns the host of a registry.
func newRegistry(t testing.TB) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(func() {
		srv.Close()
		remote.DefaultTransport.(*http.Transport).CloseIdleConnections()
	})
	return strings.TrimPrefix(srv.URL, "http://")
}

func newRuntime(t testing.TB, dir string) *runtime.Runtime {
	t.Helper()
	return open(t, runtime.Config{DataDir: dir, ImageStore: 1 << 30, Guest: config.DefaultNode().Guest, Log: zap.NewNop().Sugar()})
}

func open(t testing.TB, cfg runtime.Config) *runtime.Runtime {
	t.Helper()
	r, err := runtime.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// startFunction pushes, pulls and starts a module, as the life of a pod does.
func startFunction(t testing.TB, r *runtime.Runtime, ref string, module []byte) (*sandbox.Sandbox, oci.Image) {
	t.Helper()
	if _, err := oci.Push(t.Context(), oci.PushConfig{Reference: ref, Module: module, FileName: "fn.wasm"}); err != nil {
		t.Fatal(err)
	}
	img, err := r.Pull(t.Context(), oci.Request{Reference: ref})
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.Start(t.Context(), sandbox.Spec{ID: "default/fn", Module: img.ModuleDigest, Argv0: img.FileName(), ABI: "argv"})
	if err != nil {
		t.Fatal(err)
	}
	return s, img
}

func post(h http.Handler, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body)))
	return w
}

func TestFromReferenceToAnswer(t *testing.T) {
	puppet, err := wasmtest.Puppet()
	if err != nil {
		t.Fatal(err)
	}
	host, dir := newRegistry(t), t.TempDir()
	r := newRuntime(t, dir)
	s, img := startFunction(t, r, host+"/fn:v1", puppet)
	if w := post(s, `{"args":["args"]}`); w.Code != http.StatusOK || w.Body.String() != "\"fn.wasm\"\n\"args\"\n" {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if w := post(s, `{}`); w.Code != http.StatusServiceUnavailable {
		t.Errorf("after Close: got %d, want 503", w.Code)
	}
	if _, err := r.Start(t.Context(), sandbox.Spec{ID: "x", Module: img.ModuleDigest, ABI: "argv"}); err == nil {
		t.Error("Start after Close: no error")
	}

	// Another runtime finds module and compiled code where this one left them.
	again := newRuntime(t, dir)
	if _, err := again.Pull(t.Context(), oci.Request{Reference: img.Reference}); err != nil {
		t.Error(err)
	}
	if _, err := again.Start(t.Context(), sandbox.Spec{ID: "x", Module: img.ModuleDigest, ABI: "argv"}); err != nil {
		t.Error(err)
	}
}

func TestErrorsToBranchOn(t *testing.T) {
	host := newRegistry(t)
	r := newRuntime(t, t.TempDir())
	if _, err := r.Pull(t.Context(), oci.Request{Reference: host + "/none:v1"}); !errors.Is(err, runtime.ErrImagePull) || errors.Is(err, runtime.ErrUnusable) {
		t.Errorf("an image that isn't there: got %v, want ErrImagePull", err)
	}
	ref := host + "/imports:v1"
	if _, err := oci.Push(t.Context(), oci.PushConfig{Reference: ref, Module: wasmtest.Importing([2]string{"env", "f"}), FileName: "fn.wasm"}); err != nil {
		t.Fatal(err)
	}
	img, err := r.Pull(t.Context(), oci.Request{Reference: ref})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Start(t.Context(), sandbox.Spec{ID: "default/fn", Module: img.ModuleDigest, ABI: "argv"})
	if !errors.Is(err, runtime.ErrUnusable) || !strings.Contains(err.Error(), "default/fn") || !strings.Contains(err.Error(), "env.f") {
		t.Errorf("unknown import: got %v, want ErrUnusable that names it", err)
	}
}

func TestCloseStopsEverySandbox(t *testing.T) {
	host := newRegistry(t)
	r := newRuntime(t, t.TempDir())
	s, _ := startFunction(t, r, host+"/loop:v1", wasmtest.Command(wasmtest.Loop))
	entered := make(chan struct{}, 2)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			body := readerFunc(func(p []byte) (int, error) {
				entered <- struct{}{}
				return copy(p, `{}`), io.EOF
			})
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", body))
			if w.Code != http.StatusServiceUnavailable {
				t.Errorf("got %d, want 503", w.Code)
			}
		})
		<-entered
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	// A request that has been read runs by now or is refused; both end.
	if err := r.Close(ended); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	wg.Wait()
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestNewRefuses(t *testing.T) {
	guest := config.DefaultNode().Guest
	for name, cfg := range map[string]runtime.Config{
		"no log":    {DataDir: t.TempDir(), Guest: guest},
		"no limits": {DataDir: t.TempDir(), Log: zap.NewNop().Sugar()},
		"no folder": {DataDir: "/dev/null", Guest: guest, Log: zap.NewNop().Sugar()},
	} {
		if r, err := runtime.New(cfg); err == nil {
			r.Close(t.Context())
			t.Errorf("%s: no error", name)
		}
	}
}

// sortArgs are the arguments of the benchmarks, and sorted what comes of them.
var sortArgs = []string{"1111", "2345", "8", "99", "11234", "12312", "1231231", "-10000"}

const sorted = "-10000 8 99 1111 2345 11234 12312 1231231\n"

// sortModule returns the C sort that make compiled, for $WISP_SORT_WASM names
// it; else a Go guest that prints the answer.
func sortModule(b *testing.B) (module []byte, body string) {
	b.Helper()
	path := os.Getenv("WISP_SORT_WASM")
	if path == "" {
		b.Log("WISP_SORT_WASM is not set: a Go guest runs instead of the C sort")
		return goModule(b)
	}
	module, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	return module, `{"args":["` + strings.Join(sortArgs, `","`) + `"]}`
}

// goModule returns a Go guest that prints the same.
func goModule(b *testing.B) (module []byte, body string) {
	b.Helper()
	module, err := wasmtest.Puppet()
	if err != nil {
		b.Fatal(err)
	}
	return module, fmt.Sprintf(`{"args":["out",%q]}`, strings.TrimSpace(sorted))
}

// BenchmarkInvoke is a request from its handler on: body to arguments, a fresh
// instance, its run, its answer.
func BenchmarkInvoke(b *testing.B) {
	r, host := newRuntime(b, b.TempDir()), newRegistry(b)
	start := func(name string, module []byte, body string) *sandbox.Sandbox {
		s, _ := startFunction(b, r, host+"/"+name+":v1", module)
		if w := post(s, body); w.Code != http.StatusOK || w.Body.String() != sorted {
			b.Fatalf("%s: got %d %q", name, w.Code, w.Body)
		}
		return s
	}
	one := func(s *sandbox.Sandbox, body string) func(*testing.B) {
		return func(b *testing.B) {
			b.ReportAllocs()
			c := newCaller(s, body)
			for b.Loop() {
				c.call()
			}
		}
	}
	module, body := goModule(b)
	b.Run("go", one(start("go", module, body), body))
	module, body = sortModule(b)
	s := start("sort", module, body)
	b.Run("one", one(s, body))
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			c := newCaller(s, body)
			for pb.Next() {
				c.call()
			}
		})
	})
}

// caller calls a handler without the costs of a server or of httptest.
type caller struct {
	handler http.Handler
	request *http.Request
	body    *strings.Reader
	text    string
	header  http.Header
}

func newCaller(h http.Handler, body string) *caller {
	c := &caller{handler: h, body: strings.NewReader(""), text: body, header: http.Header{}}
	c.request = httptest.NewRequest(http.MethodPost, "/", nil)
	c.request.Body = io.NopCloser(c.body)
	c.request.Header.Set("Content-Type", "application/json")
	return c
}

func (c *caller) call() {
	c.body.Reset(c.text)
	clear(c.header)
	c.handler.ServeHTTP(c, c.request)
}

func (c *caller) Header() http.Header         { return c.header }
func (c *caller) Write(p []byte) (int, error) { return len(p), nil }
func (c *caller) WriteHeader(status int) {
	if status != http.StatusOK {
		panic(fmt.Sprint("status ", status))
	}
}

// BenchmarkForkExec runs samples/sort/sort.c as a native process, which is what
// a fresh instance is measured against.
func BenchmarkForkExec(b *testing.B) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		b.Skip("no C compiler")
	}
	native := filepath.Join(b.TempDir(), "sort")
	if out, err := exec.Command(cc, "-O2", "-o", native, "../samples/sort/sort.c").CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	b.ReportAllocs()
	for b.Loop() {
		out, err := exec.Command(native, sortArgs...).Output()
		if err != nil || !bytes.Equal(out, []byte(sorted)) {
			b.Fatalf("got %q, %v", out, err)
		}
	}
}

// BenchmarkStart is what a pod costs once its image is there: compile is the
// first start of a module, load one after a restart of the node.
func BenchmarkStart(b *testing.B) {
	module, _ := sortModule(b)
	host := newRegistry(b)
	dir := b.TempDir()
	spec := sandbox.Spec{ID: "bench", ABI: "argv"}
	first := newRuntime(b, dir)
	_, img := startFunction(b, first, host+"/sort:v1", module)
	spec.Module = img.ModuleDigest
	if err := first.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	for name, prepare := range map[string]func(){
		"load":    func() {},
		"compile": func() { os.RemoveAll(filepath.Join(dir, "compiled")) },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				prepare()
				r := newRuntime(b, dir)
				b.StartTimer()
				if _, err := r.Start(b.Context(), spec); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := r.Close(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
