package guest

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/wisp-serving/wisp/span"
)

// Report takes a line, without its line break, about a request that has failed by no
// fault of its own: whose it was, and what its caller isn't told. It must not block
// nor keep the slice. nil drops it.
type Report func(line []byte)

// failed reports that r has ended with err.
func (f Report) failed(r *http.Request, err error) {
	if f != nil && isFailure(err) {
		f(story(r, err))
	}
}

// isFailure is whether an error says that something is wrong here: with the guest, or
// with the node. A client that errs or leaves is none, nor is a pod that ends.
func isFailure(err error) bool {
	status, _ := verdict(err)
	return status >= http.StatusInternalServerError && !errors.Is(err, ErrClosed) && !errors.Is(err, context.Canceled)
}

// story is a line about a request.
func story(r *http.Request, err error) []byte {
	line := make([]byte, 0, 128)
	if id := span.RequestID(r); id != "" {
		line = append(append(line, "request "...), id...)
		line = append(line, ": "...)
	}
	line = append(append(line, r.Method...), ' ')
	line = append(append(line, r.URL.EscapedPath()...), ": "...)
	return append(line, strings.ReplaceAll(err.Error(), "\n", " ")...)
}
