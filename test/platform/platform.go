// Package platform gives tests a real platform: Kubernetes, Knative Serving,
// Envoy and Wisp.
//
// [Start] gives a test the platform that was started for all of them, by
// `platform run` or by the test binary's own [Main]; a test that needs another
// one gets one of its own, which ends with it. All of them have ports and
// folders of their own and die with the process that runs them. A test works in
// a namespace of its own ([Platform.Namespace]) and waits with [WaitFor], on
// watches.
package platform

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/wisp-serving/wisp/test/platform/cluster"
	"github.com/wisp-serving/wisp/test/platform/ports"
	"github.com/wisp-serving/wisp/test/platform/stack"
	"github.com/wisp-serving/wisp/test/platform/supervise"
	"github.com/wisp-serving/wisp/test/platform/tools"
)

// Options say what a test needs.
type Options struct {
	// Own asks for a platform that no other test uses, for a test that changes
	// what all of them depend on.
	Own bool
	// WithoutWisp leaves Wisp's roles and Envoy out.
	WithoutWisp bool
	// WithoutRace builds wisp as users get it, for measurements. Otherwise it
	// has the race detector in it.
	WithoutRace bool
	// Nodes is the number of wisp nodes; 0 means one.
	Nodes int
	// Settings change those that the platform gives Wisp's roles.
	Settings stack.Settings
}

// Platform is a running platform.
type Platform struct {
	// Kubeconfig is the path of the administrator's kubeconfig, REST the same
	// for clients, Client a client that knows Kubernetes' and Knative's types.
	Kubeconfig string
	REST       *rest.Config
	Client     client.WithWatch
	// Gateway is the URL of Envoy's external listener, SecureGateway that of the one
	// for TLS, InternalGateway that of its internal one.
	Gateway, SecureGateway, InternalGateway string
	// Registry is the registry's host:port, as in an image reference.
	Registry string
	// NodeAddresses are the addresses of the wisp nodes, in the order of their
	// names: wisp-0, wisp-1 and so on.
	NodeAddresses []string
	// SortModule is the path of sort.wasm; empty without Wisp.
	SortModule string

	state    stack.State
	observer supervise.Observer
	// mark is where the logs were when the test began.
	mark stack.LogMark
}

// The bounds of waiting for a platform: to start, everything built, and for one
// condition. They are for two cores that do other work too, with the race
// detector on: what takes ten seconds on an idle machine has been seen to take
// a minute. Nobody waits for them but a test that fails.
const (
	startTimeout = 5 * time.Minute
	waitTimeout  = 2 * time.Minute
)

// Start gives t a platform: the shared one, if there is one that has what o
// asks for, else one of its own, which is stopped when t and its subtests have
// ended. If t has failed by then, what the components have written and what is
// in the cluster is logged. A first call on a machine builds everything, which
// takes minutes.
func Start(t testing.TB, o Options) *Platform {
	t.Helper()
	state := stack.State{Dir: os.Getenv(stack.StateEnv)}
	var shared stack.Config
	if state.Dir != "" {
		var err error
		if shared, err = stack.Load(state); err != nil {
			t.Fatalf("find the platform that %s names: %v", stack.StateEnv, err)
		}
		if o.satisfiedBy(shared) {
			return attach(t, shared)
		}
	}
	cfg, err := configure(t.Context(), o)
	if err != nil {
		t.Fatalf("prepare a platform: %v", err)
	}
	cfg.Audit = shared.Audit
	ready, ended := make(chan struct{}), make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background()) // not t's: it ends before the clean-ups
	go func() {
		defer close(ended)
		ended <- during(ctx, cfg, func(ctx context.Context) error {
			close(ready)
			<-ctx.Done()
			return nil
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("run the platform: %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("start a platform: %v", err)
	case <-time.After(startTimeout):
		t.Fatalf("start a platform: not ready after %s", startTimeout)
	}
	return attach(t, cfg)
}

// satisfiedBy reports whether a shared platform has what is asked for.
func (o Options) satisfiedBy(cfg stack.Config) bool {
	return !o.Own && o.Settings.None() &&
		o.WithoutWisp == cfg.WithoutWisp &&
		(!o.WithoutRace || !cfg.Race) &&
		max(o.Nodes, 1) == len(cfg.NodeAddresses)
}

// configure builds what is missing and picks ports and a folder.
func configure(ctx context.Context, o Options) (stack.Config, error) {
	cfg := stack.Config{WithoutWisp: o.WithoutWisp, Race: !o.WithoutRace && !o.WithoutWisp, Settings: o.Settings}
	b, err := newBuilder()
	if err != nil {
		return cfg, err
	}
	if err := cfg.AddPrograms(ctx, b); err != nil {
		return cfg, err
	}
	if cfg.Platform, err = b.Platform(ctx); err != nil {
		return cfg, err
	}
	if cfg.Ports, err = ports.Free(); err != nil {
		return cfg, err
	}
	if cfg.NodeAddresses, err = stack.FreeNodeAddresses(cfg.Ports, max(o.Nodes, 1)); err != nil {
		return cfg, err
	}
	cfg.State.Dir, err = os.MkdirTemp("", "wisp-test-") // not t.TempDir: sockets need short paths
	return cfg, err
}

func newBuilder() (*tools.Builder, error) {
	root, err := tools.FindRoot()
	if err != nil {
		return nil, err
	}
	cache, err := tools.CacheDir()
	if err != nil {
		return nil, err
	}
	// Progress goes to the terminal at once: a test's own log shows at its end.
	return &tools.Builder{Root: root, Cache: cache, Report: func(line string) { fmt.Fprintln(os.Stderr, line) }}, nil
}

// during runs a platform in a folder that is removed afterwards.
func during(ctx context.Context, cfg stack.Config, body func(context.Context) error) error {
	defer os.RemoveAll(cfg.State.Dir)
	err := stack.During(ctx, cfg, body)
	return errors.Join(err, cfg.State.CheckRaces(nil)) // what shows only as they stop, too
}

// attach connects t to a platform that is ready.
func attach(t testing.TB, cfg stack.Config) *Platform {
	t.Helper()
	p := &Platform{
		Kubeconfig:      cfg.State.Kubeconfig(),
		Gateway:         cfg.Gateway(),
		SecureGateway:   cfg.SecureGateway(),
		InternalGateway: cfg.InternalGateway(),
		Registry:        cfg.Registry(),
		NodeAddresses:   cfg.NodeAddresses,
		state:           cfg.State,
		observer:        supervise.Observer{StatusFile: cfg.State.Status()},
	}
	if err := p.connect(); err != nil {
		t.Fatalf("connect to the platform: %v", err)
	}
	var err error
	if p.mark, err = p.state.MarkLogs(); err != nil {
		t.Fatal(err)
	}
	if !cfg.WithoutWisp {
		p.SortModule = p.Guest(t, "samples/sort/sort.c")
	}
	t.Cleanup(func() {
		if err := p.state.CheckRaces(p.mark); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			p.dump(t)
		}
	})
	return p
}

func (p *Platform) connect() error {
	c, err := cluster.Connect(p.Kubeconfig)
	if err != nil {
		return err
	}
	p.REST = c.REST
	p.Client, err = newClient(p.REST)
	return err
}

// Guest compiles a C file, named from the checkout's root, to a WASI command and
// returns the module's path.
func (p *Platform) Guest(t testing.TB, source string) string {
	t.Helper()
	b, err := newBuilder()
	if err != nil {
		t.Fatal(err)
	}
	module, err := b.Guest(t.Context(), filepath.Join(b.Root, source))
	if err != nil {
		t.Fatal(err)
	}
	return module
}

// Kill ends a component with SIGKILL and waits until the supervisor has it
// running and ready again.
func (p *Platform) Kill(t testing.TB, component string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	if err := p.observer.Kill(ctx, component); err != nil {
		t.Fatalf("kill component %s: %v", component, err)
	}
}

// Hold ends one of Wisp's roles with SIGKILL and keeps it away until release is
// called, or the test is over. What release returns to is a role that is ready.
func (p *Platform) Hold(t testing.TB, component string) (release func()) {
	t.Helper()
	let, err := p.state.Hold(component)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
	defer cancel()
	release = sync.OnceFunc(func() {
		if err := let(); err != nil {
			t.Errorf("let component %s start again: %v", component, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
		defer cancel()
		if _, err := p.observer.WaitFor(ctx, component, func(st supervise.Status) bool { return st.State == supervise.Ready }); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(release)
	if err := p.observer.End(ctx, component); err != nil {
		t.Fatalf("kill component %s: %v", component, err)
	}
	return release
}

// Restart ends a component as a shutdown does and waits until the supervisor has
// it running and ready again.
func (p *Platform) Restart(t testing.TB, component string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	if err := p.observer.Restart(ctx, component); err != nil {
		t.Fatalf("restart component %s: %v", component, err)
	}
}

// Settings returns the path of the settings of one of Wisp's roles, by its component.
// Other tests have the same: what one changes, it puts back.
func (p *Platform) Settings(component string) string { return p.state.Settings(component) }

// Components returns the state of every component that is a process.
func (p *Platform) Components(t testing.TB) []supervise.Status {
	t.Helper()
	all, err := p.observer.Status()
	if err != nil {
		t.Fatal(err)
	}
	var processes []supervise.Status
	for _, s := range all {
		if s.Log != "" {
			processes = append(processes, s)
		}
	}
	return processes
}

// Events returns what the supervisor has said since the test began, a line for
// each event.
func (p *Platform) Events(t testing.TB) string {
	t.Helper()
	return p.Log(t, stack.Supervisor)
}

// Log returns what a component has written since the test began.
func (p *Platform) Log(t testing.TB, component string) string {
	t.Helper()
	text, err := p.state.ReadLog(component, p.mark)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
