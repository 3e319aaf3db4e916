package compile

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wisp-serving/wisp/runtime/api"
)

// Limits are those of one compilation.
type Limits struct {
	// Time bounds the CPU time. The wall time may be ten minutes more: a busy node
	// leaves a compilation little.
	Time time.Duration
	// Memory bounds the child's memory in bytes.
	Memory int64
	// File bounds each file that it writes, in bytes.
	File int64
}

// Child compiles in child processes.
type Child struct {
	// Command is how this binary, or another one with the same code, is told to
	// call ChildMain with the arguments that follow.
	Command []string
	Limits  Limits
}

// statusUnusable is the exit status that says that the module is at fault; why
// is on standard output.
const statusUnusable = 3

// maxWait is how long a compilation may wait for its cores, all in all.
const maxWait = 10 * time.Minute

// maxMessage bounds what is read of a child's output.
const maxMessage = 64 << 10

// Compile is Here in a child process. A module whose compilation goes beyond a
// limit is api.ErrUnusable too. ctx ends the child.
func (c Child) Compile(ctx context.Context, module []byte, out string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Limits.Time+maxWait, errTime)
	defer cancel()
	// The kernel kills the child when the thread that has started it ends.
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()

	args := append(c.Command[1:len(c.Command):len(c.Command)],
		"-time", c.Limits.Time.String(),
		"-memory", strconv.FormatInt(c.Limits.Memory, 10),
		"-file", strconv.FormatInt(c.Limits.File, 10),
		out)
	cmd := exec.CommandContext(ctx, c.Command[0], args...)
	cmd.Env = []string{"GOMEMLIMIT=" + strconv.FormatInt(c.Limits.Memory*3/4, 10), "GOMAXPROCS=2", "GOTRACEBACK=none"}
	cmd.Stdin = bytes.NewReader(module)
	stdout, stderr := &head{}, &head{}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return c.verdict(err, stdout.text(), stderr.text())
}

// errTime isn't the module's fault.
var errTime = errors.New("the node was too busy to compile in time")

// verdict says whose fault it is that the child has ended with err.
func (c Child) verdict(err error, stdout, stderr string) error {
	exit := new(exec.ExitError)
	if !errors.As(err, &exit) {
		return fmt.Errorf("run the compiler: %w", err)
	}
	switch {
	case exit.ExitCode() == statusUnusable:
		return api.Unusable(errors.New(stdout))
	case exit.UserTime()+exit.SystemTime() >= c.Limits.Time: // killed before it could say so
		return api.Unusable(errors.New(c.Limits.overTime()))
	case strings.Contains(stderr, "out of memory"), strings.Contains(stderr, "cannot allocate memory"),
		strings.Contains(stderr, "SIGSEGV: segmentation violation\nPC="), // Go's collector takes what it is given as given
		strings.Contains(stderr, "ThreadSanitizer failed to allocate"):   // a binary with the race detector
		return api.Unusable(fmt.Errorf("compiling took more than the %d MiB of memory that it may take", c.Limits.Memory>>20))
	default:
		return fmt.Errorf("run the compiler: %w: %s", err, stderr)
	}
}

// ChildMain is the child: it compiles the module on stdin into the folder that
// its last argument names, within the limits that the others tell, and returns
// the process' exit status. It ends the process itself when it takes too long.
func ChildMain(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("compile", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var limits Limits
	flags.DurationVar(&limits.Time, "time", 0, "CPU `time`")
	flags.Int64Var(&limits.Memory, "memory", 0, "memory in `bytes`")
	flags.Int64Var(&limits.File, "file", 0, "`bytes` of a file")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	exceeded := make(chan os.Signal, 1)
	signal.Notify(exceeded, unix.SIGXCPU)
	go func() { // until the process ends
		<-exceeded
		fmt.Fprint(stdout, limits.overTime())
		os.Exit(statusUnusable)
	}()
	err := limits.apply()
	var module []byte
	if err == nil {
		module, err = io.ReadAll(stdin)
	}
	if err == nil {
		err = Here(context.Background(), module, flags.Arg(0))
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, syscall.EFBIG):
		fmt.Fprintf(stdout, "its code takes more than the %d MiB that it may take", limits.File>>20)
		return statusUnusable
	case errors.Is(err, api.ErrUnusable):
		fmt.Fprint(stdout, err)
		return statusUnusable
	default:
		fmt.Fprintln(stderr, "compile:", err)
		return 1
	}
}

// apply puts this process under the limits, for good, and behind all others
// when cores are short.
func (l Limits) apply() error {
	signal.Ignore(unix.SIGXFSZ) // a write fails instead
	seconds := uint64((l.Time + time.Second - 1) / time.Second)
	both := func(limit uint64) unix.Rlimit { return unix.Rlimit{Cur: limit, Max: limit} }
	for resource, limit := range map[int]unix.Rlimit{
		// At the soft limit the child says what it dies of. Of a killed one the parent
		// can't tell: the limit counts ticks, and the usage that is reported doesn't.
		unix.RLIMIT_CPU: {Cur: seconds, Max: seconds + 1},
		// Not the address space, of which Go reserves what it doesn't use.
		unix.RLIMIT_DATA:   both(uint64(l.Memory)),
		unix.RLIMIT_FSIZE:  both(uint64(l.File)),
		unix.RLIMIT_CORE:   both(0),
		unix.RLIMIT_NOFILE: both(64),
	} {
		if err := unix.Setrlimit(resource, &limit); err != nil {
			return fmt.Errorf("set limit %d to %d: %w", resource, limit.Cur, err)
		}
	}
	// A thread's priority is its own; new threads have that of their parent.
	threads, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		return err
	}
	for _, path := range threads {
		id, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			return err
		}
		if err := unix.Setpriority(unix.PRIO_PROCESS, id, niceness); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("lower the priority: %w", err)
		}
	}
	return nil
}

// overTime says that a compilation has gone beyond l.Time.
func (l Limits) overTime() string {
	return fmt.Sprintf("compiling took more than the %s that it may take", l.Time)
}

// niceness leaves a compilation about a tenth of what another thread gets of a
// core that both want. The lowest priority would keep new pods from a busy node.
const niceness = 10

// unusable marks err as the module's fault unless it is the machine's.
func unusable(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) || errors.Is(err, os.ErrPermission) {
		return err
	}
	return api.Unusable(err)
}

// head keeps the first maxMessage bytes of what is written to it.
type head struct{ buf []byte }

func (h *head) Write(p []byte) (int, error) {
	h.buf = append(h.buf, p[:min(len(p), maxMessage-len(h.buf))]...)
	return len(p), nil
}

func (h *head) text() string { return strings.TrimSpace(string(h.buf)) }
