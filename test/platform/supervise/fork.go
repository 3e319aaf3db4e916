package supervise

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// fork asks for one process to be started.
type fork struct {
	cmd  *exec.Cmd
	done chan<- error
}

// serveForks starts processes until forks is closed. All forks happen on one OS
// thread, which lives as long as this call: the kernel kills a child when the
// thread that forked it ends, and Go ends idle threads as it likes.
func serveForks(forks <-chan fork) {
	// Never unlocked: the thread ends with this goroutine, and nobody else uses
	// a thread that still has children bound to it.
	runtime.LockOSThread()
	for f := range forks {
		f.done <- f.cmd.Start()
	}
}

// command makes the exec.Cmd of a component that writes to log.
func command(c Component, log *os.File) *exec.Cmd {
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env = append(baseEnv(), c.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		// A group of its own: Ctrl-C in a terminal reaches the supervisor only,
		// which then stops everything in order.
		Setpgid: true,
	}
	return cmd
}

// baseEnv is the environment that every component gets. Nothing else is
// inherited, so that a component behaves alike in every shell.
func baseEnv() []string {
	var env []string
	for _, key := range []string{"PATH", "HOME", "TMPDIR", "LANG", "TZ"} {
		if v, ok := os.LookupEnv(key); ok {
			env = append(env, fmt.Sprintf("%s=%s", key, v))
		}
	}
	return env
}
