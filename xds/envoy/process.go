package envoy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is an Envoy of a folder, of this gateway or of an earlier one. Its methods
// may be called by one goroutine at a time.
type process struct {
	pid int
	// number is one that no other Envoy of the folder has.
	number int
	// identity is what it was started from.
	identity string
	dir      string
	admin    *http.Client
	// fd is the process itself, whoever has its pid later.
	fd *os.File
	// ended is closed when it has. Then err is how, if that is known.
	ended chan struct{}
	err   error
	// watched is closed when nobody waits for its end any more.
	watched chan struct{}
}

// bootstrapFile returns what an Envoy starts from. That it is in the command line is
// how Envoys are found.
func bootstrapFile(dir string, number int, identity string) string {
	return filepath.Join(dir, fmt.Sprintf("envoy-%d-%s.yaml", number, identity))
}

// admin returns the socket of an Envoy's admin interface.
func admin(dir string, number int) string {
	return filepath.Join(dir, fmt.Sprintf("envoy-%d.sock", number))
}

// find returns the running Envoys of a folder, by number. A pid in a file would be
// written a moment after the start, and an Envoy lost whose gateway is killed in it:
// it would go on taking a part of the requests, and hear of no change.
func find(dir string) ([]*process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("find running Envoys: %w", err)
	}
	var out []*process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if _, _, ok := started(pid, dir); !ok {
			continue
		}
		fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
		if err != nil {
			continue // it has just ended
		}
		number, identity, ok := started(pid, dir) // still, now that it is held
		if !ok {
			_ = unix.Close(fd)
			continue
		}
		out = append(out, newProcess(pid, fd, dir, number, identity, func() error { return nil }))
	}
	slices.SortFunc(out, func(a, b *process) int { return cmp.Compare(a.number, b.number) })
	return out, nil
}

// started returns what a process says of its start, if it is an Envoy of a folder.
func started(pid int, dir string) (number int, identity string, ok bool) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return 0, "", false
	}
	args := strings.Split(string(line), "\x00")
	i := slices.Index(args, "-c")
	if i < 0 || i+1 == len(args) {
		return 0, "", false
	}
	name, inside := strings.CutPrefix(args[i+1], filepath.Join(dir, "envoy-"))
	name, yaml := strings.CutSuffix(name, ".yaml")
	text, identity, named := strings.Cut(name, "-")
	number, err = strconv.Atoi(text)
	return number, identity, inside && yaml && named && err == nil
}

// spawn starts a process by cmd.
func spawn(cmd *exec.Cmd, dir string, number int, identity string) (*process, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("hold process %d: %w", cmd.Process.Pid, err), cmd.Process.Kill(), cmd.Wait())
	}
	return newProcess(cmd.Process.Pid, fd, dir, number, identity, cmd.Wait), nil
}

// newProcess returns a process and watches it until it has ended or is released. wait
// returns how it has ended.
func newProcess(pid, fd int, dir string, number int, identity string, wait func() error) *process {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", admin(dir, number))
	}
	p := &process{
		pid: pid, number: number, identity: identity, dir: dir,
		admin: &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}, Timeout: time.Second},
		fd:    os.NewFile(uintptr(fd), "pidfd"),
		ended: make(chan struct{}), watched: make(chan struct{}),
	}
	go func() {
		defer close(p.watched)
		if p.await() == nil {
			p.err = wait()
			close(p.ended)
		}
	}()
	return p
}

// await returns nil when the process has ended, and an error when it is released
// before.
func (p *process) await() error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			if !errors.Is(err, unix.EINTR) {
				return n > 0
			}
		}
	})
}

// release stops watching a process that goes on.
func (p *process) release() {
	_ = p.fd.Close()
	<-p.watched
}

// forget releases a process that has ended and removes its files.
func (p *process) forget() {
	p.release()
	_ = os.Remove(bootstrapFile(p.dir, p.number, p.identity))
	_ = os.Remove(admin(p.dir, p.number))
}

// usable reports whether a process takes requests or will: it answers and isn't
// draining.
func (p *process) usable(ctx context.Context) bool {
	state, err := p.ask(ctx, http.MethodGet, "/ready")
	return err == nil && strings.TrimSpace(state) != "DRAINING"
}

// serves reports whether a process has all of the listeners and accepts connections.
// It makes some: which of the processes that share a port gets one is the kernel's
// choice.
func (p *process) serves(ctx context.Context, listeners map[string]string) bool {
	state, err := p.ask(ctx, http.MethodGet, "/ready")
	if err != nil || strings.TrimSpace(state) != "LIVE" {
		return false
	}
	text, err := p.ask(ctx, http.MethodGet, "/listeners")
	if err != nil {
		return false
	}
	has := map[string]bool{}
	for line := range strings.Lines(text) {
		name, _, _ := strings.Cut(line, "::")
		has[name] = true
	}
	for name, address := range listeners {
		if !has[name] {
			return false // not there, or waiting for its routes
		}
		if conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", address); err == nil {
			_ = conn.Close()
		}
	}
	accepted, err := p.count(ctx, `^listener\..+\.downstream_cx_total$`)
	return err == nil && accepted > 0
}

// activity is a regular expression for counters of what goes on in an Envoy.
type activity string

const (
	requests    activity = `^http\..+\.downstream_rq_active$`
	connections activity = `^http\..+\.downstream_cx_active$`
)

// close has an Envoy take no new connection, and returns when its listeners are
// closed, or when the process or ctx has ended.
func (p *process) close(ctx context.Context) {
	if _, err := p.ask(ctx, http.MethodPost, "/drain_listeners"); err != nil {
		return // it doesn't serve
	}
	p.until(ctx, func() (bool, error) {
		n, err := p.count(ctx, `^listener_manager\.listener_stopped$`)
		return n > 0, err
	})
}

// sendAway has an Envoy close each of its connections after its next answer. It
// returns when there is nothing of a kind any more, or when the process or ctx has
// ended.
func (p *process) sendAway(ctx context.Context, of activity) {
	if _, err := p.ask(ctx, http.MethodPost, "/healthcheck/fail"); err != nil {
		return
	}
	p.until(ctx, func() (bool, error) {
		n, err := p.count(ctx, string(of))
		return n == 0, err
	})
}

// until waits until done says so or fails, or the process or ctx has ended.
func (p *process) until(ctx context.Context, done func() (bool, error)) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return
		case <-ctx.Done():
			return
		}
	}
}

// end ends a process, by force if it takes longer than grace, and waits until it has
// ended.
func (p *process) end(grace time.Duration) {
	p.signal(unix.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(grace):
		p.signal(unix.SIGKILL)
		<-p.ended
	}
}

func (p *process) signal(s unix.Signal) {
	raw, err := p.fd.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), s, nil, 0) }) // it may have ended
	}
}

// count returns the sum of those of Envoy's counters that match a regular expression,
// without those of its admin interface.
func (p *process) count(ctx context.Context, filter string) (int, error) {
	text, err := p.ask(ctx, http.MethodGet, "/stats?usedonly&filter="+url.QueryEscape(filter))
	if err != nil {
		return 0, err
	}
	sum := 0
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if n, err := strconv.Atoi(value); err == nil && !strings.Contains(name, ".admin.") {
			sum += n
		}
	}
	return sum, nil
}

// ask sends a request to Envoy's admin interface.
func (p *process) ask(ctx context.Context, method, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://envoy"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := p.admin.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return string(text), err
}
