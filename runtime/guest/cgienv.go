package guest

import (
	"net"
	"net/http"
	"strconv"
	"strings"
)

// serverSoftware is what guests learn of their server.
const serverSoftware = "wisp"

// environ makes the variables of a request, as parts of one string.
type environ struct {
	text []byte
	ends []int
	list []string
}

// of returns the variables for r, until it is called again.
func (e *environ) of(r *http.Request) []string {
	e.text, e.ends = e.text[:0], e.ends[:0]
	e.meta(r)
	e.headers(r)
	text, from := string(e.text), 0
	clear(e.list)
	e.list = e.list[:0]
	for _, end := range e.ends {
		e.list = append(e.list, text[from:end])
		from = end
	}
	return e.list
}

func (e *environ) add(name, value string) {
	e.text = append(append(append(e.text, name...), '='), value...)
	e.ends = append(e.ends, len(e.text))
}

// meta adds the variables of RFC 3875, and those that WAGI has beside them.
func (e *environ) meta(r *http.Request) {
	scheme, port := "http", "80"
	if r.TLS != nil || strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https") {
		scheme, port = "https", "443"
		e.add("HTTPS", "on")
	}
	name := r.Host
	if host, p, err := net.SplitHostPort(r.Host); err == nil {
		name, port = host, p
	}
	remote := remoteAddress(r)
	uri := r.URL.RequestURI()

	e.add("GATEWAY_INTERFACE", "CGI/1.1")
	e.add("SERVER_SOFTWARE", serverSoftware)
	e.add("SERVER_PROTOCOL", r.Proto)
	e.add("SERVER_NAME", name)
	e.add("SERVER_PORT", port)
	e.add("REQUEST_METHOD", r.Method)
	e.add("REQUEST_URI", uri)
	e.add("SCRIPT_NAME", "") // the function is the whole of its host
	e.add("PATH_INFO", r.URL.Path)
	e.add("PATH_TRANSLATED", r.URL.Path)
	e.add("QUERY_STRING", r.URL.RawQuery)
	e.add("REMOTE_ADDR", remote)
	e.add("REMOTE_HOST", remote)
	e.add("AUTH_TYPE", "")
	e.add("REMOTE_USER", "")
	e.add("CONTENT_TYPE", r.Header.Get("Content-Type"))
	if r.ContentLength >= 0 {
		e.add("CONTENT_LENGTH", strconv.FormatInt(r.ContentLength, 10))
	}
	e.add("X_MATCHED_ROUTE", "/...")
	e.add("X_RAW_PATH_INFO", r.URL.EscapedPath())
	e.text = append(append(append(append(append(e.text, "X_FULL_URL="...), scheme...), "://"...), r.Host...), uri...)
	e.ends = append(e.ends, len(e.text))
}

// remoteAddress is the client's address: the last that its peers didn't make up
// is the gateway's to say, which puts it first.
func remoteAddress(r *http.Request) string {
	if forwarded := r.Header.Get("X-Forwarded-For"); forwarded != "" {
		first, _, _ := strings.Cut(forwarded, ",")
		return strings.TrimSpace(first)
	}
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		return host
	}
	return r.RemoteAddr
}

// headers adds the request's headers as HTTP_*. Left out are those that have
// variables of their own; Proxy, which programs would take for the setting
// HTTP_PROXY; and names with other characters than letters, digits and dashes:
// X_A would be another X-A.
func (e *environ) headers(r *http.Request) {
	e.add("HTTP_HOST", r.Host)
	for name, values := range r.Header {
		if name == "Host" || name == "Content-Type" || name == "Content-Length" || name == "Proxy" {
			continue
		}
		if !isVariable(name, values) {
			continue
		}
		e.text = append(e.text, "HTTP_"...)
		for _, c := range []byte(name) {
			e.text = append(e.text, upper(c))
		}
		e.text = append(e.text, '=')
		separator := ", "
		if name == "Cookie" {
			separator = "; "
		}
		for i, v := range values {
			if i > 0 {
				e.text = append(e.text, separator...)
			}
			e.text = append(e.text, v...)
		}
		e.ends = append(e.ends, len(e.text))
	}
}

// isVariable is whether a header can be a variable.
func isVariable(name string, values []string) bool {
	for _, c := range []byte(name) {
		if upper(c) == 0 {
			return false
		}
	}
	for _, v := range values {
		if strings.IndexByte(v, 0) >= 0 {
			return false
		}
	}
	return name != ""
}

// upper returns the character of a variable for one of a header, or 0.
func upper(c byte) byte {
	switch {
	case 'a' <= c && c <= 'z':
		return c - 'a' + 'A'
	case 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return c
	case c == '-':
		return '_'
	default:
		return 0
	}
}
