package guest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// cgi answers requests with what the guest prints when it is called as a CGI
// program (RFC 3875): the request in its environment and on standard input, the
// answer on standard output. Output that isn't CGI is the answer's body as it is.
type cgi struct {
	run      Runner
	report   Report
	environs sync.Pool // of *environ
}

func newCGI(run Runner, report Report) *cgi {
	c := &cgi{run: run, report: report}
	c.environs.New = func() any { return new(environ) }
	return c
}

func (c *cgi) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.IndexByte(r.URL.Path, 0) >= 0 {
		fail(w, badRequest("path holds a zero byte, which no variable can"))
		return
	}
	env := c.environs.Get().(*environ)
	defer c.environs.Put(env)
	control := http.NewResponseController(w)
	_ = control.EnableFullDuplex() // where a guest may answer before it has read; HTTP/2 can't help it
	out := &cgiOutput{w: w, control: control, head: r.Method == http.MethodHead, http1: r.ProtoMajor == 1}
	body := countedBody{Reader: r.Body}
	err := c.run(r.Context(), Call{
		Env:       env.of(r),
		Stdin:     &body,
		Stdout:    out,
		Interrupt: out.interrupt,
	})
	err = out.end(err)
	c.report.failed(r, err)
	out.finish(err)
	out.drain(r, &body)
}

const (
	// drained is how much of a body that the guest hasn't read is read, so that
	// the connection can be used again, and drainTime how long that may take.
	drained   = 256 << 10
	drainTime = 50 * time.Millisecond
)

// drain reads what the guest hasn't. net/http does so too, but a full-duplex
// connection whose body ends only there makes it panic. What it knows to be too
// long it doesn't read, and closes the connection with care.
func (o *cgiOutput) drain(r *http.Request, body *countedBody) {
	if r.ProtoMajor != 1 || r.ContentLength == 0 || r.ContentLength-body.read > drained {
		return
	}
	_ = o.control.SetReadDeadline(time.Now().Add(drainTime))
	if _, err := io.CopyN(io.Discard, r.Body, drained+1); errors.Is(err, io.EOF) {
		_ = o.control.SetReadDeadline(time.Time{})
		return
	}
	_ = o.control.SetReadDeadline(time.Unix(1, 0)) // net/http reads no more either
}

// countedBody is a request's body that knows how much of it was read.
type countedBody struct {
	io.Reader
	read int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	b.read += int64(n)
	return n, err
}

// fail answers with an error.
func fail(w http.ResponseWriter, err error) {
	status, message := verdict(err)
	h := w.Header()
	h.Set("Content-Type", plainText)
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(message + "\n"))
}

// flushAfter is how long output waits for more of it before it is sent. A short
// answer is whole by then, and sent at once with its length.
const flushAfter = 2 * time.Millisecond

// cgiOutput is a guest's standard output as an answer. Its methods but interrupt
// are the guest's goroutine's.
type cgiOutput struct {
	w       http.ResponseWriter
	control *http.ResponseController
	header  headerBlock
	http1   bool
	head    bool        // the answer has no body, whatever the guest prints
	begun   atomic.Bool // the status is written
	// interrupted is whether interrupt was called: then net/http has given the
	// connection up, and cancels each further request on it.
	interrupted atomic.Bool
	length      int64 // that the guest has promised, or -1
	written     int64

	mu       sync.Mutex  // of w's body and what is below, which the timer uses too
	timer    *time.Timer // flushes; nil before the first write
	pending  bool        // it will
	finished bool
}

// Write takes what the guest prints. An error ends the guest.
func (o *cgiOutput) Write(b []byte) (int, error) {
	if o.begun.Load() {
		return len(b), o.body(b)
	}
	done, err := o.header.add(b)
	if err != nil || !done {
		return len(b), err
	}
	return len(b), o.begin()
}

// begin writes the status, the headers, and what came after them so far.
func (o *cgiOutput) begin() error {
	status, err := o.header.into(o.w.Header())
	if err != nil {
		return err
	}
	o.length = o.header.length
	if o.head = o.head || status == http.StatusNoContent || status == http.StatusNotModified; o.head {
		o.length = -1
	}
	o.begun.Store(true)
	if o.interrupted.Load() { // or interrupt sees that it has begun
		o.begun.Store(false)
		return errInterrupted
	}
	o.w.WriteHeader(status)
	rest := o.header.rest()
	o.header = headerBlock{}
	if len(rest) == 0 {
		return nil
	}
	return o.body(rest)
}

func (o *cgiOutput) body(b []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.length >= 0 && o.written+int64(len(b)) > o.length {
		return &outputError{int(o.length)}
	}
	n, err := o.w.Write(b)
	o.written += int64(n)
	switch {
	case errors.Is(err, http.ErrBodyNotAllowed): // HEAD, 204, 304: as in any server
		return nil
	case err != nil:
		return context.Canceled // the client has gone
	}
	if !o.pending {
		o.pending = true
		if o.timer == nil {
			o.timer = time.AfterFunc(flushAfter, o.flush)
		} else {
			o.timer.Reset(flushAfter)
		}
	}
	return nil
}

// flush runs on the timer's goroutine.
func (o *cgiOutput) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.pending && !o.finished {
		o.pending = false
		_ = o.control.Flush() // a client that has gone is noticed by the next write
	}
}

// errInterrupted ends a guest whose context has ended before its answer began.
var errInterrupted = errors.New("the call was interrupted")

// interrupt ends reads and writes that wait for the client, since the guest's
// context has ended. An answer that hasn't begun can still be an error.
func (o *cgiOutput) interrupt() {
	o.interrupted.Store(true)
	past := time.Unix(1, 0)
	_ = o.control.SetReadDeadline(past)
	if o.begun.Load() {
		_ = o.control.SetWriteDeadline(past)
	}
}

// end begins the answer if it hasn't begun, given how the guest ended, and returns
// what is wrong with it.
func (o *cgiOutput) end(err error) error {
	if o.http1 && o.interrupted.Load() {
		o.w.Header().Set("Connection", "close") // no other request may meet it
		if err == nil && o.begun.Load() {
			err = context.DeadlineExceeded // too late to say so
		}
	}
	if err == nil && !o.begun.Load() {
		if err = o.header.end(); err == nil {
			err = o.begin()
		}
	}
	if err == nil && o.length > o.written {
		err = bad("it has %d bytes, and its Content-Length is %d", o.written, o.length)
	}
	return err
}

// finish ends the answer, in which err is wrong.
func (o *cgiOutput) finish(err error) {
	o.mu.Lock()
	o.finished = true
	if o.timer != nil {
		o.timer.Stop()
	}
	o.mu.Unlock()
	switch {
	case err != nil && !o.begun.Load():
		fail(o.w, err)
	case err != nil:
		// What was sent looks like a whole answer; only a connection that breaks
		// says that it isn't.
		panic(http.ErrAbortHandler)
	}
}
