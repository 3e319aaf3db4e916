package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Config configures a [Supervisor].
type Config struct {
	// Components, in the order in which they are shown.
	Components []Component
	// LogDir is the folder of the log files. The logs of the last time are kept
	// as <name>.log.old.
	LogDir string
	// StatusFile is rewritten with every change; empty for none.
	StatusFile string
	// Report, if set, is told of everything that happens. It is called from
	// several goroutines and should not block.
	Report func(Event)
	// Backoff replaces the default pauses before a restart if set.
	Backoff Backoff
}

// Event is something that happened to a component.
type Event struct {
	Time      time.Time
	Component string
	// Text says what happened, to be read after the component's name.
	Text string
	// Trouble marks what nobody asked for.
	Trouble bool
}

// String renders the event as a line of a log.
func (e Event) String() string {
	return fmt.Sprintf("%s %s: %s", e.Time.Format("15:04:05.000"), e.Component, e.Text)
}

// Supervisor runs components. Its methods are safe for concurrent use.
type Supervisor struct {
	cfg     Config
	self    Process
	units   []*unit
	forks   chan fork
	ready   chan struct{}
	writing sync.Mutex // held while the status file is written, so that an older state never replaces a newer one

	mu      sync.Mutex
	status  []Status      // one per unit
	changed chan struct{} // closed and replaced with each change of status
}

// New checks the components and makes a supervisor that has started nothing.
func New(cfg Config) (*Supervisor, error) {
	if err := checkGraph(cfg.Components); err != nil {
		return nil, err
	}
	if cfg.Backoff == (Backoff{}) {
		cfg.Backoff = defaultBackoff
	}
	if cfg.Report == nil {
		cfg.Report = func(Event) {}
	}
	self, err := Identify(os.Getpid())
	if err != nil {
		return nil, err
	}
	s := &Supervisor{
		cfg: cfg, self: self, forks: make(chan fork),
		ready: make(chan struct{}), changed: make(chan struct{}),
	}
	byName := map[string]*unit{}
	for i, c := range cfg.Components {
		u := &unit{
			Component: c, s: s, index: i,
			ready: make(chan struct{}), ended: make(chan struct{}),
		}
		st := Status{Name: c.Name, State: Waiting, Address: c.Address}
		if c.Path != "" {
			u.log = filepath.Join(cfg.LogDir, c.Name+".log")
			st.Log = u.log
		}
		byName[c.Name] = u
		s.units = append(s.units, u)
		s.status = append(s.status, st)
	}
	for _, u := range s.units {
		for _, dep := range u.After {
			u.deps = append(u.deps, byName[dep])
			byName[dep].dependents = append(byName[dep].dependents, u)
		}
	}
	return s, nil
}

// Run starts everything and keeps it running until ctx ends, then stops it. It
// returns nil after a clean stop, and a [*StartError] if a component didn't get
// ready the first time; by then everything has been stopped. Call it once.
func (s *Supervisor) Run(ctx context.Context) error {
	if err := s.keepOldLogs(); err != nil {
		return err
	}
	forker := make(chan struct{})
	go func() {
		defer close(forker)
		serveForks(s.forks)
	}()
	g, ctx := errgroup.WithContext(ctx)
	for _, u := range s.units {
		g.Go(func() error { return u.run(ctx) })
	}
	g.Go(func() error {
		for _, u := range s.units {
			select {
			case <-u.ready:
			case <-ctx.Done():
				return nil
			}
		}
		close(s.ready)
		return nil
	})
	err := g.Wait()
	close(s.forks)
	<-forker
	return err
}

// Ready is closed when every component has been ready once.
func (s *Supervisor) Ready() <-chan struct{} { return s.ready }

// Status returns the state of every component, in the order of the Config.
func (s *Supervisor) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.status)
}

// WaitFor waits until ok holds for the state of a component, and returns that
// state.
func (s *Supervisor) WaitFor(ctx context.Context, name string, ok func(Status) bool) (Status, error) {
	u, err := s.unit(name)
	if err != nil {
		return Status{}, err
	}
	for {
		s.mu.Lock()
		st, changed := s.status[u.index], s.changed
		s.mu.Unlock()
		if ok(st) {
			return st, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return st, fmt.Errorf("wait for component %s, now %s: %w", name, st.State, ctx.Err())
		}
	}
}

func (s *Supervisor) unit(name string) (*unit, error) {
	for _, u := range s.units {
		if u.Name == name {
			return u, nil
		}
	}
	return nil, fmt.Errorf("component %s: there is none of that name", name)
}

func (s *Supervisor) keepOldLogs() error {
	if err := os.MkdirAll(s.cfg.LogDir, 0o700); err != nil {
		return fmt.Errorf("make log folder: %w", err)
	}
	for _, u := range s.units {
		if u.log == "" {
			continue
		}
		if err := os.Rename(u.log, u.log+".old"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("keep the last log of %s: %w", u.Name, err)
		}
	}
	return nil
}

// update changes one unit's status and tells everyone who waits.
func (s *Supervisor) update(u *unit, change func(*Status)) {
	s.mu.Lock()
	change(&s.status[u.index])
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	if s.cfg.StatusFile == "" {
		return
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := (Snapshot{Supervisor: s.self, Components: s.Status()}).write(s.cfg.StatusFile); err != nil {
		s.report(u, true, "write status: %v", err)
	}
}

func (s *Supervisor) report(u *unit, trouble bool, format string, args ...any) {
	s.cfg.Report(Event{Time: time.Now(), Component: u.Name, Text: fmt.Sprintf(format, args...), Trouble: trouble})
}
