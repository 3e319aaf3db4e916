// Package watchdog ends a process whose goroutines have stopped running.
//
// A process that is stuck, say because the garbage collector waits for a thread
// that never comes by, can't be trusted to notice. So the kernel does it: two of
// its timers are put off by a goroutine, and when that doesn't run any more, the
// first one has the Go runtime print all goroutines and exit (SIGQUIT), and the
// second one kills (SIGKILL), which needs nothing of the process. Whoever
// supervises it starts it again.
package watchdog

import (
	"context"
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lastWords is how long a process has to print its goroutines.
const lastWords = 2 * time.Second

// Run watches the process until ctx ends. It must run in a goroutine of its own:
// when that gets no turn for timeout, the process ends.
func Run(ctx context.Context, timeout time.Duration) error {
	quit, err := newTimer(unix.SIGQUIT)
	if err != nil {
		return err
	}
	defer quit.remove()
	kill, err := newTimer(unix.SIGKILL)
	if err != nil {
		return err
	}
	defer kill.remove()

	heartbeat := time.NewTicker(timeout / 10)
	defer heartbeat.Stop()
	for {
		if err := quit.set(timeout); err != nil {
			return err
		}
		if err := kill.set(timeout + lastWords); err != nil {
			return err
		}
		select {
		case <-heartbeat.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// timer is a timer of the kernel's, which sends this process a signal.
type timer int32

// event is a struct sigevent; see sigevent(3type).
type event struct {
	value        uintptr
	signo, notif int32
	_            [48]byte
}

func newTimer(signal syscall.Signal) (timer, error) {
	e := event{signo: int32(signal)} // notif 0 is SIGEV_SIGNAL
	var t timer
	_, _, errno := unix.RawSyscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&e)), uintptr(unsafe.Pointer(&t)))
	if errno != 0 {
		return 0, fmt.Errorf("make the watchdog's timer: %w", errno)
	}
	return t, nil
}

// set has the timer expire after d, once.
func (t timer) set(d time.Duration) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	_, _, errno := unix.RawSyscall6(unix.SYS_TIMER_SETTIME, uintptr(t), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("set the watchdog's timer: %w", errno)
	}
	return nil
}

func (t timer) remove() { _, _, _ = unix.RawSyscall(unix.SYS_TIMER_DELETE, uintptr(t), 0, 0) }
