package supervise

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

// Observer looks at a supervisor that runs in another process, or in this one,
// through its status file, and ends components of it. Its methods are safe for
// concurrent use.
type Observer struct {
	// StatusFile is the supervisor's.
	StatusFile string
}

// Status returns the state of every component.
func (o Observer) Status() ([]Status, error) {
	snapshot, err := ReadSnapshot(o.StatusFile)
	return snapshot.Components, err
}

// WaitFor waits until ok holds for the state of a component, and returns that
// state. It sees every state that lasts, but not each that is left at once.
func (o Observer) WaitFor(ctx context.Context, name string, ok func(Status) bool) (Status, error) {
	changes, err := fsnotify.NewWatcher()
	if err != nil {
		return Status{}, fmt.Errorf("watch the status of component %s: %w", name, err)
	}
	defer func() { _ = changes.Close() }()
	// The folder, since the file is replaced with each change.
	if err := changes.Add(filepath.Dir(o.StatusFile)); err != nil {
		return Status{}, fmt.Errorf("watch the status of component %s: %w", name, err)
	}
	for {
		st, err := o.component(name)
		if err != nil || ok(st) {
			return st, err
		}
		select {
		case <-changes.Events:
		case err := <-changes.Errors:
			return st, fmt.Errorf("watch the status of component %s: %w", name, err)
		case <-ctx.Done():
			return st, fmt.Errorf("wait for component %s, now %s: %w", name, st.State, ctx.Err())
		}
	}
}

func (o Observer) component(name string) (Status, error) {
	all, err := o.Status()
	if err != nil {
		return Status{}, err
	}
	for _, st := range all {
		if st.Name == name {
			return st, nil
		}
	}
	return Status{}, fmt.Errorf("component %s: there is none of that name", name)
}

// Kill ends a component with SIGKILL and waits until the supervisor has it ready
// again.
func (o Observer) Kill(ctx context.Context, name string) error {
	return o.replace(ctx, name, func(p Process) error { return p.Signal(unix.SIGKILL) })
}

// End ends a component with SIGKILL and waits until the supervisor has noticed.
func (o Observer) End(ctx context.Context, name string) error {
	before, err := o.end(ctx, name, func(p Process) error { return p.Signal(unix.SIGKILL) })
	if err != nil {
		return err
	}
	_, err = o.WaitFor(ctx, name, func(st Status) bool { return st.State != Ready || st.Restarts > before.Restarts })
	return err
}

// Restart ends a component as a shutdown does and waits until the supervisor
// has it ready again.
func (o Observer) Restart(ctx context.Context, name string) error {
	return o.replace(ctx, name, func(p Process) error { return p.End(ctx, restartGrace) })
}

// restartGrace is how long a component may take to end before it is killed.
const restartGrace = 10 * time.Second

// replace ends the process that a component is now, and waits for the next.
func (o Observer) replace(ctx context.Context, name string, end func(Process) error) error {
	before, err := o.end(ctx, name, end)
	if err != nil {
		return err
	}
	_, err = o.WaitFor(ctx, name, func(st Status) bool { return st.State == Ready && st.Restarts > before.Restarts })
	return err
}

// end ends the process that a component is now, and returns its state before.
func (o Observer) end(ctx context.Context, name string, end func(Process) error) (Status, error) {
	before, err := o.WaitFor(ctx, name, func(st Status) bool { return st.State == Ready })
	if err != nil {
		return before, err
	}
	if before.PID == 0 {
		return before, fmt.Errorf("end component %s: it is no process", name)
	}
	if err := end(before.Process); err != nil {
		return before, fmt.Errorf("end component %s: %w", name, err)
	}
	return before, nil
}
