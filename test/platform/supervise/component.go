// Package supervise keeps a set of processes running: it starts them in the
// order of their dependencies, each as soon as what it needs is ready, starts
// one again when it dies, and stops them in reverse.
//
// It knows nothing of what the processes do. The children die with the process
// that supervises them, whatever ends it: see RATIONALE.md "Why do children not
// outlive a supervisor that is killed?". A status file names every process by
// pid and start time, so that a later command can tell what still runs.
//
// [Supervisor.Run] owns one goroutine per component and one that forks; it
// returns when all of them have ended.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Component is one process, or, with an empty Path, one step of the start that
// is only prepared.
type Component struct {
	// Name identifies the component. Its output goes to <Name>.log.
	Name string
	// After names the components that must be ready before this one starts, and
	// that are stopped only after this one has ended.
	After []string
	// Prepare, if set, runs before each start of the process, restarts included.
	Prepare func(context.Context) error
	// Path, Args and Env are the command. Env is added to a small environment
	// that holds PATH, HOME and the like.
	Path string
	Args []string
	Env  []string
	// Ready, if set, returns nil once the process serves. It is called again and
	// again until then, so it should not wait by itself.
	Ready func(context.Context) error
	// ReadyTimeout bounds the wait for Ready; 0 means two minutes.
	ReadyTimeout time.Duration
	// StopTimeout is how long the process may take to end after SIGTERM before
	// it is killed; 0 means 5 s.
	StopTimeout time.Duration
	// Address is where the process serves, to be shown.
	Address string
}

const (
	defaultReadyTimeout = 2 * time.Minute
	defaultStopTimeout  = 5 * time.Second
)

func (c Component) readyTimeout() time.Duration {
	if c.ReadyTimeout > 0 {
		return c.ReadyTimeout
	}
	return defaultReadyTimeout
}

func (c Component) stopTimeout() time.Duration {
	if c.StopTimeout > 0 {
		return c.StopTimeout
	}
	return defaultStopTimeout
}

// Backoff is the pause before a restart: First, doubled with each further
// death, at most Max. A component that ran for Forget, or that was ready and ended
// with status 0, starts over.
type Backoff struct {
	First, Max, Forget time.Duration
}

var defaultBackoff = Backoff{First: 200 * time.Millisecond, Max: 10 * time.Second, Forget: 30 * time.Second}

// pause is the wait before the n-th restart in a row, counted from 1.
func (b Backoff) pause(n int) time.Duration {
	d := b.First
	for ; n > 1 && d < b.Max; n-- {
		d *= 2
	}
	return min(d, b.Max)
}

// checkGraph rejects two components of one name, an unknown dependency, and a
// cycle.
func checkGraph(components []Component) error {
	after := make(map[string][]string, len(components))
	for _, c := range components {
		if c.Name == "" {
			return errors.New("component without a name")
		}
		if _, twice := after[c.Name]; twice {
			return fmt.Errorf("component %s: named twice", c.Name)
		}
		after[c.Name] = c.After
	}
	done := map[string]bool{}
	var visit func(name string, path []string) error
	visit = func(name string, path []string) error {
		if slices.Contains(path, name) {
			return fmt.Errorf("component %s: waits for itself through %v", name, path)
		}
		if done[name] {
			return nil
		}
		for _, dep := range after[name] {
			if _, ok := after[dep]; !ok {
				return fmt.Errorf("component %s: after %s, which does not exist", name, dep)
			}
			if err := visit(dep, append(path, name)); err != nil {
				return err
			}
		}
		done[name] = true
		return nil
	}
	for _, c := range components {
		if err := visit(c.Name, nil); err != nil {
			return err
		}
	}
	return nil
}
