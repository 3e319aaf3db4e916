package chain

import (
	"net/http"
	"strings"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/span"
)

// A caller's trace goes on through the node into the guest, whichever way that is
// called.
func TestTraceReachesTheGuest(t *testing.T) {
	const traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	const caller = "00-" + traceID + "-00f067aa0ba902b7-01"
	for abi, tc := range map[string]struct {
		guest, method, path, body string
		spans                     string
	}{
		guest.ABICGI:    {"hostile", http.MethodGet, "/env/HTTP_TRACEPARENT", "", "queue instantiate run request"},
		guest.ABIArgv:   {"hostile", http.MethodPost, "/", `{}`, "queue instantiate run request"},
		guest.ABIServer: {"echo", http.MethodGet, "/", "", "queue run request"},
	} {
		t.Run(abi, func(t *testing.T) {
			spans := tracetest.NewInMemoryExporter()
			f := deploy(t, options{guest: tc.guest, abi: abi, traces: sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))})
			status, text, err := send(f.request(t, tc.method, tc.path, strings.NewReader(tc.body), "Traceparent", caller))
			if err != nil || status != http.StatusOK {
				t.Fatalf("got %d %q, %v", status, text, err)
			}
			var names []string
			byName := map[string]tracetest.SpanStub{}
			for _, s := range awaitSpans(spans, span.Request) {
				names = append(names, s.Name)
				byName[s.Name] = s
				if got := s.SpanContext.TraceID().String(); got != traceID {
					t.Errorf("span %s is of the trace %s, want the caller's", s.Name, got)
				}
			}
			if got := strings.Join(names, " "); got != tc.spans {
				t.Errorf("got the spans %q, want %q", got, tc.spans)
			}
			want := "00-" + traceID + "-" + byName[span.Run].SpanContext.SpanID().String() + "-01"
			if !strings.Contains(text, want) {
				t.Errorf("the guest has %q, want the run's %q", text, want)
			}
			f.expect(t, tc.method, tc.path, tc.body, http.StatusOK, "") // without a trace of the caller's
		})
	}
}

// awaitSpans returns the spans once that of a name is among them: it ends after the
// answer has.
func awaitSpans(spans *tracetest.InMemoryExporter, last string) tracetest.SpanStubs {
	for {
		got := spans.GetSpans()
		if len(got) > 0 && got[len(got)-1].Name == last {
			return got
		}
	}
}
