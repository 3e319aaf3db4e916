package wasi

import (
	"context"
	"net"
	"strconv"
	"sync"
	"syscall"

	"github.com/tetratelabs/wazero/api"
)

// backlog bounds the connections that wait to be accepted.
const backlog = 1024

// Listener is a port of a process. Guests find it open, accept connections from
// it, and can't make one; hosts dial it. It is safe for concurrent use, and for
// one process.
type Listener struct {
	port int

	mu        sync.Mutex
	waiting   []*conn
	wake      chan<- struct{} // the process's
	listening chan struct{}   // closed once the guest uses the descriptor
	used      bool            // listening is closed
	closed    chan struct{}
	ended     bool // closed is closed
}

// NewListener returns a Listener that goes by port.
func NewListener(port int) *Listener {
	return &Listener{port: port, listening: make(chan struct{}), closed: make(chan struct{})}
}

// Port returns the port that the Listener was made with.
func (l *Listener) Port() int { return l.port }

// Listening is closed once the guest has begun to listen: it polled the
// descriptor, set its flags or accepted from it.
func (l *Listener) Listening() <-chan struct{} { return l.listening }

// Closed is closed once the guest has closed the descriptor or has ended.
func (l *Listener) Closed() <-chan struct{} { return l.closed }

// addr is a port of a guest, as a net.Addr.
type addr struct{ port int }

func (a addr) Network() string { return "wisp" }
func (a addr) String() string  { return "guest:" + strconv.Itoa(a.port) }

// errRefused is what dialling gets where nobody listens.
var errRefused error = syscall.ECONNREFUSED

// Dial connects to the guest. It fails at once where no guest listens, or when
// its backlog is full.
func (l *Listener) Dial(context.Context) (*Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.used || l.ended || len(l.waiting) >= backlog {
		return nil, &net.OpError{Op: "dial", Net: "wisp", Addr: addr{l.port}, Err: errRefused}
	}
	c := newConn(l.port, l.wake)
	l.waiting = append(l.waiting, c)
	signal(l.wake)
	return (*Conn)(c), nil
}

// serve ties l to a process.
func (l *Listener) serve(wake chan<- struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wake = wake
}

// listen notes that the guest listens.
func (l *Listener) listen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.used {
		l.used = true
		close(l.listening)
	}
}

// end closes l. l.mu is held.
func (l *Listener) end() {
	if !l.ended {
		l.ended = true
		close(l.closed)
	}
}

// Close ends a listener that no process has been started with.
func (l *Listener) Close() { l.close() }

// close is the guest's.
func (l *Listener) close() {
	l.mu.Lock()
	l.end()
	waiting := l.waiting
	l.waiting = nil
	l.mu.Unlock()
	for _, c := range waiting {
		c.closeGuest()
	}
}

// accept takes a connection that waits, or returns nil.
func (l *Listener) accept() *conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		return nil
	}
	c := l.waiting[0]
	l.waiting[0] = nil
	l.waiting = l.waiting[1:]
	return c
}

func (l *Listener) ready() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.waiting) > 0
}

// signal leaves a token for a process that waits, or will.
func signal(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

func sockAccept(p *Process, mem api.Memory, a []uint64) errno {
	d := p.at(a[0])
	switch {
	case d == nil:
		return eBADF
	case d.kind != kindListener:
		return eNOTSOCK
	case p.full():
		return eMFILE
	}
	d.listener.listen()
	c := d.listener.accept()
	for c == nil {
		if d.nonblock {
			return eAGAIN
		}
		p.wait(-1)
		c = d.listener.accept()
	}
	fd := p.add(descriptor{kind: kindConn, conn: c, nonblock: uint16(a[1])&fdflagNonblock != 0})
	if !mem.WriteUint32Le(uint32(a[2]), fd) {
		p.remove(fd)
		return eFAULT
	}
	return ok
}

// socket returns the connection with the given number.
func (p *Process) socket(fd uint64) (*descriptor, errno) {
	d := p.at(fd)
	switch {
	case d == nil:
		return nil, eBADF
	case d.kind != kindConn:
		return nil, eNOTSOCK
	}
	return d, ok
}

const (
	recvPeek    = 1 << 0
	recvWaitAll = 1 << 1
)

func sockRecv(p *Process, mem api.Memory, a []uint64) errno {
	d, e := p.socket(a[0])
	if e != ok {
		return e
	}
	v, e := vectorsOf(mem, a[1], a[2])
	if e != ok {
		return e
	}
	var n uint32
	switch flags := uint16(a[3]); {
	case flags&^(recvPeek|recvWaitAll) != 0:
		e = eNOTSUP
	case flags&recvPeek != 0:
		n, e = v.first(func(b []byte) (int, errno) { return p.peek(d.conn, b, d.nonblock) })
	case flags&recvWaitAll != 0 && !d.nonblock:
		n, e = v.each(func(b []byte) (int, errno) { return p.receiveAll(d.conn, b) })
	default:
		n, e = v.first(func(b []byte) (int, errno) { return p.receive(d.conn, b, d.nonblock) })
	}
	if e == ok && !mem.WriteUint16Le(uint32(a[5]), 0) {
		return eFAULT
	}
	return putCount(mem, a[4], n, e)
}

func sockSend(p *Process, mem api.Memory, a []uint64) errno {
	d, e := p.socket(a[0])
	if e != ok {
		return e
	}
	if uint16(a[3]) != 0 {
		return eNOTSUP
	}
	v, e := vectorsOf(mem, a[1], a[2])
	if e != ok {
		return e
	}
	n, e := v.each(func(b []byte) (int, errno) { return p.send(d.conn, b, d.nonblock) })
	return putCount(mem, a[4], n, e)
}

func sockShutdown(p *Process, _ api.Memory, a []uint64) errno {
	const read, write = 1 << 0, 1 << 1
	d, e := p.socket(a[0])
	if e != ok {
		return e
	}
	how := uint32(a[1]) & 0xff
	if how == 0 || how&^(read|write) != 0 {
		return eINVAL
	}
	d.conn.shutdownGuest(how&read != 0, how&write != 0)
	return ok
}
