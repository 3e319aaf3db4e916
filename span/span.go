// Package span continues the trace that a request belongs to (W3C Trace Context).
//
// Whoever takes a request from outside calls [Continue]; who does a part of it calls
// [Begin], and [Pass] where it leaves for elsewhere. Where nobody traces the
// request, all of them do nothing and allocate nothing. It is a leaf: it knows
// neither where traces go nor who asks.
package span

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// The spans of a request, below the one that Continue begins.
const (
	Request     = "request"     // the node has it
	Queue       = "queue"       // it waits for a slot of its revision
	Run         = "run"         // its function has it; the guest sees this one
	Instantiate = "instantiate" // an instance is made for it
)

const scope = "github.com/wisp-serving/wisp/span"

var w3c propagation.TraceContext

// Continue begins the span of a request that has arrived, below the one that its
// headers name. A provider of nil traces nothing. The caller ends the span.
func Continue(provider trace.TracerProvider, r *http.Request, attributes ...attribute.KeyValue) (*http.Request, trace.Span) {
	if provider == nil {
		return r, noop.Span{}
	}
	ctx := w3c.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, it := provider.Tracer(scope).Start(ctx, Request, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(attributes...))
	return r.WithContext(ctx), it
}

// Begin begins a span below that of ctx, if that one is recorded. The caller ends
// it.
func Begin(ctx context.Context, name string) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, noop.Span{}
	}
	return parent.TracerProvider().Tracer(scope).Start(ctx, name)
}

// Pass names the span of ctx in the headers, if it is recorded. Else they stay as
// they came.
func Pass(ctx context.Context, header http.Header) {
	if trace.SpanFromContext(ctx).IsRecording() {
		w3c.Inject(ctx, propagation.HeaderCarrier(header))
	}
}
