package guest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/wisp-serving/wisp/runtime/api"
)

// The ABIs: what a request is to the guest.
const (
	// ABICommand has no requests: the guest runs once, to its end.
	ABICommand = "command"
	// ABICGI has requests as RFC 3875 says, each with an instance of its own.
	ABICGI = "cgi"
	// ABIArgv has requests that are argument lists.
	ABIArgv = "argv"
	// ABIServer has requests that the guest takes from a socket itself: it runs
	// once, and long.
	ABIServer = "server"
)

// ErrClosed ends calls whose pod is going away.
var ErrClosed = errors.New("the function is shutting down")

// Runner runs one call; its errors are those of Command.Run and others.
type Runner func(context.Context, Call) error

// Limits bound what one request may bring and get. All are above 0.
type Limits struct {
	// Body bounds a request's body in bytes.
	Body int
	// Args bounds the number of a request's arguments and ArgBytes their bytes
	// together.
	Args, ArgBytes int
	// Output bounds an answer in bytes.
	Output int
}

// DefaultLimits returns Limits for answers of at most output bytes. A guest's
// arguments get about the room that Linux gives a process.
func DefaultLimits(output int) Limits {
	return Limits{Body: 2 << 20, Args: 16 << 10, ArgBytes: 1 << 20, Output: output}
}

// NewHandler returns the handler that answers requests by way of abi with what
// run does, and reports what fails; a command has no answer but 404. An unknown ABI is
// api.ErrUnusable.
func NewHandler(abi string, run Runner, limits Limits, report Report) (http.Handler, error) {
	switch abi {
	case ABICGI:
		return newCGI(run, report), nil
	case ABIArgv:
		return newArgv(run, limits, report), nil
	case ABICommand:
		return http.NotFoundHandler(), nil
	default:
		return nil, api.Unusable(fmt.Errorf("abi = %q, must be one of %s", abi, strings.Join([]string{ABICGI, ABIArgv, ABIServer, ABICommand}, ", ")))
	}
}
