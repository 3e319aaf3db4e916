package span

import (
	"net/http"
	"regexp"
	"strconv"

	"go.opentelemetry.io/otel/trace"
)

// RequestID returns what a request is known by elsewhere, such as in the gateway's
// access log: its X-Request-Id, else the id of its trace, else nothing. One that could
// be mistaken for something else is quoted.
func RequestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	switch {
	case id == "":
		if of := trace.SpanContextFromContext(r.Context()); of.HasTraceID() {
			return of.TraceID().String()
		}
		if m := traceParent.FindStringSubmatch(r.Header.Get("Traceparent")); m != nil {
			return m[1]
		}
		return ""
	case plainID.MatchString(id):
		return id
	default:
		return strconv.Quote(id[:min(len(id), longestID)])
	}
}

const longestID = 128

var (
	plainID     = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,128}$`)
	traceParent = regexp.MustCompile(`^[0-9a-f]{2}-([0-9a-f]{32})-`)
)
