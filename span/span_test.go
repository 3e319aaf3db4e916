package span_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/wisp-serving/wisp/span"
)

const (
	traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	sampled = "00-" + traceID + "-00f067aa0ba902b7-01"
	dropped = "00-" + traceID + "-00f067aa0ba902b7-00"
)

func request(traceparent string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Traceparent", traceparent)
	return r
}

func TestSpansOfARequest(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	r, whole := span.Continue(provider, request(sampled))
	ctx, part := span.Begin(r.Context(), span.Run)
	header := http.Header{}
	span.Pass(ctx, header)
	part.End()
	whole.End()
	got := spans.GetSpans()
	if len(got) != 2 || got[0].Name != span.Run || got[1].Name != span.Request {
		t.Fatalf("got %d spans, want run and request", len(got))
	}
	if p := got[1].Parent; p.TraceID().String() != traceID || p.SpanID().String() != "00f067aa0ba902b7" || !p.IsRemote() {
		t.Errorf("the request's parent is %v, want the caller's span", p)
	}
	if got[0].Parent.SpanID() != got[1].SpanContext.SpanID() {
		t.Error("run isn't below request")
	}
	if want := "00-" + traceID + "-" + got[0].SpanContext.SpanID().String() + "-01"; header.Get("Traceparent") != want {
		t.Errorf("passed on %q, want %q", header.Get("Traceparent"), want)
	}
}

// What nobody traces, or the caller doesn't want to be traced, goes on as it came.
func TestNothingIsTraced(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample())))
	for name, begin := range map[string]func() *http.Request{
		"no provider": func() *http.Request { r, it := span.Continue(nil, request(sampled)); it.End(); return r },
		"not sampled": func() *http.Request { r, it := span.Continue(provider, request(dropped)); it.End(); return r },
	} {
		r := begin()
		ctx, part := span.Begin(r.Context(), span.Run)
		before := r.Header.Get("Traceparent")
		span.Pass(ctx, r.Header)
		part.End()
		if r.Header.Get("Traceparent") != before || len(spans.GetSpans()) > 0 {
			t.Errorf("%s: got %q and %d spans, want %q and none", name, r.Header.Get("Traceparent"), len(spans.GetSpans()), before)
		}
	}
}

// Who isn't traced pays next to nothing.
func TestBeginAllocatesNothing(t *testing.T) {
	ctx, header := context.WithValue(t.Context(), "a", "b"), http.Header{} //nolint:staticcheck // any context will do
	if n := testing.AllocsPerRun(100, func() {
		ctx, it := span.Begin(ctx, span.Run)
		span.Pass(ctx, header)
		it.End()
	}); n > 0 {
		t.Errorf("%v allocations, want none", n)
	}
}
