package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
)

// inside is the environment variable by which a program knows that Exec has
// started it.
const inside = "WISP_TEST_NETNS"

// Inside reports whether this program was started by Exec.
func Inside() bool { return os.Getenv(inside) != "" }

// Exec runs this program again, with its arguments and streams, in a new network
// namespace, and returns its exit code. An error means that it was not run. The
// other program is killed when this one ends before it.
func Exec() (code int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("enter a network namespace: %w", err)
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = namespaces(os.Geteuid(), os.Getegid())
	// The kernel's "parent" is the thread that forked; this one stays.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// From a terminal, an interrupt goes to both: the other one cleans up.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	defer signal.Stop(interrupts)
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1), nil // -1: killed by a signal
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EINVAL):
		return 0, fmt.Errorf("enter a network namespace: %w: run this as root, or on a kernel that gives users namespaces "+
			"(kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns, user.max_user_namespaces)", err)
	case err != nil:
		return 0, fmt.Errorf("enter a network namespace: %w", err)
	}
	return 0, nil
}

// namespaces are those that a user needs: for all but root, the network's owner
// must be a user namespace in which they are root.
func namespaces(uid, gid int) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if uid != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}}
	}
	return attr
}
