package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
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
		return reply{status, jsonText, encodeLines(text)}
	case err != nil:
		return reply{status, plainText, []byte(message + "\n")}
	default:
		return reply{status, plainText, text}
	}
}

type failure struct {
	Status int    `json:"status"`
	Error  string `json:"error"`
}

func encode(v failure) []byte {
	var out bytes.Buffer
	_ = newEncoder(&out).Encode(v) // strings and numbers always encode
	return out.Bytes()
}

// encodeLines encodes {"status":0,"output":[…]} with the lines of text; the last
// one's line break is optional. It never holds them as a []string, which takes
// many times the bytes of a text of short lines.
func encodeLines(text []byte) []byte {
	var out bytes.Buffer
	e := newEncoder(&out)
	out.WriteString(`{"status":0,"output":[`)
	for line := range bytes.Lines(text) {
		_ = e.Encode(string(bytes.TrimSuffix(line, []byte{'\n'})))
		out.Bytes()[out.Len()-1] = ',' // it was the encoder's line break
	}
	if len(text) > 0 {
		out.Truncate(out.Len() - 1) // the last comma
	}
	out.WriteString("]}\n")
	return out.Bytes()
}

func newEncoder(w io.Writer) *json.Encoder {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e
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
		output  *badOutput
		oom     *OOMError
	)
	switch {
	case err == nil:
		return http.StatusOK, ""
	case errors.As(err, &request):
		return request.status, request.text
	case errors.As(err, &oom):
		return http.StatusInternalServerError, oom.Error()
	case errors.As(err, &exit):
		return http.StatusInternalServerError, exit.Error()
	case errors.As(err, &trap):
		return http.StatusInternalServerError, trap.Error()
	case errors.As(err, &output):
		return http.StatusBadGateway, output.Error()
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
