// Package platform gives a test a platform of its own: Kubernetes, Knative
// Serving, Envoy and Wisp, on ports and in a folder that nobody else uses.
//
// [Start] runs the same stack as `platform up`, inside the test process, and
// stops it when the test ends. Should the process die instead, everything dies
// with it. Tests wait with [WaitFor], on watches.
package platform

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/wisp-serving/wisp/test/platform/ports"
	"github.com/wisp-serving/wisp/test/platform/stack"
	"github.com/wisp-serving/wisp/test/platform/supervise"
	"github.com/wisp-serving/wisp/test/platform/tools"
)

// Options say what a test needs.
type Options struct {
	// WithoutWisp leaves Wisp's roles and Envoy out.
	WithoutWisp bool
	// WithoutRace builds wisp as users get it, for measurements. Otherwise it
	// has the race detector in it.
	WithoutRace bool
	// Nodes is the number of wisp nodes; 0 means one.
	Nodes int
}

// Platform is a running platform.
type Platform struct {
	// Kubeconfig is the path of the administrator's kubeconfig, REST the same
	// for clients, Client a client that knows Kubernetes' and Knative's types.
	Kubeconfig string
	REST       *rest.Config
	Client     client.WithWatch
	// Gateway is the URL of Envoy's external listener, InternalGateway that of
	// its internal one.
	Gateway, InternalGateway string
	// Registry is the registry's host:port, as in an image reference.
	Registry string
	// NodeAddresses are the addresses of the wisp nodes, in the order of their
	// names: wisp-0, wisp-1 and so on.
	NodeAddresses []string
	// SortModule is the path of sort.wasm; empty without Wisp.
	SortModule string

	stack  *stack.Stack
	state  stack.State
	events eventLog
}

// The bounds of waiting for a platform: to start, everything built, and for one
// condition. They are for a slow machine with the race detector on.
const (
	startTimeout = 3 * time.Minute
	waitTimeout  = time.Minute
)

// Start starts a platform and stops it when t and its subtests have ended. If t
// has failed by then, the end of each component's log is logged. A first call on
// a machine builds everything, which takes minutes.
func Start(t testing.TB, o Options) *Platform {
	t.Helper()
	dir, err := os.MkdirTemp("", "wisp-test-") // not t.TempDir: sockets need short paths
	if err != nil {
		t.Fatalf("make a folder for the platform: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &Platform{state: stack.State{Dir: dir}}
	cfg, err := p.configure(t.Context(), o)
	if err != nil {
		t.Fatalf("prepare the platform: %v", err)
	}
	if p.stack, err = stack.New(cfg, p.events.add); err != nil {
		t.Fatalf("prepare the platform: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.stack.Run(ctx) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("run the platform: %v", err)
		}
		p.checkRaces(t)
		if t.Failed() {
			p.dump(t)
		}
	})
	select {
	case <-p.stack.Ready():
	case err := <-ended:
		ended <- nil // reported here
		t.Fatalf("start the platform: %v", err)
	case <-time.After(startTimeout):
		t.Fatalf("start the platform: not ready after %s", startTimeout)
	}
	if err := p.connect(cfg); err != nil {
		t.Fatalf("connect to the platform: %v", err)
	}
	return p
}

// configure builds what is missing and picks ports.
func (p *Platform) configure(ctx context.Context, o Options) (stack.Config, error) {
	cfg := stack.Config{State: p.state, WithoutWisp: o.WithoutWisp}
	var err error
	if cfg.Root, err = tools.FindRoot(); err != nil {
		return cfg, err
	}
	cache, err := tools.CacheDir()
	if err != nil {
		return cfg, err
	}
	// Progress goes to the terminal at once: a test's own log shows at its end.
	b := &tools.Builder{Root: cfg.Root, Cache: cache, Report: func(line string) { fmt.Fprintln(os.Stderr, line) }}
	if cfg.Programs, err = b.Build(ctx); err != nil {
		return cfg, err
	}
	if cfg.Platform, err = b.Platform(ctx); err != nil {
		return cfg, err
	}
	if !o.WithoutWisp {
		if cfg.Wisp, err = b.Wisp(ctx, !o.WithoutRace); err != nil {
			return cfg, err
		}
		if p.SortModule, err = b.Guest(ctx, filepath.Join(cfg.Root, "samples/sort/sort.c")); err != nil {
			return cfg, err
		}
	}
	if cfg.Ports, err = ports.Free(); err != nil {
		return cfg, err
	}
	cfg.NodeAddresses, err = stack.FreeNodeAddresses(cfg.Ports, max(o.Nodes, 1))
	return cfg, err
}

func (p *Platform) connect(cfg stack.Config) error {
	p.Kubeconfig = p.state.Kubeconfig()
	p.REST = rest.CopyConfig(p.stack.Cluster().REST)
	p.Gateway = cfg.Gateway()
	p.InternalGateway = cfg.InternalGateway()
	p.Registry = cfg.Registry()
	p.NodeAddresses = cfg.NodeAddresses
	var err error
	p.Client, err = newClient(p.REST)
	return err
}

// Kill ends a component with SIGKILL and waits until the supervisor has it
// running and ready again.
func (p *Platform) Kill(t testing.TB, component string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	before, err := p.stack.WaitFor(ctx, component, func(s supervise.Status) bool { return s.State == supervise.Ready })
	if err == nil {
		err = p.stack.Signal(component, unix.SIGKILL)
	}
	if err == nil {
		_, err = p.stack.WaitFor(ctx, component, func(s supervise.Status) bool {
			return s.State == supervise.Ready && s.Restarts > before.Restarts
		})
	}
	if err != nil {
		t.Fatalf("kill component %s: %v", component, err)
	}
}

// Restart stops a component as a shutdown does, starts it again and waits until
// it is ready.
func (p *Platform) Restart(t testing.TB, component string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	if err := p.stack.Restart(ctx, component); err != nil {
		t.Fatalf("restart component %s: %v", component, err)
	}
}

// Components returns the state of every component that is a process.
func (p *Platform) Components() []supervise.Status {
	var processes []supervise.Status
	for _, s := range p.stack.Status() {
		if s.Log != "" {
			processes = append(processes, s)
		}
	}
	return processes
}

// Events returns what the supervisor has said, a line for each event.
func (p *Platform) Events() string { return p.events.String() }

// Log returns what a component has written.
func (p *Platform) Log(t testing.TB, component string) string {
	t.Helper()
	text, err := os.ReadFile(p.state.Log(component))
	if err != nil {
		t.Fatalf("read log: %v", err)
	}
	return string(text)
}

// checkRaces fails the test for what the race detector has found in wisp.
func (p *Platform) checkRaces(t testing.TB) {
	for _, c := range p.Components() {
		text, err := os.ReadFile(c.Log)
		if err != nil {
			continue // never started
		}
		if _, race, found := strings.Cut(string(text), "WARNING: DATA RACE"); found {
			t.Errorf("component %s has a data race:%s", c.Name, race[:min(len(race), maxRace)])
		}
	}
}

// maxRace is how much of a log is shown from a data race on, in bytes.
const maxRace = 4 << 10

// dumpLines is how much of each log a failed test shows.
const dumpLines = 40

// dump logs what may tell why a test has failed.
func (p *Platform) dump(t testing.TB) {
	t.Logf("--- supervisor\n%s", p.events.String())
	for _, c := range p.Components() {
		f, err := os.Open(c.Log)
		if errors.Is(err, os.ErrNotExist) {
			continue // never started
		}
		if err != nil {
			t.Log(err)
			continue
		}
		lines, err := supervise.Tail(f, 0, dumpLines)
		f.Close()
		if err != nil {
			t.Log(err)
		}
		t.Logf("--- %s (%s, %d restarts), the last lines of its log\n%s", c.Name, c.State, c.Restarts, strings.Join(lines, "\n"))
	}
}

// eventLog keeps what a supervisor says.
type eventLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *eventLog) add(e supervise.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintln(&l.text, e)
}

func (l *eventLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
