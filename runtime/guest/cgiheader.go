package guest

import (
	"bytes"
	"fmt"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

const (
	// maxCGIHeader bounds a guest's headers in bytes, and maxCGIFields their
	// number.
	maxCGIHeader = 64 << 10
	maxCGIFields = 256
)

// headerBlock collects the beginning of a guest's output until it is clear
// whether that is a CGI header block: lines "Name: value" up to an empty one, with
// one of Content-Type, Status and Location among them.
type headerBlock struct {
	text   []byte // all so far
	parsed int    // bytes of text whose lines are known
	fields []field
	cgi    bool // one of the three was there

	plain  bool  // it is no header block
	length int64 // that it promises, or -1
}

type field struct{ name, value string }

// badOutput says what is wrong with a guest's headers.
type badOutput struct{ text string }

func (e *badOutput) Error() string { return "bad CGI output: " + e.text }

func bad(format string, args ...any) error { return &badOutput{fmt.Sprintf(format, args...)} }

// add takes more output. done means that into can be called.
func (h *headerBlock) add(b []byte) (done bool, err error) {
	h.text = append(h.text, b...)
	for {
		line, rest, whole := bytes.Cut(h.text[h.parsed:], []byte{'\n'})
		if !whole {
			return h.partial(line)
		}
		line = bytes.TrimSuffix(line, []byte{'\r'})
		switch {
		case len(line) == 0 && h.cgi:
			h.parsed = len(h.text) - len(rest)
			return true, nil
		case len(line) == 0:
			return h.giveUp("")
		}
		f, reason := parseField(line)
		if reason == "" && len(h.fields) == maxCGIFields {
			reason = fmt.Sprintf("more than %d headers", maxCGIFields)
		}
		if reason != "" {
			return h.giveUp(reason)
		}
		h.fields = append(h.fields, f)
		h.parsed = len(h.text) - len(rest)
		h.cgi = h.cgi || f.name == "Content-Type" || f.name == "Status" || f.name == "Location"
		if h.parsed > maxCGIHeader {
			return h.giveUp(fmt.Sprintf("headers of more than %d bytes", maxCGIHeader))
		}
	}
}

// partial looks at a line that isn't whole yet.
func (h *headerBlock) partial(line []byte) (done bool, err error) {
	name, _, colon := bytes.Cut(line, []byte{':'})
	switch {
	case h.parsed+len(line) > maxCGIHeader:
		return h.giveUp(fmt.Sprintf("headers of more than %d bytes", maxCGIHeader))
	case !colon && len(line) > 1 && !httpguts.ValidHeaderFieldName(string(name)) && !isLineBreak(line):
		return h.giveUp("a line that is no header")
	}
	return false, nil
}

func isLineBreak(line []byte) bool { return string(line) == "\r" }

// giveUp decides that this is no header block; what looked like one until here
// is an error.
func (h *headerBlock) giveUp(reason string) (bool, error) {
	if h.cgi {
		return false, bad("%s", reason)
	}
	h.plain = true
	return true, nil
}

// parseField reads one line, or says why it is no header.
func parseField(line []byte) (f field, reason string) {
	name, value, ok := strings.Cut(string(line), ":")
	value = strings.Trim(value, " \t")
	switch {
	case !ok || !httpguts.ValidHeaderFieldName(name):
		return f, "a line that is no header"
	case !httpguts.ValidHeaderFieldValue(value):
		return f, "header " + textproto.CanonicalMIMEHeaderKey(name) + " holds control characters"
	}
	return field{textproto.CanonicalMIMEHeaderKey(name), value}, ""
}

// end is called when the guest has ended and the block isn't decided.
func (h *headerBlock) end() error {
	if h.cgi {
		return bad("it ended in its headers")
	}
	h.plain = true
	return nil
}

// rest returns what came after the headers.
func (h *headerBlock) rest() []byte {
	if h.plain {
		return h.text
	}
	return h.text[h.parsed:]
}

// notPassed are headers that are between the guest and its server.
var notPassed = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Te": true,
	"Trailer": true, "Transfer-Encoding": true, "Upgrade": true, "Status": true,
}

// into checks the headers, adds them to header and returns the status.
func (h *headerBlock) into(header http.Header) (status int, err error) {
	h.length = -1
	if h.plain {
		return http.StatusOK, nil // the type is found by the first bytes
	}
	status = 0
	once := map[string]bool{}
	for _, f := range h.fields {
		switch f.name {
		case "Status", "Location", "Content-Type", "Content-Length":
			if once[f.name] {
				return 0, bad("%s is there twice", f.name)
			}
			once[f.name] = true
		}
		switch f.name {
		case "Status":
			status, err = parseStatus(f.value)
		case "Content-Length":
			h.length, err = parseLength(f.value)
		}
		if err != nil {
			return 0, err
		}
	}
	for _, f := range h.fields {
		if !notPassed[f.name] {
			header[f.name] = append(header[f.name], f.value)
		}
	}
	switch {
	case status == 0 && once["Location"]:
		status = http.StatusFound
	case status == 0:
		status = http.StatusOK
	}
	return status, nil
}

// parseStatus reads "404" or "404 Not Found".
func parseStatus(value string) (int, error) {
	digits, _, _ := strings.Cut(value, " ")
	status, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || len(digits) != 3 || status < 200 || status > 599 {
		return 0, bad("Status = %.40q, must be from 200 to 599", value)
	}
	return int(status), nil
}

func parseLength(value string) (int64, error) {
	length, err := strconv.ParseUint(value, 10, 63)
	if err != nil {
		return 0, bad("Content-Length = %.40q, must be a number", value)
	}
	return int64(length), nil
}
