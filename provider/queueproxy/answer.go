package queueproxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// errTimeout ends a request whose answer starts too late or stalls. Whoever asks
// for context.DeadlineExceeded takes it for any other timeout.
var errTimeout = fmt.Errorf("request timeout: %w", context.DeadlineExceeded)

// answer is the answer to one request on its way out. It knows the status for
// the metrics and, if the revision bounds them, ends answers that are late.
type answer struct {
	http.ResponseWriter
	status int

	// What follows is for late answers only.
	cancel context.CancelCauseFunc // nil: none is late
	idle   time.Duration
	start  *time.Timer // nil: no bound
	stall  *time.Timer // nil: no bound

	mu        sync.Mutex
	begun     bool // bytes, or headers, have gone out
	late      bool // the request has timed out
	lastWrite time.Time
}

// watch ends the request by cancel if the answer doesn't start within start or
// if nothing of it is written for idle; 0 is no bound. The caller calls unwatch.
func (a *answer) watch(cancel context.CancelCauseFunc, start, idle time.Duration) {
	a.cancel, a.idle, a.lastWrite = cancel, idle, time.Now()
	if start > 0 {
		a.start = time.AfterFunc(start, func() { a.end(func() bool { return !a.begun }) })
	}
	if idle > 0 {
		// Under the lock: the timer may fire before it is assigned.
		a.mu.Lock()
		a.stall = time.AfterFunc(idle, a.checkStall)
		a.mu.Unlock()
	}
}

// end times the request out if it is late.
func (a *answer) end(isLate func() bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if isLate() {
		a.late = true
		a.cancel(errTimeout)
	}
}

func (a *answer) checkStall() {
	a.end(func() bool {
		left := a.idle - time.Since(a.lastWrite)
		if left > 0 {
			a.stall.Reset(left)
		}
		return left <= 0
	})
}

// unwatch stops the timers and finishes an answer that came too late: with 504
// if nothing of it is out yet, else by cutting it off, since an answer that
// ends in good order would pass for whole. The function has returned.
func (a *answer) unwatch() {
	if a.cancel == nil {
		return
	}
	for _, t := range []*time.Timer{a.start, a.stall} {
		if t != nil {
			t.Stop()
		}
	}
	a.mu.Lock()
	late, begun := a.late, a.begun
	a.mu.Unlock()
	switch {
	case late && begun:
		panic(http.ErrAbortHandler)
	case late:
		a.status = http.StatusGatewayTimeout
		http.Error(a.ResponseWriter, "request timeout", http.StatusGatewayTimeout)
	}
}

// outcome returns the status by which the answer counts: an answer that was cut
// off is a failure, whatever its header said.
func (a *answer) outcome(whole bool) int {
	switch {
	case !whole:
		return http.StatusInternalServerError
	case a.status == 0: // net/http says so for an answer without anything
		return http.StatusOK
	default:
		return a.status
	}
}

// begin notes that something goes out. It is false if it may not any more.
func (a *answer) begin() bool {
	if a.cancel == nil {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.late {
		return false
	}
	a.begun, a.lastWrite = true, time.Now()
	return true
}

func (a *answer) WriteHeader(status int) {
	if !a.begin() {
		return
	}
	if a.status == 0 && (status >= http.StatusOK || status == http.StatusSwitchingProtocols) {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	if !a.begin() {
		return 0, http.ErrHandlerTimeout
	}
	if a.status == 0 {
		a.status = http.StatusOK
	}
	return a.ResponseWriter.Write(b)
}

// ReadFrom lets the server copy by its own means, unless an answer may be late.
func (a *answer) ReadFrom(r io.Reader) (int64, error) {
	if to, ok := a.ResponseWriter.(io.ReaderFrom); ok && a.cancel == nil {
		if a.status == 0 {
			a.status = http.StatusOK
		}
		return to.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{a}, r)
}

// FlushError implements what http.ResponseController calls.
func (a *answer) FlushError() error {
	if !a.begin() {
		return http.ErrHandlerTimeout
	}
	return http.NewResponseController(a.ResponseWriter).Flush()
}

// Flush implements http.Flusher.
func (a *answer) Flush() { _ = a.FlushError() }

// Unwrap gives http.ResponseController the rest.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// Hijack implements http.Hijacker. What is written to the connection then keeps
// the request from being idle, as an answer's body does.
func (a *answer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(a.ResponseWriter).Hijack()
	if err != nil || a.cancel == nil {
		return conn, rw, err
	}
	a.begin()
	watched := &hijacked{Conn: conn, answer: a}
	rw.Writer.Reset(watched)
	return watched, rw, nil
}

// hijacked is a connection whose writes count as progress.
type hijacked struct {
	net.Conn
	answer *answer
}

func (h *hijacked) Write(b []byte) (int, error) {
	if !h.answer.begin() {
		return 0, http.ErrHandlerTimeout
	}
	return h.Conn.Write(b)
}
