package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"mime"
	"net/http"
	"strconv"
	"strings"
)

// acceptsJSON reports whether a request's Accept headers name application/json.
// A client that takes anything gets plain text.
func acceptsJSON(accept []string) bool {
	for _, list := range accept {
		for item := range strings.SplitSeq(list, ",") {
			kind, params, err := mime.ParseMediaType(item)
			if err != nil || kind != "application/json" {
				continue
			}
			q, err := strconv.ParseFloat(params["q"], 64)
			return err != nil || q > 0
		}
	}
	return false
}

// reply is an answer as it is sent.
type reply struct {
	status      int
	contentType string
	body        []byte
}

const (
	plainText = "text/plain; charset=utf-8"
	jsonText  = "application/json"
)

// render makes the answer to a call that ended with err after printing text.
func render(err error, text []byte, asJSON bool) reply {
	status, message := verdict(err)
	switch {
	case asJSON && err != nil:
		return reply{status, jsonText, encode(failure{Status: 1, Error: message})}
	case asJSON:
		return reply{status, jsonText, encode(success{Output: splitLines(text)})}
	case err != nil:
		return reply{status, plainText, []byte(message + "\n")}
	default:
		return reply{status, plainText, text}
	}
}

type success struct {
	Status int      `json:"status"`
	Output []string `json:"output"`
}

type failure struct {
	Status int    `json:"status"`
	Error  string `json:"error"`
}

func encode(v any) []byte {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // strings and numbers always encode
	return out.Bytes()
}

// splitLines returns the lines of text; the last one's line break is optional.
func splitLines(text []byte) []string {
	if len(text) == 0 {
		return []string{}
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

// statusClientClosed is what logs and metrics see of a client that went away;
// nobody gets it. The number is nginx's.
const statusClientClosed = 499

// verdict returns the status for a call's error, and what the caller may know.
func verdict(err error) (status int, message string) {
	var (
		request *requestError
		exit    *ExitError
		trap    *TrapError
		long    *outputError
	)
	switch {
	case err == nil:
		return http.StatusOK, ""
	case errors.As(err, &request):
		return request.status, request.text
	case errors.As(err, &exit):
		return http.StatusInternalServerError, exit.Error()
	case errors.As(err, &trap):
		return http.StatusInternalServerError, trap.Error()
	case errors.As(err, &long):
		return http.StatusInternalServerError, long.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return http.StatusGatewayTimeout, "request timeout"
	case errors.Is(err, ErrClosed):
		return http.StatusServiceUnavailable, ErrClosed.Error()
	case errors.Is(err, context.Canceled):
		return statusClientClosed, "the client has gone"
	default:
		return http.StatusInternalServerError, "internal error"
	}
}
