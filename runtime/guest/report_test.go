package guest

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// The log has what a caller isn't told, by the request's id; what is the caller's own
// fault it has not.
func TestFailuresAreReported(t *testing.T) {
	for name, tc := range map[string]struct {
		abi    string
		run    Runner
		method string
		body   string
		caller string // has this in its answer
		line   string // how the log's line begins; empty for none
	}{
		"fine":         {ABICGI, prints("hello\n"), http.MethodGet, "", "hello", ""},
		"exit":         {ABICGI, then(prints("some"), &ExitError{3}), http.MethodGet, "", "exit status 3", "request a-1: GET /a%0Ab: exit status 3"},
		"bad output":   {ABICGI, prints("Status: 99\n\n"), http.MethodGet, "", "bad CGI output", "request a-1: GET /a%0Ab: bad CGI output: "},
		"inside":       {ABICGI, then(prints(), errors.New("open /var/lib/x:\nno")), http.MethodGet, "", "internal error", "request a-1: GET /a%0Ab: open /var/lib/x: no"},
		"late":         {ABIArgv, then(prints(), context.DeadlineExceeded), http.MethodPost, `{}`, "request timeout", "request a-1: POST /a%0Ab: context deadline exceeded"},
		"bad question": {ABIArgv, prints(), http.MethodPost, `{`, "bad JSON", ""},
		"client gone":  {ABIArgv, then(prints(), context.Canceled), http.MethodPost, `{}`, "", ""},
		"pod gone":     {ABIArgv, then(prints(), ErrClosed), http.MethodPost, `{}`, "shutting down", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var lines []string
			h, err := NewHandler(tc.abi, tc.run, DefaultLimits(100), func(line []byte) { lines = append(lines, string(line)) })
			if err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequestWithContext(t.Context(), tc.method, "/a%0Ab?c=d", strings.NewReader(tc.body))
			r.Header.Set("X-Request-Id", "a-1")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if !strings.Contains(w.Body.String(), tc.caller) || strings.Contains(w.Body.String(), "/var/lib") {
				t.Errorf("the caller sees %q, want %q", w.Body, tc.caller)
			}
			switch {
			case tc.line == "" && len(lines) > 0, tc.line != "" && (len(lines) != 1 || !strings.HasPrefix(lines[0], tc.line)):
				t.Errorf("the log has %q, want %q", lines, tc.line)
			}
		})
	}
}
