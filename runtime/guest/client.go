package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/wisp-serving/wisp/runtime/wasi"
)

// client sends requests to a guest by HTTP/1.1. A request is written and its answer
// read by the goroutine that has it; only a body is sent by one of its own, so that
// the guest may answer meanwhile. A connection that waits for its next request has no
// goroutine and no buffer.
// See ../RATIONALE.md "Why does a server get its requests by a client of our own?".
type client struct {
	dial func(context.Context) (*wasi.Conn, error)
	used chan struct{} // holds one for each connection in use

	mu      sync.Mutex
	idle    []idleConn // the longest idle first
	closing *time.Timer
	armed   bool // closing will fire
}

type idleConn struct {
	*wasi.Conn
	since time.Time
}

func newClient(dial func(context.Context) (*wasi.Conn, error)) *client {
	return &client{dial: dial, used: make(chan struct{}, maxGuestConns)}
}

// RoundTrip implements http.RoundTripper. Until the answer's body has come to its end
// or is closed, the request has a connection. A request of which the guest has read
// nothing, since it hung up in the same moment, is sent again.
func (c *client) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := c.enter(r.Context()); err != nil {
		return nil, err
	}
	for {
		t, err := c.begin(r)
		if err != nil {
			c.leave()
			return nil, err
		}
		answer, err := t.there()
		if err == nil {
			return answer, nil
		}
		t.forget()
		if t.unknown() && t.stop() { // the next one has its place
			hangUp(t.conn)
			continue
		}
		t.fail(err)
		t.end()
		return nil, *t.cause.Load()
	}
}

// enter waits until a connection may be used; leave says that one isn't any more.
func (c *client) enter(ctx context.Context) error {
	select {
	case c.used <- struct{}{}:
		return nil
	default:
	}
	select {
	case c.used <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *client) leave() { <-c.used }

// begin takes a connection for r, the one that was used last, or dials.
func (c *client) begin(r *http.Request) (*trip, error) {
	t := &trip{client: c, request: r, conn: c.take()}
	if t.reused = t.conn != nil; t.reused {
		t.taken = t.conn.Taken()
	} else {
		var err error
		if t.conn, err = c.dial(r.Context()); err != nil {
			return nil, err
		}
	}
	t.parts.Store(1)
	if r.Body != nil {
		t.parts.Store(2)
		t.sent = make(chan struct{})
	}
	ctx := r.Context()
	t.stop = context.AfterFunc(ctx, func() { t.fail(context.Cause(ctx)) })
	t.reader = readers.Get().(*bufio.Reader)
	t.reader.Reset(t)
	return t, nil
}

// take returns an idle connection that the guest hasn't closed, or nil.
func (c *client) take() *wasi.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	for last := len(c.idle) - 1; last >= 0; last-- {
		conn := c.idle[last].Conn
		c.idle[last] = idleConn{}
		c.idle = c.idle[:last]
		if conn.Quiet() {
			return conn
		}
		hangUp(conn)
	}
	return nil
}

// keep keeps a connection for the next request.
func (c *client) keep(conn *wasi.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.idle) == keptConns {
		hangUp(conn)
		return
	}
	c.idle = append(c.idle, idleConn{conn, time.Now()})
	if !c.armed {
		c.arm(keepConns)
	}
}

// arm has what is idle looked at after d; c.mu is held.
func (c *client) arm(d time.Duration) {
	c.armed = true
	if c.closing == nil {
		c.closing = time.AfterFunc(d, func() { c.closeIdle(time.Now().Add(-keepConns)) })
	} else {
		c.closing.Reset(d)
	}
}

// closeIdle closes the connections that have been idle since then.
func (c *client) closeIdle(then time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := 0
	for ; old < len(c.idle) && !c.idle[old].since.After(then); old++ {
		hangUp(c.idle[old].Conn)
	}
	left := copy(c.idle, c.idle[old:])
	clear(c.idle[left:])
	c.idle = c.idle[:left]
	if c.armed = left > 0; c.armed {
		c.arm(c.idle[0].since.Sub(then))
	} else if c.closing != nil {
		c.closing.Stop()
	}
}

// hangUp closes a connection, which fails only where that was done before.
func hangUp(conn *wasi.Conn) { _ = conn.Close() }

// trip is a request on a connection, and its answer. It has two parts: the
// answer, and the request's body if there is one; the later of them ends it. What
// fails, or the end of the request's context, closes the connection at once.
type trip struct {
	client  *client
	request *http.Request
	conn    *wasi.Conn
	reused  bool        // it has served another request before
	taken   int64       // what the guest had read of it by then
	stop    func() bool // no longer closes the connection with the context
	parts   atomic.Int32
	left    atomic.Bool           // client.leave was called for it
	spoilt  atomic.Bool           // no other request may use the connection
	sent    chan struct{}         // closed when the body's part has ended; nil without a body
	cause   atomic.Pointer[error] // why it was closed, nil if it wasn't

	// What follows is the answer's.
	reader *bufio.Reader
	room   int  // for headers, in bytes, while they are read
	heard  bool // the guest has said something
}

var (
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4<<10) }}
	writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 4<<10) }}
)

// fail closes the connection, whatever is left to be done on it.
func (t *trip) fail(err error) {
	t.cause.CompareAndSwap(nil, &err)
	t.spoilt.Store(true)
	hangUp(t.conn)
	t.leave()
}

// leave lets another request have a connection.
func (t *trip) leave() {
	if t.left.CompareAndSwap(false, true) {
		t.client.leave()
	}
}

// end ends one part, and with the last one the trip.
func (t *trip) end() {
	if t.parts.Add(-1) > 0 {
		return
	}
	switch {
	case !t.stop(): // the context has ended, and closes it
	case !t.spoilt.Load() && t.conn.Quiet():
		t.client.keep(t.conn)
	default:
		hangUp(t.conn)
	}
	t.leave()
}

// endSent ends the body's part.
func (t *trip) endSent() {
	t.end()
	close(t.sent)
}

// sentWithin is for how long the end of an answer waits for that of the request's body.
// It is net/http's (maxWriteWaitBeforeConnReuse in transport.go).
const sentWithin = 50 * time.Millisecond

// awaitSent waits until the request's body is sent. The guest has read it, as a rule,
// and its sender is about to see that; but once the answer is whole, the request's
// context ends, and closes the connection.
func (t *trip) awaitSent() {
	if t.sent == nil {
		return
	}
	select {
	case <-t.sent:
		return
	default:
	}
	timer := time.NewTimer(sentWithin)
	defer timer.Stop()
	select {
	case <-t.sent:
	case <-timer.C:
	}
}

// unknown is whether the guest knows nothing of the request, which can be sent again.
func (t *trip) unknown() bool {
	return t.reused && t.request.Body == nil && !t.heard && t.conn.Taken() == t.taken && t.cause.Load() == nil
}

// there sends the request and reads the answer up to its body.
func (t *trip) there() (*http.Response, error) {
	err := t.sendHead()
	switch {
	case t.request.Body == nil:
	case err != nil:
		t.endSent()
	default:
		go func() {
			defer t.endSent()
			t.sendBody()
		}()
	}
	if err != nil {
		return nil, err
	}
	return t.answer()
}

// sendHead writes the request's line and headers. They are as net/http has parsed
// them, so nothing in them can end a line.
func (t *trip) sendHead() error {
	r := t.request
	w := t.writer()
	defer done(w)
	target := r.URL.RequestURI()
	if strings.IndexByte(target, ' ') >= 0 { // HTTP/2 lets it through
		target = strings.ReplaceAll(target, " ", "%20")
	}
	put(w, r.Method, " ", target, " HTTP/1.1\r\nHost: ", r.Host, "\r\n")
	_ = r.Header.WriteSubset(w, ownHeaders)
	switch {
	case r.Body != nil && r.ContentLength >= 0:
		put(w, "Content-Length: ", strconv.FormatInt(r.ContentLength, 10), "\r\n")
	case r.Body != nil:
		put(w, "Transfer-Encoding: chunked\r\n")
		for name := range r.Trailer {
			put(w, "Trailer: ", name, "\r\n")
		}
	case r.Method == http.MethodPost, r.Method == http.MethodPut, r.Method == http.MethodPatch:
		put(w, "Content-Length: 0\r\n")
	}
	put(w, "\r\n")
	return w.Flush()
}

// ownHeaders say whom a request is for and where it ends, which is the client's
// affair.
var ownHeaders = map[string]bool{"Host": true, "Content-Length": true, "Transfer-Encoding": true, "Trailer": true}

// put writes texts; w remembers an error until Flush.
func put(w *bufio.Writer, texts ...string) {
	for _, text := range texts {
		_, _ = w.WriteString(text)
	}
}

func (t *trip) writer() *bufio.Writer {
	w := writers.Get().(*bufio.Writer)
	w.Reset(t.conn)
	return w
}

func done(w *bufio.Writer) {
	w.Reset(nil)
	writers.Put(w)
}

// sendBody sends the request's body on, each part of it as it comes. A body that
// breaks off must not look whole to the guest. A guest that doesn't read it to its
// end may answer all the same.
func (t *trip) sendBody() {
	r := t.request
	w := t.writer()
	defer done(w)
	var to io.Writer = w
	var chunked io.WriteCloser
	left := r.ContentLength
	if left < 0 {
		chunked = httputil.NewChunkedWriter(w)
		to = chunked
	}
	buf := copyBuffers.Get()
	defer copyBuffers.Put(buf)
	for left != 0 {
		n, err := r.Body.Read(buf)
		if left > 0 {
			n = int(min(int64(n), left))
			left -= int64(n)
		}
		_, _ = to.Write(buf[:n])
		if w.Flush() != nil {
			t.spoilt.Store(true)
			return
		}
		switch {
		case err == nil || left == 0:
		case !errors.Is(err, io.EOF) || left > 0:
			t.fail(fmt.Errorf("read the request's body: %w", err))
			return
		default:
			_ = chunked.Close()
			_ = r.Trailer.Write(w)
			put(w, "\r\n")
			if w.Flush() != nil {
				t.spoilt.Store(true)
			}
			return
		}
	}
}

// answer reads the answer up to its body, and passes on what comes before it.
func (t *trip) answer() (*http.Response, error) {
	for {
		t.room = maxGuestHeaders
		answer, err := http.ReadResponse(t.reader, t.request)
		if err != nil {
			return nil, err
		}
		t.room = 0
		switch code := answer.StatusCode; {
		case code == http.StatusSwitchingProtocols:
			if !switches(t.request.Header, answer.Header) {
				return nil, &errResponse{"it switches to a protocol that the request doesn't name"}
			}
			answer.Body = &upgraded{t}
			return answer, nil
		case code >= 100 && code < 200:
			if trace := httptrace.ContextClientTrace(t.request.Context()); trace != nil && trace.Got1xxResponse != nil {
				if err := trace.Got1xxResponse(code, textproto.MIMEHeader(answer.Header)); err != nil {
					return nil, err
				}
			}
		default:
			if answer.Close {
				t.spoilt.Store(true)
			}
			body := &answerBody{trip: t, body: answer.Body}
			if answer.Body == http.NoBody {
				body.end(io.EOF)
			}
			answer.Body = body
			return answer, nil
		}
	}
}

// switches is whether the answer switches to the protocol that the request names.
func switches(request, answer http.Header) bool {
	return httpguts.HeaderValuesContainsToken(answer["Connection"], "Upgrade") &&
		request.Get("Upgrade") != "" && strings.EqualFold(request.Get("Upgrade"), answer.Get("Upgrade"))
}

// Read reads from the connection, for reader.
func (t *trip) Read(b []byte) (int, error) {
	n, err := t.conn.Read(b)
	if n > 0 {
		t.heard = true
	}
	if t.room > 0 {
		if t.room -= n; t.room <= 0 {
			return 0, &errResponse{"its headers are longer than " + strconv.Itoa(maxGuestHeaders) + " bytes"}
		}
	}
	return n, err
}

// forget gives the reader back, whose buffer is empty or of no use.
func (t *trip) forget() {
	if t.reader != nil {
		t.reader.Reset(nil)
		readers.Put(t.reader)
		t.reader = nil
	}
}

// answerBody is an answer's body. It is for one goroutine.
type answerBody struct {
	*trip
	body io.ReadCloser
	err  error // after the end
}

func (b *answerBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.body.Read(p)
	if err != nil {
		b.end(err)
		err = b.err
	}
	return n, err
}

// errClosedBody is what is read of an answer that nobody wanted to its end.
var errClosedBody = errors.New("the answer was closed")

// Close closes the connection, unless the answer is at its end.
func (b *answerBody) Close() error {
	if b.err == nil {
		b.end(errClosedBody)
	}
	return nil
}

func (b *answerBody) end(err error) {
	b.err = err
	switch {
	case !errors.Is(err, io.EOF):
		b.fail(err)
		b.err = *b.cause.Load()
	case b.reader.Buffered() > 0: // nobody has asked for that
		b.spoilt.Store(true)
	default:
		b.awaitSent()
	}
	b.forget()
	b.trip.end()
}

// upgraded is a connection that has become one of another protocol.
type upgraded struct{ *trip }

func (u *upgraded) Read(b []byte) (int, error)  { return u.reader.Read(b) }
func (u *upgraded) Write(b []byte) (int, error) { return u.conn.Write(b) }

// CloseWrite tells the guest that nothing more comes.
func (u *upgraded) CloseWrite() error { return u.conn.CloseWrite() }

// Close ends reads and writes that wait, too.
func (u *upgraded) Close() error {
	u.stop()
	u.fail(errClosedBody)
	return nil
}
