package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// unit is one component at work. All of its life is run's goroutine.
type unit struct {
	Component
	s          *Supervisor
	index      int
	log        string
	deps       []*unit
	dependents []*unit
	ready      chan struct{} // closed when ready for the first time
	ended      chan struct{} // closed when it will never run again
}

// child is one started process.
type child struct {
	Process
	started   time.Time
	logOffset int64         // where its output begins in the log
	exited    chan struct{} // closed when it has been waited for
	exit      string        // how it ended; set before exited is closed
	clean     bool          // it ended with status 0, as what is asked to end does; set with exit
}

// errStopped says that the supervisor stops and nothing went wrong.
var errStopped = errors.New("stopped")

func (u *unit) run(ctx context.Context) error {
	defer close(u.ended)
	for _, dep := range u.deps {
		select {
		case <-dep.ready:
		case <-ctx.Done():
			return nil
		}
	}
	begun := time.Now()
	c, err := u.start(ctx)
	if err != nil {
		u.s.update(u, func(st *Status) { st.State = Stopped })
		if errors.Is(err, errStopped) {
			return nil
		}
		return err
	}
	u.s.report(u, false, "ready after %s", time.Since(begun).Round(time.Millisecond))
	close(u.ready)
	if c == nil {
		<-ctx.Done()
		return nil
	}
	u.keep(ctx, c)
	return nil
}

// keep watches a ready child, and those that replace it, until ctx ends.
func (u *unit) keep(ctx context.Context, c *child) {
	for deaths := 0; ; {
		select {
		case <-ctx.Done():
			u.stop(c)
			return
		case <-c.exited:
			if c.clean || time.Since(c.started) > u.s.cfg.Backoff.Forget {
				deaths = 0
			}
			deaths++
			u.s.report(u, true, "ended: %s%s", c.exit, excerpt(u.tail(c), u.log))
			if !u.pause(ctx, deaths) {
				u.s.update(u, func(st *Status) { st.State = Stopped })
				return
			}
		}
		var ok bool
		if c, ok = u.again(ctx, &deaths); !ok {
			return
		}
	}
}

// again starts the process anew until it is ready, or reports false when ctx
// has ended.
func (u *unit) again(ctx context.Context, deaths *int) (*child, bool) {
	for {
		u.s.update(u, func(st *Status) { st.Restarts++ })
		c, err := u.start(ctx)
		if err == nil {
			u.s.report(u, true, "ready again")
			return c, true
		}
		if !errors.Is(err, errStopped) {
			u.s.report(u, true, "%v", err)
			*deaths++
			if u.pause(ctx, *deaths) {
				continue
			}
		}
		u.s.update(u, func(st *Status) { st.State = Stopped })
		return nil, false
	}
}

// pause waits before a restart; false means that ctx has ended.
func (u *unit) pause(ctx context.Context, deaths int) bool {
	d := u.s.cfg.Backoff.pause(deaths)
	u.s.report(u, true, "starting again in %s", d)
	u.s.update(u, func(st *Status) { st.State = BackOff })
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// start prepares and starts the process and waits until it is ready. On an
// error nothing is left running. A step without a process returns nil, nil.
func (u *unit) start(ctx context.Context) (*child, error) {
	u.s.update(u, func(st *Status) { st.State = Starting })
	if u.Prepare != nil {
		if err := u.Prepare(ctx); err != nil {
			if ctx.Err() != nil {
				return nil, errStopped
			}
			return nil, &StartError{Component: u.Name, Cause: fmt.Errorf("prepare: %w", err)}
		}
	}
	if u.Path == "" {
		u.s.update(u, func(st *Status) { st.State = Ready })
		return nil, nil
	}
	c, err := u.spawn()
	if err != nil {
		return nil, &StartError{Component: u.Name, Cause: err}
	}
	if err := u.awaitReady(ctx, c); err != nil {
		tail := u.tail(c)
		u.terminate(c)
		if errors.Is(err, errStopped) {
			return nil, err
		}
		return nil, &StartError{Component: u.Name, Cause: err, Tail: tail, Log: u.log}
	}
	u.s.update(u, func(st *Status) { st.State = Ready })
	return c, nil
}

// spawn starts the process and a goroutine that waits for it.
func (u *unit) spawn() (*child, error) {
	log, err := os.OpenFile(u.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has its own
	info, err := log.Stat()
	if err != nil {
		return nil, err
	}
	cmd := command(u.Component, log)
	done := make(chan error, 1)
	u.s.forks <- fork{cmd, done}
	if err := <-done; err != nil {
		return nil, err
	}
	c := &child{started: time.Now(), logOffset: info.Size(), exited: make(chan struct{})}
	if c.Process, err = Identify(cmd.Process.Pid); err != nil {
		c.Process = Process{PID: cmd.Process.Pid} // dead already, as Wait will tell
	}
	u.s.update(u, func(st *Status) { st.Process, st.Since = c.Process, c.started })
	go func() {
		defer close(c.exited)
		_ = cmd.Wait() // says no more than the state
		c.exit, c.clean = cmd.ProcessState.String(), cmd.ProcessState.Success()
		u.s.update(u, func(st *Status) { st.Process, st.LastExit = Process{}, c.exit })
	}()
	return c, nil
}

// How often a process is asked whether it is ready: first quickly, then less
// and less, so that its log isn't full of it. And how often it is said what is
// waited for.
const (
	firstAsk   = 25 * time.Millisecond
	slowestAsk = 250 * time.Millisecond
	sayWaiting = 10 * time.Second
	// askTimeout is for a machine on which everything else starts too.
	askTimeout = 5 * time.Second
)

func (u *unit) awaitReady(ctx context.Context, c *child) error {
	if u.Ready == nil {
		return nil
	}
	timeout := time.NewTimer(u.readyTimeout())
	defer timeout.Stop()
	said := c.started
	for {
		err := u.ask(ctx)
		if err == nil {
			return nil
		}
		if time.Since(said) >= sayWaiting {
			said = time.Now()
			u.s.report(u, true, "not ready after %s: %v", time.Since(c.started).Round(time.Second), err)
		}
		select {
		case <-time.After(min(max(time.Since(c.started)/10, firstAsk), slowestAsk)):
		case <-ctx.Done():
			return errStopped
		case <-c.exited:
			return fmt.Errorf("ended before it was ready: %s", c.exit)
		case <-timeout.C:
			return fmt.Errorf("not ready after %s: %w", u.readyTimeout(), err)
		}
	}
}

// ask calls Ready, which may not hang.
func (u *unit) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return u.Ready(ctx)
}

// stop ends a child once everything that depends on this unit has ended.
func (u *unit) stop(c *child) {
	for _, d := range u.dependents {
		<-d.ended
	}
	begun := time.Now()
	u.terminate(c)
	u.s.update(u, func(st *Status) { st.State = Stopped })
	u.s.report(u, false, "stopped after %s: %s", time.Since(begun).Round(time.Millisecond), c.exit)
}

// terminate ends a child and waits for it.
func (u *unit) terminate(c *child) {
	u.s.update(u, func(st *Status) { st.State = Stopping })
	_ = c.Signal(unix.SIGTERM) // an error means that it has ended
	select {
	case <-c.exited:
	case <-time.After(u.stopTimeout()):
		_ = c.Signal(unix.SIGKILL)
		<-c.exited
	}
}
