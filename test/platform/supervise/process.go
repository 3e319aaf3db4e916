package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process identifies one process for good: a pid alone is used again after its
// process has ended, and start times count from a boot.
type Process struct {
	PID int `json:"pid"`
	// Start is the start time in clock ticks since boot, field 22 of
	// /proc/<pid>/stat.
	Start uint64 `json:"start"`
	// Boot is the kernel's boot id.
	Boot string `json:"boot"`
}

// Identify returns the identity of the process that has pid now.
func Identify(pid int) (Process, error) {
	start, err := startTime(pid)
	if err != nil {
		return Process{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Process{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return Process{PID: pid, Start: start, Boot: strings.TrimSpace(string(boot))}, nil
}

// startTime reads a process's start time. A zombie has ended and counts as
// gone.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The second field is the command in parentheses and may hold anything, so
	// fields are counted from the last closing one: state is the first after it.
	_, rest, ok := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(") "))
	fields := bytes.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat: no start time", pid)
	}
	if string(fields[0]) == "Z" {
		return 0, os.ErrNotExist
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// Running reports whether this very process still runs.
func (p Process) Running() bool {
	if p.PID <= 0 {
		return false
	}
	now, err := Identify(p.PID)
	return err == nil && now == p
}

// Signal sends sig to this very process, or returns [os.ErrProcessDone].
func (p Process) Signal(sig unix.Signal) error {
	fd, err := p.open()
	if err != nil {
		return err
	}
	defer closeFD(fd)
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return os.ErrProcessDone
		}
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// End ends this process and waits until it is gone: SIGTERM first, and SIGKILL
// after grace. A process that has ended before is no error.
func (p Process) End(ctx context.Context, grace time.Duration) error {
	fd, err := p.open()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer closeFD(fd)
	for _, step := range []struct {
		sig  unix.Signal
		wait time.Duration
	}{{unix.SIGTERM, grace}, {unix.SIGKILL, 10 * time.Second}} {
		if err := unix.PidfdSendSignal(fd, step.sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal process %d: %w", p.PID, err)
		}
		gone, err := waitPidfd(ctx, fd, step.wait)
		if gone || err != nil {
			return err
		}
	}
	return fmt.Errorf("end process %d: still there 10 s after SIGKILL", p.PID)
}

// open returns a descriptor that stands for this very process. The identity is
// compared after it is open: from then on the pid can't be taken by another.
func (p Process) open() (int, error) {
	if p.PID <= 0 {
		return -1, os.ErrProcessDone
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, os.ErrProcessDone
	}
	if err != nil {
		return -1, fmt.Errorf("open process %d: %w", p.PID, err)
	}
	if !p.Running() {
		closeFD(fd)
		return -1, os.ErrProcessDone
	}
	return fd, nil
}

// closeFD closes a descriptor that nothing was written to: it can't fail in a way
// that matters.
func closeFD(fd int) { _ = unix.Close(fd) }

// waitPidfd waits until the process behind fd has ended.
func waitPidfd(ctx context.Context, fd int, wait time.Duration) (gone bool, err error) {
	deadline := time.Now().Add(wait)
	for time.Now().Before(deadline) {
		// Short turns, so that ctx is seen.
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, fmt.Errorf("wait for a process: %w", err)
		}
		if n > 0 {
			return true, nil
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
	}
	return false, nil
}
