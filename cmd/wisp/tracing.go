package main

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
)

// lastSpans is how long the end of a role waits for its last spans to be taken.
const lastSpans = 5 * time.Second

// traces sends a role's spans to a collector. nil is none.
type traces struct {
	sdk *sdktrace.TracerProvider
	log *zap.SugaredLogger
}

// newTraces returns what OpenTelemetry's own variables ask for, nil unless they
// name an endpoint. The SDK reads the others by itself: headers, timeouts,
// certificates, OTEL_TRACES_SAMPLER, OTEL_BSP_*, OTEL_RESOURCE_ATTRIBUTES.
func newTraces(env func(string) string, log *zap.SugaredLogger) (*traces, error) {
	endpoint := cmp.Or(env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), env("OTEL_EXPORTER_OTLP_ENDPOINT"))
	if endpoint == "" || env("OTEL_SDK_DISABLED") == "true" || env("OTEL_TRACES_EXPORTER") == "none" {
		return nil, nil
	}
	const variable = "OTEL_EXPORTER_OTLP_PROTOCOL"
	var client otlptrace.Client
	switch protocol := cmp.Or(env("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"), env(variable), "http/protobuf"); protocol {
	case "http/protobuf":
		client = otlptracehttp.NewClient()
	case "grpc":
		client = otlptracegrpc.NewClient()
	default:
		return nil, fmt.Errorf("%s = %q, must be grpc or http/protobuf", variable, protocol)
	}
	exporter, err := otlptrace.New(context.Background(), client)
	if err != nil {
		return nil, fmt.Errorf("set up traces: %w", err)
	}
	// Of two values of an attribute, the latter holds: the environment's.
	from, err := resource.Merge(resource.NewSchemaless(attribute.String("service.name", "wisp-node")), resource.Environment())
	if err != nil {
		return nil, fmt.Errorf("set up traces: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warnw("spans are lost", "error", err) }))
	return &traces{sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(from)), log}, nil
}

// provider returns what takes spans, nil for nobody.
func (t *traces) provider() trace.TracerProvider {
	if t == nil {
		return nil
	}
	return t.sdk
}

// close sends what is left.
func (t *traces) close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastSpans)
	defer cancel()
	if err := t.sdk.Shutdown(ctx); err != nil {
		t.log.Warnw("the last spans are lost", "error", err)
	}
}
