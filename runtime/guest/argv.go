package guest

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"sync"
)

// argv answers POST requests whose JSON body is {"args":["a","b"]} with what the
// guest prints when it is called with these arguments.
type argv struct {
	run       Runner
	limits    Limits
	report    Report
	exchanges sync.Pool // of *exchange
}

func newArgv(run Runner, limits Limits, report Report) *argv {
	a := &argv{run: run, limits: limits, report: report}
	a.exchanges.New = func() any { return &exchange{output: output{limit: limits.Output}} }
	return a
}

// exchange holds the buffers of one request.
type exchange struct {
	body   []byte
	output output
}

// keptBuffer is the largest buffer that waits for the next request.
const keptBuffer = 64 << 10

func (a *argv) reuse(e *exchange) {
	if cap(e.body) > keptBuffer || cap(e.output.text) > keptBuffer {
		return
	}
	e.body, e.output.text = e.body[:0], e.output.text[:0]
	a.exchanges.Put(e)
}

func (a *argv) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e := a.exchanges.Get().(*exchange)
	defer a.reuse(e)
	err := a.call(r, e)
	a.report.failed(r, err)
	reply := render(err, e.output.text, acceptsJSON(r.Header["Accept"]))
	h := w.Header()
	if reply.status == http.StatusMethodNotAllowed {
		h.Set("Allow", http.MethodPost)
	}
	h.Set("Content-Type", reply.contentType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(reply.body)))
	w.WriteHeader(reply.status)
	_, _ = w.Write(reply.body) // an error means that the client has left
}

// call does what r asks for; the answer is in e.output.
func (a *argv) call(r *http.Request, e *exchange) error {
	if err := checkRequest(r); err != nil {
		return err
	}
	var err error
	if e.body, err = readAll(e.body, r.Body, a.limits.Body); err != nil {
		return err
	}
	args, err := parseArgs(e.body, a.limits)
	if err != nil {
		return err
	}
	return a.run(r.Context(), Call{Args: args, Env: traced(r), Stdout: &e.output})
}

// traced returns the variable by which a program without headers knows the trace
// that it belongs to (OpenTelemetry's "Environment Variables as Context Propagation
// Carriers").
func traced(r *http.Request) []string {
	if v := r.Header.Get("Traceparent"); v != "" {
		return []string{"TRACEPARENT=" + v}
	}
	return nil
}

// requestError is what is wrong with a request.
type requestError struct {
	status int
	text   string
}

func (e *requestError) Error() string { return e.text }

func badRequest(format string, args ...any) error {
	return &requestError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

func checkRequest(r *http.Request) error {
	if r.Method != http.MethodPost {
		return &requestError{http.StatusMethodNotAllowed, "method " + r.Method + ", must be POST"}
	}
	given := r.Header.Get("Content-Type")
	if kind, _, _ := mime.ParseMediaType(given); given != "" && kind != "application/json" {
		return &requestError{http.StatusUnsupportedMediaType, fmt.Sprintf("content type %q, must be application/json", given)}
	}
	return nil
}

// readAll appends all of r to buf, which may be of at most limit bytes then.
func readAll(buf []byte, r io.Reader, limit int) ([]byte, error) {
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, make([]byte, 512)...)[:len(buf)]
		}
		n, err := r.Read(buf[len(buf):min(cap(buf), limit+1)])
		buf = buf[:len(buf)+n]
		switch {
		case len(buf) > limit:
			return buf, badRequest("request body is longer than %d bytes", limit)
		case errors.Is(err, io.EOF):
			return buf, nil
		case err != nil:
			return buf, badRequest("request body ended early")
		}
	}
}

// output collects an answer up to its limit.
type output struct {
	text  []byte
	limit int
}

// outputError says that a guest printed more than limit bytes.
type outputError struct{ limit int }

func (e *outputError) Error() string {
	return fmt.Sprintf("output is longer than %d bytes", e.limit)
}

func (o *output) Write(b []byte) (int, error) {
	if len(b) > o.limit-len(o.text) {
		return 0, &outputError{o.limit}
	}
	o.text = append(o.text, b...)
	return len(b), nil
}
