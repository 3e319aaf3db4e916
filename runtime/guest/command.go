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
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/sys"

	"github.com/wisp-serving/wisp/runtime/api"
)

// start is what a WASI command exports and a host calls once per instance.
const start = "_start"

// trialTimeout bounds the trial of a module, whose start function may loop.
const trialTimeout = 10 * time.Second

// maxEnv bounds the variables of a guest. wazero copies all of them to add one,
// and again for each call: at this number, half a second and 0.3 ms.
const maxEnv = 4096

// Module is a compiled module, lent for one call. modcache.Module is one.
type Module interface {
	Instantiate(context.Context, wazero.ModuleConfig) (wazeroapi.Module, error)
	Exports() map[string]wazeroapi.FunctionDefinition
	// Release gives the module back. Instances live on.
	Release()
}

// CommandConfig is what all calls of a Command share.
type CommandConfig struct {
	// Argv0 is the guest's argv[0] and Args what follows it, before a call's
	// own arguments.
	Argv0 string
	Args  []string
	// Env holds "KEY=value" entries, at most 4096.
	Env []string
	// Stderr takes each line that a guest writes to standard error, and of the
	// trap that ended it, without its line break; one longer than 16 KiB comes in
	// parts. It must not block nor keep the slice; calls that run at once call it
	// at once. nil drops the lines.
	Stderr func(line []byte)
}

// Command runs a WASI command, each call in a fresh instance: no state crosses
// calls. It is safe for concurrent use.
type Command struct {
	argv      []string
	base      wazero.ModuleConfig
	stderr    func(line []byte)
	processes sync.Pool // of *process
}

// NewCommand returns a Command for cfg. An error is api.ErrUnusable.
func NewCommand(cfg CommandConfig) (*Command, error) {
	if n := len(cfg.Env); n > maxEnv {
		return nil, api.Unusable(fmt.Errorf("env has %d variables, must be at most %d", n, maxEnv))
	}
	base := wazero.NewModuleConfig().
		WithName(""). // instances with names would exclude one another
		WithStartFunctions().
		WithArgs(cfg.Argv0).
		WithSysWalltime().
		WithSysNanotime().
		WithRandSource(rand.Reader)
	for _, entry := range cfg.Env {
		key, value, ok := strings.Cut(entry, "=")
		if !ok || key == "" || strings.ContainsRune(entry, 0) {
			return nil, api.Unusable(fmt.Errorf("env = %q, must be KEY=value without zero bytes", entry))
		}
		base = base.WithEnv(key, value)
	}
	argv := append([]string{cfg.Argv0}, cfg.Args...)
	for _, arg := range argv {
		if strings.ContainsRune(arg, 0) {
			return nil, api.Unusable(fmt.Errorf("argument = %q, must hold no zero byte", arg))
		}
	}
	stderr := cfg.Stderr
	if stderr == nil {
		stderr = func([]byte) {}
	}
	return &Command{argv: argv[:len(argv):len(argv)], base: base, stderr: stderr}, nil
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
	var linear memory
	defer linear.release()
	instance, err := m.Instantiate(experimental.WithMemoryAllocator(trial, &linear), c.base)
	if err == nil {
		return instance.Close(trial)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case trial.Err() != nil:
		err = fmt.Errorf("its start function didn't end within %s", trialTimeout)
	}
	return api.Unusable(fmt.Errorf("instantiate: %w", err))
}

// Call is what one call brings.
type Call struct {
	// Args follow the Command's own arguments.
	Args []string
	// Env follows the Command's own variables; of two with one name, the last
	// holds.
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
	return text
}

func (e *TrapError) Unwrap() error { return e.Trap }

// Run runs one instance of m to its end and releases m once the instance
// exists. It returns nil for exit status 0, *ExitError for another, *TrapError,
// the error of one of call's streams, or ctx's cause when ctx ended the guest.
func (c *Command) Run(ctx context.Context, m Module, call Call) error {
	p := c.process(ctx, call)
	defer c.reuse(p)
	argv := append(c.argv, call.Args...) // c.argv has no room: this copies
	ctx = experimental.WithMemoryAllocator(ctx, &p.memory)
	config := p.config.WithArgs(argv...)
	for _, entry := range call.Env {
		key, value, _ := strings.Cut(entry, "=")
		config = config.WithEnv(key, value)
	}
	instance, err := m.Instantiate(ctx, config)
	m.Release()
	if err == nil {
		defer func() { _ = instance.Close(ctx) }() // frees what it holds; there is nothing to fail
		_, err = instance.ExportedFunction(start).Call(ctx)
	}
	_ = p.lines.Flush() // which never fails
	err = p.outcome(err)
	if trap := new(TrapError); errors.As(err, &trap) {
		_, _ = fmt.Fprintln(p.call.Stderr, trap.Trap)
	}
	return err
}

// process is one running guest as its host functions see it. The module config
// points here, so that both can be used again by a later call.
type process struct {
	config wazero.ModuleConfig
	lines  *Lines // to CommandConfig.Stderr
	memory memory

	ctx    context.Context
	call   Call
	failed error // of one of call's streams
}

func (c *Command) process(ctx context.Context, call Call) *process {
	p, ok := c.processes.Get().(*process)
	if !ok {
		p = &process{lines: NewLines(func(line []byte) error { c.stderr(line); return nil })}
		p.config = c.base.
			WithStdin((*stdin)(p)).
			WithStdout((*stdout)(p)).
			WithStderr((*stderr)(p)).
			WithNanosleep(p.sleep)
	}
	p.ctx, p.call = ctx, call
	if call.Stdout == nil {
		p.call.Stdout = io.Discard
	}
	if call.Stderr == nil {
		p.call.Stderr = p.lines
	}
	return p
}

func (c *Command) reuse(p *process) {
	p.memory.release()
	p.ctx, p.call, p.failed = nil, Call{}, nil
	c.processes.Put(p)
}

// stdin, stdout and stderr are a process as the streams that it has.
type (
	stdin  process
	stdout process
	stderr process
)

func (s *stdin) Read(b []byte) (int, error) {
	if s.call.Stdin == nil {
		return 0, io.EOF
	}
	n, err := s.call.Stdin.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		(*process)(s).fail(err)
	}
	return n, err
}

func (s *stdout) Write(b []byte) (int, error) {
	n, err := s.call.Stdout.Write(b)
	if err != nil {
		(*process)(s).fail(err)
	}
	return n, nil
}

func (s *stderr) Write(b []byte) (int, error) {
	n, err := s.call.Stderr.Write(b)
	if err != nil {
		(*process)(s).fail(err)
	}
	return n, nil
}

// fail ends the guest whose host function calls it because a stream has failed.
func (p *process) fail(err error) {
	p.failed = err
	leave()
}

// sleep is what poll_oneoff waits with.
func (p *process) sleep(ns int64) {
	timer := time.NewTimer(time.Duration(ns))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.ctx.Done():
		leave()
	}
}

// leave ends the guest whose host function calls it, as proc_exit does. The
// status is never seen: outcome knows the reason before it looks there.
func leave() { panic(sys.NewExitError(sys.ExitCodeContextCanceled)) }

// outcome says why a guest ended, given what wazero returned.
func (p *process) outcome(err error) error {
	var exit *sys.ExitError
	switch {
	case p.failed != nil:
		return p.failed
	case err == nil:
		return nil
	case !errors.As(err, &exit):
		return &TrapError{err}
	case exit.ExitCode() == 0:
		return nil
	// A guest can exit with the statuses that wazero reserves, hence the look at
	// ctx.
	case p.ctx.Err() != nil && (exit.ExitCode() == sys.ExitCodeContextCanceled || exit.ExitCode() == sys.ExitCodeDeadlineExceeded):
		return context.Cause(p.ctx)
	default:
		return &ExitError{exit.ExitCode()}
	}
}
