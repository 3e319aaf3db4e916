// Package sandbox is one container as the runtime sees it: which module it
// runs, with what settings, and the instances that run now.
//
// A Sandbox is an http.Handler that answers each request with a fresh instance
// (the ABI argv), a server that Run runs and to which requests are sent on, or a
// command that Run runs to its end. It isn't the container's life: restarts, probes and status are its caller's. It owns no
// goroutine while nothing is logged; while guests write, one carries their lines
// to the log, so that a slow log doesn't slow an answer.
package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"

	"go.uber.org/zap"

	"github.com/wisp-serving/wisp/runtime/api"
	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/runtime/instance"
	"github.com/wisp-serving/wisp/runtime/measure"
	"github.com/wisp-serving/wisp/runtime/memory"
	"github.com/wisp-serving/wisp/runtime/modcache"
	"github.com/wisp-serving/wisp/runtime/wasi"
)

// Spec says what one container runs and how it is called.
type Spec struct {
	// ID names the container in errors and logs.
	ID string
	// Place is where its instances are counted.
	Place measure.Place
	// Image is the digest of the module's image, whose files stay in the store
	// until the sandbox is closed; empty for none.
	Image string
	// Module is the digest of a pulled module, "sha256:<hex>".
	Module string
	// Argv0 is the guest's argv[0], by convention the module's file name.
	Argv0 string
	// Args follow Argv0, before what a request brings.
	Args []string
	// Env holds "KEY=value" entries, at most 4096.
	Env []string
	// Root is the folder with the image's files, which the guest sees as its root
	// and can't change; empty for none.
	Root string
	// Mounts are directories that the guest sees in its root. Unless one is /tmp,
	// each instance has one of its own there, in memory.
	Mounts []wasi.Mount
	// Files are single files that the guest sees beside what is in their folders.
	Files []File
	// ABI says how a request reaches the guest: argv, server, or command, which
	// is also what none means, if no request does.
	ABI string
	// Ports are those on which a server may listen; requests go to the first.
	// None means the one that Env's PORT names, or 8080. H2C says that requests
	// are HTTP/2 there.
	Ports []int
	H2C   bool
	// Memory bounds what all its instances hold together, in bytes; 0 is
	// Deps.Memory.
	Memory int64
	// Shared is what it holds together with other sandboxes, such as a volume in
	// memory: it counts as its own.
	Shared []*memory.Common
	// CPURequest is its weight against other sandboxes, and CPULimit, unless 0,
	// bounds its use, in thousandths of a core.
	CPURequest, CPULimit int64
	// OnOOM, unless nil, is told of each request's instance that failed for want
	// of memory. It must not block.
	OnOOM func(*guest.OOMError)
	// Proven says that a sandbox like this one has started before, so that no
	// instance need be tried.
	Proven bool
	// Stdout and Stderr take what guests write to these streams, as far as it
	// isn't an answer, and Stderr their traps too: one whole line, of at most
	// 16 KiB and its line break, for each Write, one Write to either after another.
	// While a Write blocks, lines wait, and beyond 1 MiB so does a command; those
	// of requests are dropped and counted then. nil drops all.
	Stdout, Stderr io.Writer
}

// Deps is what sandboxes share.
type Deps struct {
	// Modules has or makes the compiled modules.
	Modules *modcache.Cache
	// Host is the node that instances run on.
	Host *instance.Host
	// Memory is the limit of sandboxes that name none, in bytes.
	Memory int64
	// Limits bound requests and answers.
	Limits guest.Limits
	// Log is the node's own log.
	Log *zap.SugaredLogger
	// Observer, unless nil, is told of the sandbox's instances.
	Observer guest.Observer
	// OnClose, unless nil, is called once when a Close has ended.
	OnClose func(*Sandbox)
}

// Sandbox is one container. It is safe for concurrent use.
type Sandbox struct {
	spec    Spec
	deps    Deps
	group   *instance.Group
	command *guest.Command
	handler http.Handler
	lines   *lineQueue
	ports   *ports        // of a server, else nil
	server  *guest.Server // likewise
	root    *os.Root      // nil for none
	leave   []func()      // what is shared

	// stopping ends what runs when Close has waited long enough.
	stopping context.Context
	stop     context.CancelCauseFunc

	mu      sync.Mutex
	closed  bool
	closing chan struct{} // closed with closed
	running int           // requests
	idle    chan struct{} // closed when closed && running == 0
	main    chan struct{} // unless nil, Run runs the command; closed when it has ended
	once    sync.Once     // of what ends with the first Close
}

// New compiles the module of spec unless that was done before, tries one
// instance without running it unless spec is Proven, and returns a sandbox that takes requests. What
// can never work is api.ErrUnusable.
func New(ctx context.Context, deps Deps, spec Spec) (_ *Sandbox, err error) {
	if spec.ABI == "" {
		spec.ABI = guest.ABICommand
	}
	s := &Sandbox{
		spec:    spec,
		deps:    deps,
		lines:   newLineQueue(spec.Stdout, spec.Stderr),
		closing: make(chan struct{}),
		idle:    make(chan struct{}),
	}
	s.group = deps.Host.Group(instance.Limits{
		Memory:     cmp.Or(spec.Memory, deps.Memory),
		CPURequest: spec.CPURequest,
		CPULimit:   spec.CPULimit,
	})
	mounts, err := s.mounts()
	if err != nil {
		return nil, s.named(err)
	}
	for _, common := range spec.Shared {
		s.leave = append(s.leave, s.group.Join(common))
	}
	defer func() {
		if err != nil {
			s.giveBack()
		}
	}()
	if err = s.chooseHandler(); err != nil {
		return nil, s.named(err)
	}
	s.command, err = guest.NewCommand(guest.CommandConfig{
		Mounts:   mounts,
		Group:    s.group,
		Observer: deps.Observer,
		Argv0:    spec.Argv0,
		Args:     spec.Args,
		Env:      spec.Env,
		Stderr:   s.lines.offer,
	})
	if err != nil {
		return nil, s.named(err)
	}
	module, err := deps.Modules.Get(ctx, spec.Module)
	if err != nil {
		return nil, s.named(err)
	}
	defer module.Release()
	if !spec.Proven {
		if err := s.command.Try(ctx, module); err != nil {
			return nil, s.named(err)
		}
	}
	s.stopping, s.stop = context.WithCancelCause(context.Background())
	return s, nil
}

// chooseHandler makes what the ABI needs.
func (s *Sandbox) chooseHandler() (err error) {
	if s.spec.ABI != guest.ABIServer {
		s.handler, err = guest.NewHandler(s.spec.ABI, s.run, s.deps.Limits, s.report)
		return err
	}
	numbers := s.spec.Ports
	if len(numbers) == 0 {
		port, err := portOf(s.spec.Env)
		if err != nil {
			return api.Unusable(err)
		}
		numbers = []int{port}
	}
	s.ports = newPorts(numbers, s.closing)
	s.server = guest.NewServer(guest.ServerConfig{
		Dial: s.ports.dialPatiently, H2C: s.spec.H2C, Report: s.report, Log: s.deps.Log.With("container", s.spec.ID),
	})
	s.handler = http.HandlerFunc(s.forward)
	return nil
}

// report writes a line about a request that has failed to the container's log, which
// may be gone after Close.
func (s *Sandbox) report(line []byte) {
	if s.begin() {
		defer s.end()
		s.lines.offer(line)
	}
}

// portOf returns the port that a container's environment names.
func portOf(env []string) (int, error) {
	const usual = 8080
	port := usual
	for _, entry := range env {
		if value, ok := strings.CutPrefix(entry, "PORT="); ok {
			n, err := strconv.ParseUint(value, 10, 16)
			if err != nil || n == 0 {
				return 0, fmt.Errorf("env PORT = %q, must be a port", value)
			}
			port = int(n)
		}
	}
	return port, nil
}

// forward sends a request on to the server. It counts as running until it is
// answered whole: its guest can't be stopped without cutting it off.
func (s *Sandbox) forward(w http.ResponseWriter, r *http.Request) {
	if !s.begin() {
		http.Error(w, guest.ErrClosed.Error(), http.StatusServiceUnavailable)
		return
	}
	defer s.end()
	s.server.ServeHTTP(w, r)
}

func (s *Sandbox) named(err error) error { return fmt.Errorf("start %s: %w", s.spec.ID, err) }

// ServeHTTP answers one request: with a fresh instance, which the request's
// context bounds: at its deadline the answer is 504; or by way of the server, for
// which it waits until it listens. After Close the answer is 503. A command
// answers 404.
func (s *Sandbox) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// errRunning is the answer to a Run while another one runs.
var errRunning = errors.New("it runs already")

// Run runs the container's command once to its end. It returns nil for exit
// status 0, *guest.ExitError, *guest.TrapError, *guest.OOMError, guest.ErrClosed if Close ended
// it, or ctx's cause. It may be called again after that, but not at once. The
// command's standard input is empty; its output goes to the logs.
//
// Where requests run the guest, Run runs nothing and waits for ctx or Close.
func (s *Sandbox) Run(ctx context.Context) error {
	if s.spec.ABI != guest.ABICommand && s.ports == nil {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.closing:
			return guest.ErrClosed
		}
	}
	done, err := s.beginMain()
	if err != nil {
		return s.named(err)
	}
	defer done()
	out := guest.NewLines(func(line []byte) error { return s.lines.put(ctx, stdout, line) })
	errs := guest.NewLines(func(line []byte) error { return s.lines.put(ctx, stderr, line) })
	call := guest.Call{Stdout: out, Stderr: errs}
	if s.ports != nil {
		call.Listeners = s.ports.open()
		call.Env = s.ports.environment(s.command.Mounts())
		defer s.ports.close()
		defer s.server.CloseIdle() // of the instance that has ended
	}
	err = s.call(ctx, call)
	return cmp.Or(err, out.Flush(), errs.Flush())
}

// beginMain makes this the one Run; the caller calls what it returns at its end.
func (s *Sandbox) beginMain() (done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, guest.ErrClosed
	case s.main != nil:
		return nil, errRunning
	}
	ended := make(chan struct{})
	s.main = ended
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.main = nil
		close(ended)
	}, nil
}

// Dial connects to a port on which the guest listens. It fails at once where none
// does, yet.
func (s *Sandbox) Dial(ctx context.Context, port int) (net.Conn, error) {
	if s.ports == nil {
		return nil, fmt.Errorf("dial port %d of %s: a guest of the ABI %s doesn't listen", port, s.spec.ID, s.spec.ABI)
	}
	if isClosed(s.closing) {
		return nil, fmt.Errorf("dial port %d of %s: %w", port, s.spec.ID, guest.ErrClosed)
	}
	conn, err := s.ports.dial(ctx, port)
	if err != nil {
		return nil, fmt.Errorf("dial port %d of %s: %w", port, s.spec.ID, err)
	}
	return conn, nil
}

// run is the guest.Runner of the sandbox. Only what is in here counts as
// running: a client who sends or reads slowly can't delay Close.
func (s *Sandbox) run(ctx context.Context, call guest.Call) error {
	if !s.begin() {
		return guest.ErrClosed
	}
	defer s.end()
	err := s.call(ctx, call)
	if oom := new(guest.OOMError); s.spec.OnOOM != nil && errors.As(err, &oom) {
		s.spec.OnOOM(oom)
	}
	return err
}

// Place returns where its instances are counted.
func (s *Sandbox) Place() measure.Place { return s.spec.Place }

// Usage returns what the sandbox has used of the node.
func (s *Sandbox) Usage() instance.Usage { return s.group.Usage() }

// call runs one instance, until it ends or Close stops it.
func (s *Sandbox) call(ctx context.Context, call guest.Call) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.stopping, func() { cancel(guest.ErrClosed) })()

	module, err := s.deps.Modules.Get(ctx, s.spec.Module)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.deps.Log.Errorw("function not run", "container", s.spec.ID, "error", err)
		return err
	}
	return s.command.Run(ctx, module, call)
}

func (s *Sandbox) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.running++
	return true
}

func (s *Sandbox) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	if s.closed && s.running == 0 {
		close(s.idle)
	}
}

// Close takes no new requests and connections, waits for the running requests
// until ctx ends, then stops those that are left, and what Run runs, as a signal
// stops a process that doesn't handle it. It waits for them and for the log. It returns
// ctx's error if it had to stop requests. It is safe to call again, and at once;
// each call waits.
func (s *Sandbox) Close(ctx context.Context) error {
	s.mu.Lock()
	main := s.main
	if !s.closed {
		s.closed = true
		close(s.closing)
		if s.running == 0 {
			close(s.idle)
		}
	}
	s.mu.Unlock()

	var err error
	select {
	case <-s.idle:
	case <-ctx.Done():
		select {
		case <-s.idle: // both: nothing to stop
		default:
			err = fmt.Errorf("close %s: requests were stopped: %w", s.spec.ID, ctx.Err())
			s.stop(guest.ErrClosed)
			<-s.idle
		}
	}
	s.stop(guest.ErrClosed)
	if main != nil {
		<-main
	}
	s.lines.wait()
	s.once.Do(func() {
		s.giveBack()
		if s.deps.OnClose != nil {
			s.deps.OnClose(s)
		}
	})
	return err
}
