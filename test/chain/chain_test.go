// Package chain tests the request path as a node wires it: a server for HTTP/1.1 and
// h2c, the activator, Knative's proxy, a sandbox, and guests that are compiled from
// source. There is no Kubernetes.
package chain

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"
	knativeactivator "knative.dev/serving/pkg/activator"
	"knative.dev/serving/pkg/autoscaler/metrics"

	"github.com/wisp-serving/wisp/activator"
	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/provider/queueproxy"
	"github.com/wisp-serving/wisp/runtime"
	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/sandbox"
	"github.com/wisp-serving/wisp/test/guests"
	"github.com/wisp-serving/wisp/test/platform/tools"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run runs the tests on one runtime, in which each guest is compiled once.
func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "chain-")
	if err != nil {
		log.Print(err)
		return 1
	}
	defer os.RemoveAll(dir)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	images = strings.TrimPrefix(server.URL, "http://")
	cores := goruntime.GOMAXPROCS(0)
	defer runtime.SetUpProcess()() // as a node does
	node, err = runtime.New(runtime.Config{
		DataDir: dir, ImageStore: 1 << 30, Guest: config.DefaultNode().Guest, Log: zap.NewNop().Sugar(), Cores: cores,
	})
	if err != nil {
		log.Print(err)
		return 1
	}
	status := m.Run()
	if err := node.Close(context.Background()); err != nil {
		log.Print(err)
		status = 1
	}
	server.Close()
	for _, transport := range []http.RoundTripper{remote.DefaultTransport, http.DefaultTransport} {
		transport.(*http.Transport).CloseIdleConnections()
	}
	if err := goleak.Find(); err != nil {
		log.Print(err)
		status = 1
	}
	return status
}

var (
	node   *runtime.Runtime
	images string // a registry's host
)

// options say what is deployed.
type options struct {
	guest    string // a folder of test/guests: a program in Go, or a file of C
	abi      string
	args     []string
	env      []string
	memory   int64
	settings queueproxy.Settings
	timeout  time.Duration // of a request; 0 is a minute
	traces   trace.TracerProvider
	stderr   io.Writer
	native   http.Handler // in the place of a guest
	alone    bool         // native has a server of its own, in the place of a node
	beside   *served      // a node that there is already; nil for another one
	name     string       // of the revision, if it isn't to be revision's
}

// function is a revision that runs, and its node.
type function struct {
	*sandbox.Sandbox
	*served
	abi string
	key types.NamespacedName
}

// served is a node's request path.
type served struct {
	*activator.Activator
	addr      string
	revisions revisions
}

// revision is that of a function, unless its options say another name.
var revision = types.NamespacedName{Namespace: "default", Name: "fn-00001"}

// revisions are those of a node, under a lock.
type revisions struct{ *sync.Map }

func (r revisions) Get(key types.NamespacedName) (activator.Revision, bool) {
	known, ok := r.Load(key)
	if !ok {
		return activator.Revision{}, false
	}
	return known.(activator.Revision), true
}

// deploy runs a guest as a node does, until the test ends.
func deploy(t testing.TB, o options) *function {
	t.Helper()
	if o.alone {
		server := httptest.NewServer(o.native)
		t.Cleanup(server.Close)
		return &function{served: &served{addr: server.Listener.Addr().String()}}
	}
	var s *sandbox.Sandbox
	if o.native == nil {
		s = startSandbox(t, o)
		o.native = s
	}
	f := &function{Sandbox: s, abi: o.abi, key: revision}
	if o.name != "" {
		f.key.Name = o.name
	}
	if f.served = o.beside; f.served == nil {
		f.served = serveNode(t, o.traces)
	}
	o.settings.Namespace, o.settings.Revision = f.key.Namespace, f.key.Name
	front, err := queueproxy.New(queueproxy.Config{Settings: o.settings, Function: o.native, Pod: "fn"})
	if err != nil {
		t.Fatal(err)
	}
	if o.timeout == 0 {
		o.timeout = time.Minute
	}
	f.revisions.Store(f.key, activator.Revision{NamespacedName: f.key, Concurrency: o.settings.Concurrency, Timeout: o.timeout})
	f.Add(f.key, "pod", o.settings.Concurrency, front)
	return f
}

// serveNode runs a node's request path until the test ends.
func serveNode(t testing.TB, traces trace.TracerProvider) *served {
	t.Helper()
	node := &served{addr: freeAddr(t), revisions: revisions{new(sync.Map)}}
	var err error
	node.Activator, err = activator.New(activator.Config{
		Addr:         node.addr,
		NodeName:     "node",
		Revisions:    node.revisions,
		StartEarly:   func(context.Context, activator.Revision) error { return errors.New("it runs") },
		Report:       func([]metrics.StatMessage) {},
		QueueTimeout: time.Minute,
		DrainTimeout: 10 * time.Second,
		Traces:       traces,
		Log:          zap.NewNop().Sugar(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := node.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	<-node.Ready()
	return node
}

// startSandbox starts a guest; a server runs until the test ends, and starts again
// where it has ended before.
func startSandbox(t testing.TB, o options) *sandbox.Sandbox {
	t.Helper()
	module := compiled(t, o.guest)
	ref := images + "/" + o.guest + ":v1"
	if _, err := oci.Push(t.Context(), oci.PushConfig{Reference: ref, Module: module, FileName: "fn.wasm"}); err != nil {
		t.Fatal(err)
	}
	image, err := node.Pull(t.Context(), oci.Request{Reference: ref})
	if err != nil {
		t.Fatal(err)
	}
	s, err := node.Start(t.Context(), sandbox.Spec{
		ID: o.guest, Module: image.ModuleDigest, Argv0: "fn.wasm", Args: o.args, Env: o.env, ABI: o.abi,
		Memory: o.memory, Stderr: o.stderr,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	if o.abi == guest.ABIServer {
		running.Go(func() {
			for ctx.Err() == nil {
				_ = s.Run(ctx)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// compiled returns the module of a guest.
func compiled(t testing.TB, name string) []byte {
	t.Helper()
	source := "../guests/" + name + "/" + name + ".c"
	if sample, ok := strings.CutPrefix(name, "sample-"); ok {
		source = "../../samples/" + sample + "/" + sample + ".c"
	}
	var path string
	var err error
	if _, missing := os.Stat(source); missing == nil {
		path, err = cModule(t.Context(), source)
	} else {
		path, err = guests.Program(t.Context(), name)
	}
	if err != nil {
		t.Fatal(err)
	}
	module, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return module
}

// cModule compiles C with the compiler that `make tools` has installed.
func cModule(ctx context.Context, source string) (string, error) {
	cache, err := tools.CacheDir()
	if err != nil {
		return "", err
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		return "", err
	}
	b := tools.Builder{Root: root, Cache: cache, Report: func(string) {}}
	return b.Guest(ctx, source)
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// request makes a request as the gateway sends it on.
func (f *function) request(t testing.TB, method, path string, body io.Reader, header ...string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+f.addr+path, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(knativeactivator.RevisionHeaderNamespace, f.key.Namespace)
	r.Header.Set(knativeactivator.RevisionHeaderName, f.key.Name)
	for pair := range slices.Chunk(header, 2) {
		r.Header.Set(pair[0], pair[1])
	}
	return r
}

// send returns the answer's status and body; an error is that of a connection that
// broke.
func send(r *http.Request) (status int, body string, err error) {
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(text), err
}

// expect sends a request that must be answered so.
func (f *function) expect(t testing.TB, method, path, body string, status int, want string) {
	t.Helper()
	r := f.request(t, method, path, strings.NewReader(body))
	if got, text, err := send(r); err != nil || got != status || !strings.Contains(text, want) {
		t.Errorf("%s %s: got %d %.200q, %v, want %d and %q", method, path, got, text, err, status, want)
	}
}
