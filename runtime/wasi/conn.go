package wasi

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxBuffered bounds the bytes that are on their way in one direction; as long as
// smallBuffered is enough, no more is held for them.
const (
	maxBuffered   = 64 << 10
	smallBuffered = 4 << 10
)

// pipe is one direction of a connection. Its buffer exists while bytes are in
// it, so that an idle connection has none.
type pipe struct {
	buf   []byte // what is on its way is buf[start:]
	start int
	ended bool // nobody writes any more: after the bytes comes the end
	dead  bool // nobody reads any more: writing fails
}

var (
	buffers      = sync.Pool{New: func() any { return new([maxBuffered]byte) }}
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffered]byte) }}
)

func (p *pipe) len() int { return len(p.buf) - p.start }

// write takes as much of b as there is room for.
func (p *pipe) write(b []byte) int {
	switch need := p.len() + len(b); {
	case p.buf == nil && need <= smallBuffered:
		p.buf = smallBuffers.Get().(*[smallBuffered]byte)[:0]
	case cap(p.buf) < maxBuffered && need > cap(p.buf):
		large := buffers.Get().(*[maxBuffered]byte)[:0]
		large = append(large, p.buf[p.start:]...)
		p.drop()
		p.buf = large
	case len(p.buf)+len(b) > cap(p.buf):
		p.buf = p.buf[:copy(p.buf, p.buf[p.start:])]
		p.start = 0
	}
	n := copy(p.buf[len(p.buf):cap(p.buf)], b)
	p.buf = p.buf[:len(p.buf)+n]
	return n
}

func (p *pipe) read(b []byte) int {
	n := p.peek(b)
	p.start += n
	if p.len() == 0 {
		p.drop()
	}
	return n
}

func (p *pipe) peek(b []byte) int { return copy(b, p.buf[p.start:]) }

// drop forgets what is on its way.
func (p *pipe) drop() {
	switch cap(p.buf) {
	case maxBuffered:
		buffers.Put((*[maxBuffered]byte)(p.buf[:maxBuffered]))
	case smallBuffered:
		smallBuffers.Put((*[smallBuffered]byte)(p.buf[:smallBuffered]))
	}
	p.buf, p.start = nil, 0
}

// kill ends the reading side.
func (p *pipe) kill() {
	p.dead = true
	p.drop()
}

func (p *pipe) full() bool { return p.len() == maxBuffered }

// conn is a connection between the host and a guest: a pipe in each direction.
// The guest's side never waits here; see Process. The host's side is Conn.
type conn struct {
	port int
	wake chan<- struct{} // the process's

	mu      sync.Mutex
	in, out pipe  // to the guest, and from it
	closed  bool  // the host's side
	taken   int64 // bytes that the guest has read

	// readable and writable hold a token when the host's side may go on.
	readable, writable          chan struct{}
	reading, writing            sync.Mutex // one at a time, so that no token is another's
	readDeadline, writeDeadline deadline
}

func newConn(port int, wake chan<- struct{}) *conn {
	return &conn{port: port, wake: wake, readable: make(chan struct{}, 1), writable: make(chan struct{}, 1)}
}

// tryReceive reads what is there. EAGAIN means nothing.
func (c *conn) tryReceive(b []byte, read func(*pipe, []byte) int) (int, errno) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.in.len() > 0:
		wasFull, before := c.in.full(), c.in.len()
		n := read(&c.in, b)
		c.taken += int64(before - c.in.len())
		if wasFull && !c.in.full() {
			signal(c.writable)
		}
		return n, ok
	case c.in.ended || c.in.dead:
		return 0, ok
	default:
		return 0, eAGAIN
	}
}

// trySend writes what there is room for. EAGAIN means nothing.
func (c *conn) trySend(b []byte) (int, errno) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.out.dead || c.out.ended:
		return 0, ePIPE
	case c.out.full():
		return 0, eAGAIN
	}
	n := c.out.write(b)
	signal(c.readable)
	return n, ok
}

// ready reports whether reading or writing wouldn't wait, how many bytes it
// would move, and whether the host has hung up.
func (c *conn) ready(write bool) (ready bool, bytes int, hangup bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if write {
		room := maxBuffered - c.out.len()
		gone := c.out.dead || c.out.ended
		return gone || room > 0, room, gone
	}
	return c.in.len() > 0 || c.in.ended || c.in.dead, c.in.len(), c.in.ended && c.closed
}

func (c *conn) shutdownGuest(read, write bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if read {
		c.in.kill()
		signal(c.writable)
	}
	if write {
		c.out.ended = true
		signal(c.readable)
	}
}

// closeGuest closes the guest's side. What it has sent can still be read.
func (c *conn) closeGuest() { c.shutdownGuest(true, true) }

// receive, receiveAll, peek and send are what a guest's calls do with a
// connection; they wait unless nonblock.

func (p *Process) receive(c *conn, b []byte, nonblock bool) (int, errno) {
	return p.retry(nonblock, func() (int, errno) { return c.tryReceive(b, (*pipe).read) })
}

func (p *Process) peek(c *conn, b []byte, nonblock bool) (int, errno) {
	return p.retry(nonblock, func() (int, errno) { return c.tryReceive(b, (*pipe).peek) })
}

func (p *Process) receiveAll(c *conn, b []byte) (int, errno) {
	got := 0
	for got < len(b) {
		n, e := p.receive(c, b[got:], false)
		if n == 0 || e != ok {
			return got, e
		}
		got += n
	}
	return got, ok
}

// send writes all of b, unless nonblock.
func (p *Process) send(c *conn, b []byte, nonblock bool) (int, errno) {
	sent := 0
	for {
		n, e := p.retry(nonblock, func() (int, errno) { return c.trySend(b[sent:]) })
		if sent += n; e != ok || nonblock || sent == len(b) {
			return sent, e
		}
	}
}

// retry calls try until it needn't wait.
func (p *Process) retry(nonblock bool, try func() (int, errno)) (int, errno) {
	for {
		n, e := try()
		if e != eAGAIN || nonblock {
			return n, e
		}
		p.wait(-1)
	}
}

// Conn is a connection to a guest, as its host has it.
type Conn conn

var _ net.Conn = (*Conn)(nil)

// Read reads what the guest has sent.
func (h *Conn) Read(b []byte) (int, error) {
	h.reading.Lock()
	defer h.reading.Unlock()
	for {
		n, wait, err := h.tryRead(b)
		if !wait {
			return n, err
		}
		<-h.readable
	}
}

func (h *Conn) tryRead(b []byte) (n int, wait bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed:
		return 0, false, h.error("read", net.ErrClosed)
	case h.readDeadline.over():
		return 0, false, h.error("read", os.ErrDeadlineExceeded)
	case h.out.len() > 0:
		wasFull := h.out.full()
		n = h.out.read(b)
		if wasFull {
			signal(h.wake)
		}
		return n, false, nil
	case h.out.ended:
		return 0, false, io.EOF
	}
	return 0, len(b) > 0, nil
}

// Write waits until the guest's side has taken all of b.
func (h *Conn) Write(b []byte) (int, error) {
	h.writing.Lock()
	defer h.writing.Unlock()
	written := 0
	for {
		n, err := h.tryWrite(b[written:])
		if written += n; err != nil || written == len(b) {
			return written, err
		}
		<-h.writable
	}
}

func (h *Conn) tryWrite(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed || h.in.ended:
		return 0, h.error("write", net.ErrClosed)
	case h.in.dead:
		return 0, h.error("write", syscall.EPIPE)
	case h.writeDeadline.over():
		return 0, h.error("write", os.ErrDeadlineExceeded)
	case len(b) == 0 || h.in.full():
		return 0, nil
	}
	n := h.in.write(b)
	signal(h.wake)
	return n, nil
}

// CloseWrite tells the guest that nothing more comes.
func (h *Conn) CloseWrite() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.in.ended = true
	signal(h.wake)
	signal(h.writable)
	return nil
}

// Close closes the host's side: the guest reads what was sent, then the end, and
// writes in vain.
func (h *Conn) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return h.error("close", net.ErrClosed)
	}
	h.closed = true
	h.in.ended = true
	h.out.kill()
	signal(h.wake)
	signal(h.readable)
	signal(h.writable)
	h.readDeadline.set(time.Time{}, nil)
	h.writeDeadline.set(time.Time{}, nil)
	return nil
}

// Quiet is whether the guest has neither hung up nor said anything that wasn't read.
func (h *Conn) Quiet() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.closed && h.out.len() == 0 && !h.out.ended && !h.in.dead
}

// Taken returns how many bytes the guest has read so far.
func (h *Conn) Taken() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.taken
}

func (h *Conn) error(op string, err error) error {
	return &net.OpError{Op: op, Net: "wisp", Addr: addr{h.port}, Err: err}
}

// LocalAddr returns the host's address, which is none.
func (h *Conn) LocalAddr() net.Addr { return addr{0} }

// RemoteAddr returns the guest's port.
func (h *Conn) RemoteAddr() net.Addr { return addr{h.port} }

// SetDeadline sets both deadlines.
func (h *Conn) SetDeadline(t time.Time) error {
	return errors.Join(h.SetReadDeadline(t), h.SetWriteDeadline(t))
}

// SetReadDeadline ends reads at t, also one that waits; zero means never.
func (h *Conn) SetReadDeadline(t time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readDeadline.set(t, h.readable)
	signal(h.readable) // a read that waits looks again
	return nil
}

// SetWriteDeadline ends writes at t, also one that waits; zero means never.
func (h *Conn) SetWriteDeadline(t time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writeDeadline.set(t, h.writable)
	signal(h.writable)
	return nil
}

// deadline is when reads or writes end.
type deadline struct {
	at    time.Time   // zero means never
	timer *time.Timer // leaves a token then, for one that waits
}

// set is called with conn.mu held; token is what reads or writes wait for.
func (d *deadline) set(at time.Time, token chan<- struct{}) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = at
	if left := time.Until(at); !at.IsZero() && left > 0 {
		d.timer = time.AfterFunc(left, func() { signal(token) })
	}
}

func (d *deadline) over() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }
