package sandbox

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"

	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/runtime/wasi"
)

// ports are those of a server, which have listeners while an instance runs.
type ports struct {
	numbers []int
	closing <-chan struct{} // the sandbox's

	mu        sync.Mutex
	listeners []*wasi.Listener // nil while none runs
	changed   chan struct{}    // closed when listeners is another
}

func newPorts(numbers []int, closing <-chan struct{}) *ports {
	return &ports{numbers: numbers, closing: closing, changed: make(chan struct{})}
}

// open makes the listeners of a new instance, which closes them.
func (p *ports) open() []*wasi.Listener {
	listeners := make([]*wasi.Listener, len(p.numbers))
	for i, n := range p.numbers {
		listeners[i] = wasi.NewListener(n)
	}
	p.set(listeners)
	return listeners
}

// close says that no instance runs.
func (p *ports) close() { p.set(nil) }

func (p *ports) set(listeners []*wasi.Listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listeners = listeners
	close(p.changed)
	p.changed = make(chan struct{})
}

// at returns the listener of a port, nil while there is none, and what is closed
// when that changes.
func (p *ports) at(number int) (l *wasi.Listener, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.listeners {
		if l.Port() == number {
			return l, p.changed
		}
	}
	return nil, p.changed
}

var errNoListener = errors.New("no guest listens there")

// dial connects to a port at once, or fails.
func (p *ports) dial(ctx context.Context, number int) (*wasi.Conn, error) {
	l, _ := p.at(number)
	if l == nil {
		return nil, errNoListener
	}
	return l.Dial(ctx)
}

// dialPatiently connects to the first port as soon as an instance listens there.
func (p *ports) dialPatiently(ctx context.Context) (*wasi.Conn, error) {
	for {
		l, changed := p.at(p.numbers[0])
		var listening, closed <-chan struct{}
		if l != nil && !isClosed(l.Closed()) { // else the next instance may listen
			listening, closed = l.Listening(), l.Closed()
			if isClosed(listening) { // whatever else there is to choose from
				return l.Dial(ctx)
			}
		}
		select {
		case <-listening:
			return l.Dial(ctx)
		case <-closed:
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-p.closing:
			return nil, guest.ErrClosed
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// environment tells a guest its listeners: in Wisp's own way, by port, and in
// the one of systemd as far as that can say it; and where requests come.
func (p *ports) environment(mounts int) []string {
	first := wasi.FirstListener(mounts)
	list := make([]string, len(p.numbers))
	for i, n := range p.numbers {
		list[i] = strconv.Itoa(n) + "=" + strconv.Itoa(first+i)
	}
	return []string{
		"WISP_LISTENERS=" + strings.Join(list, ","),
		"LISTEN_FDS=" + strconv.Itoa(len(list)),
		"LISTEN_FDS_FIRST_FD=" + strconv.Itoa(first),
		"PORT=" + strconv.Itoa(p.numbers[0]),
	}
}
