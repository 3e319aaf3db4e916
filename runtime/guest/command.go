package guest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	wazeroapi "github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"

	"github.com/wisp-serving/wisp/runtime/api"
	"github.com/wisp-serving/wisp/runtime/instance"
	"github.com/wisp-serving/wisp/runtime/memory"
	"github.com/wisp-serving/wisp/runtime/wasi"
	"github.com/wisp-serving/wisp/span"
)

// start is what a WASI command exports and a host calls once per instance.
const start = "_start"

// trialTimeout bounds the trial of a module, whose start function may loop.
const trialTimeout = 10 * time.Second

// maxEnv bounds the variables of a Command, which each call copies.
const maxEnv = 4096

// Module is a compiled module, lent for one call. modcache.Module is one.
type Module interface {
	Instantiate(context.Context, wazero.ModuleConfig) (wazeroapi.Module, error)
	Exports() map[string]wazeroapi.FunctionDefinition
	// Needs returns what an instance takes of its sandbox's memory.
	Needs() memory.Needs
	// Release gives the module back. Instances live on.
	Release()
}

// CommandConfig is what all calls of a Command share.
type CommandConfig struct {
	// Group is the sandbox that the instances belong to.
	Group *instance.Group
	// Argv0 is the guest's argv[0] and Args what follows it, before a call's
	// own arguments.
	Argv0 string
	Args  []string
	// Env holds "KEY=value" entries, at most 4096; of two with one name, the last
	// holds.
	Env []string
	// Mounts are the directories that guests see; none means an empty one.
	Mounts []wasi.Mount
	// Stderr takes each line that a guest writes to standard error, and of the
	// trap that ended it, without its line break; one longer than 16 KiB comes in
	// parts. It must not block nor keep the slice; calls that run at once call it
	// at once. nil drops the lines.
	Stderr func(line []byte)
	// Observer, unless nil, is told of each call's instance.
	Observer Observer
}

// Observer is told of instances. Its methods must not block.
type Observer interface {
	// Started says that an instance was made, and how long it waited for memory and
	// a core before.
	Started(waited, made time.Duration)
	// Ended says how long it ran, and with what error Run returns.
	Ended(ran time.Duration, err error)
}

// unobserved is the Observer of who has none.
type unobserved struct{}

func (unobserved) Started(time.Duration, time.Duration) {}
func (unobserved) Ended(time.Duration, error)           {}

// Command runs a WASI command, each call in a fresh instance: no state crosses
// calls. It is safe for concurrent use.
type Command struct {
	group     *instance.Group
	argv      []string
	env       []string
	variables map[string]int // names of env to their places
	mounts    []wasi.Mount
	stderr    func(line []byte)
	observer  Observer
	processes sync.Pool // of *process
}

// instanceConfig is for all instances: what they get is wasi's. The clocks and
// the randomness are here because wazero makes fakes of what is not, 5 kB for each
// instance.
var instanceConfig = wazero.NewModuleConfig().
	WithName(""). // instances with names would exclude one another
	WithStartFunctions().
	WithSysWalltime().
	WithSysNanotime().
	WithRandSource(rand.Reader)

// NewCommand returns a Command for cfg. An error is api.ErrUnusable.
func NewCommand(cfg CommandConfig) (*Command, error) {
	if n := len(cfg.Env); n > maxEnv {
		return nil, api.Unusable(fmt.Errorf("env has %d variables, must be at most %d", n, maxEnv))
	}
	c := &Command{group: cfg.Group, variables: map[string]int{}, mounts: cfg.Mounts, stderr: cfg.Stderr, observer: cfg.Observer}
	for _, entry := range cfg.Env {
		key, _, ok := strings.Cut(entry, "=")
		if !ok || key == "" || strings.ContainsRune(entry, 0) {
			return nil, api.Unusable(fmt.Errorf("env = %q, must be KEY=value without zero bytes", entry))
		}
		c.env = c.setenv(c.env, entry)
		if _, ok := c.variables[key]; !ok {
			c.variables[key] = len(c.env) - 1
		}
	}
	c.argv = append([]string{cfg.Argv0}, cfg.Args...)
	for _, arg := range c.argv {
		if strings.ContainsRune(arg, 0) {
			return nil, api.Unusable(fmt.Errorf("argument = %q, must hold no zero byte", arg))
		}
	}
	if len(c.mounts) == 0 {
		c.mounts = []wasi.Mount{{Path: "/", FS: wasi.EmptyFS(), ReadOnly: true}}
	}
	if c.observer == nil {
		c.observer = unobserved{}
	}
	if c.stderr == nil {
		c.stderr = func([]byte) {}
	}
	return c, nil
}

// Mounts returns how many directories a guest sees.
func (c *Command) Mounts() int { return len(c.mounts) }

// setenv appends entry to env, which begins with c.env, or puts it in the place
// of the variable of that name in there.
func (c *Command) setenv(env []string, entry string) []string {
	key, _, _ := strings.Cut(entry, "=")
	if i, ok := c.variables[key]; ok {
		env[i] = entry
		return env
	}
	return append(env, entry)
}

// Try makes an instance of m and drops it without calling _start, to find what
// would keep any call from working: then the error is api.ErrUnusable. It
// doesn't release m.
func (c *Command) Try(ctx context.Context, m Module) error {
	f, ok := m.Exports()[start]
	if !ok || len(f.ParamTypes()) > 0 || len(f.ResultTypes()) > 0 {
		return api.Unusable(errors.New("not a WASI command: it exports no function _start without parameters and results"))
	}
	trial, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	i, err := c.group.Start(trial, m.Needs())
	if err == nil {
		defer i.End()
		p := c.process(i, Call{})
		defer c.reuse(p)
		var made wazeroapi.Module
		if made, err = m.Instantiate(p.context, instanceConfig); err == nil {
			return made.Close(trial)
		}
	}
	deadline, bounded := ctx.Deadline()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case bounded && time.Now().After(deadline): // its timer is late
		return context.DeadlineExceeded
	case i != nil && i.OutOfMemory():
		err = &OOMError{Limit: c.group.MemoryLimit(), Cause: err}
	case trial.Err() != nil || i != nil && errors.Is(i.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("its start function didn't end within %s", trialTimeout)
	}
	return api.Unusable(fmt.Errorf("instantiate: %w", err))
}

// Call is what one call brings.
type Call struct {
	// Args follow the Command's own arguments.
	Args []string
	// Env follows the Command's own variables and takes the place of those with
	// the same names. No name may be in it twice, nor zero bytes.
	Env []string
	// Stdin is what the guest reads from standard input; nil is empty. Its Read
	// must end with the call's context. An error other than io.EOF ends the
	// guest and is what Run returns.
	Stdin io.Reader
	// Stdout takes what the guest writes to standard output, nil drops it. An
	// error of its Write ends the guest and is what Run returns.
	Stdout io.Writer
	// Stderr is Stdout for standard error; nil is CommandConfig.Stderr. The trap
	// that ended the guest is written there too.
	Stderr io.Writer
	// Interrupt, unless nil, is called on a goroutine of its own if the context
	// ends before the guest does, to end calls of the streams that wait.
	Interrupt func()
	// Listeners are the ports on which the guest may listen: descriptors after
	// those of the mounts. Run closes them.
	Listeners []*wasi.Listener
}

// ExitError says that a guest ended with a status other than 0.
type ExitError struct{ Status uint32 }

func (e *ExitError) Error() string { return fmt.Sprintf("exit status %d", e.Status) }

// TrapError says that a guest was ended by a trap: it divided by zero, left its
// memory, overflowed its stack and the like.
type TrapError struct{ Trap error }

// Error returns the trap without its stack trace, which is for the pod's log.
func (e *TrapError) Error() string {
	text, _, _ := strings.Cut(e.Trap.Error(), "\n")
	return strings.TrimSuffix(text, " (recovered by wazero)")
}

func (e *TrapError) Unwrap() error { return e.Trap }

// OOMError says that a guest failed after it was denied memory, or that there is
// too little for it to start.
type OOMError struct {
	// Limit is what all instances of the sandbox may have together, in bytes.
	Limit int64
	// Cause is how the guest ended, or *memory.LimitError.
	Cause error
}

func (e *OOMError) Error() string {
	return fmt.Sprintf("out of memory: the limit is %d bytes: %v", e.Limit, e.Cause)
}

func (e *OOMError) Unwrap() error { return e.Cause }

// Run runs one instance of m to its end and releases m once the instance
// exists. It returns nil for exit status 0, *ExitError for another, *TrapError,
// the error of one of call's streams, ctx's cause when ctx ended the guest, or
// *OOMError. It waits for memory and a core.
func (c *Command) Run(ctx context.Context, m Module, call Call) error {
	asked := time.Now()
	i, err := c.group.Start(ctx, m.Needs())
	if err != nil {
		m.Release()
		for _, l := range call.Listeners {
			l.Close()
		}
		if limit := new(memory.LimitError); errors.As(err, &limit) {
			err = &OOMError{Limit: limit.Limit, Cause: limit}
		}
		return err
	}
	defer i.End()
	defer interrupting(ctx, call.Interrupt)()
	p := c.process(i, call)
	defer c.reuse(p)
	began := time.Now()
	_, making := span.Begin(ctx, span.Instantiate)
	made, err := m.Instantiate(p.context, instanceConfig)
	m.Release()
	making.End()
	started := time.Now()
	c.observer.Started(began.Sub(asked), started.Sub(began))
	if err == nil {
		defer func() { _ = made.Close(ctx) }() // frees what it holds; there is nothing to fail
		_, err = made.ExportedFunction(start).Call(p.context)
	}
	_ = p.lines.Flush() // which never fails
	err = p.outcome(err)
	c.observer.Ended(time.Since(started), err)
	if trap := new(TrapError); errors.As(err, &trap) {
		_, _ = fmt.Fprintln(p.stderr, trap.Trap)
	}
	return err
}

// interrupting calls f when ctx ends, until what it returns is called; then f
// isn't running either.
func interrupting(ctx context.Context, f func()) (stop func()) {
	if f == nil {
		return func() {}
	}
	done := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() { f(); close(done) })
	return func() {
		if !cancel() {
			<-done
		}
	}
}

// process is what one instance has, to be used again by a later call.
type process struct {
	wasi      wasi.Process
	argv, env []string
	lines     *Lines // to CommandConfig.Stderr

	instance *instance.Instance
	context  context.Context // for the wazero instance
	stderr   io.Writer
}

func (c *Command) process(i *instance.Instance, call Call) *process {
	p, ok := c.processes.Get().(*process)
	if !ok {
		p = &process{lines: NewLines(func(line []byte) error { c.stderr(line); return nil })}
	}
	p.instance, p.stderr = i, call.Stderr
	if p.stderr == nil {
		p.stderr = p.lines
	}
	p.argv = append(append(p.argv[:0], c.argv...), call.Args...)
	p.env = append(p.env[:0], c.env...)
	for _, entry := range call.Env {
		p.env = c.setenv(p.env, entry)
	}
	p.context = p.wasi.Start(i.Context(), wasi.Config{
		Args:      p.argv,
		Env:       p.env,
		Stdin:     call.Stdin,
		Stdout:    call.Stdout,
		Stderr:    p.stderr,
		Mounts:    c.mounts,
		Listeners: call.Listeners,
		Slot:      i,
		Room:      i,
	})
	return p
}

func (c *Command) reuse(p *process) {
	p.wasi.Close()
	clear(p.argv)
	clear(p.env)
	p.instance, p.context, p.stderr = nil, nil, nil
	c.processes.Put(p)
}

// outcome says why a guest ended, given what wazero returned.
func (p *process) outcome(err error) error {
	err = p.reason(err)
	exit, trap := new(ExitError), new(TrapError)
	if p.instance.OutOfMemory() && (errors.As(err, &exit) || errors.As(err, &trap)) {
		return &OOMError{Limit: p.instance.MemoryLimit(), Cause: err}
	}
	return err
}

func (p *process) reason(err error) error {
	ctx := p.instance.Context()
	var exit *sys.ExitError
	switch {
	case errors.Is(p.wasi.Failed(), errInterrupted) && ctx.Err() != nil:
		return context.Cause(ctx)
	case p.wasi.Failed() != nil:
		return p.wasi.Failed()
	case err == nil:
		return nil
	case !errors.As(err, &exit):
		return &TrapError{err}
	case p.instance.Err() != nil:
		return p.instance.Err()
	case exit.ExitCode() == 0:
		return nil
	// A guest can exit with the statuses that wazero reserves, hence the look at
	// ctx.
	case ctx.Err() != nil && (exit.ExitCode() == sys.ExitCodeContextCanceled || exit.ExitCode() == sys.ExitCodeDeadlineExceeded):
		return context.Cause(ctx)
	default:
		return &ExitError{exit.ExitCode()}
	}
}
