package span

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestRequestID(t *testing.T) {
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for want, header := range map[string]http.Header{
		"":                                   {},
		"5f1c-77.a:b_c":                      {"X-Request-Id": {"5f1c-77.a:b_c"}, "Traceparent": {parent}},
		`"x: GET /evil"`:                     {"X-Request-Id": {"x: GET /evil"}},
		"4bf92f3577b34da6a3ce929d0e0e4736":   {"Traceparent": {parent}},
		`"` + strings.Repeat("a", 128) + `"`: {"X-Request-Id": {strings.Repeat("a", 9000)}},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header = header
		if got := RequestID(r); got != want {
			t.Errorf("%v: got %s, want %s", header, got, want)
		}
	}
}
