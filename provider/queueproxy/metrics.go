package queueproxy

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// durationBounds are the buckets of queue-proxy's own histogram, in seconds
// (serving pkg/queue/request_metric.go), and two below them: a wasm function
// answers before the first of Knative's ends.
var durationBounds = []float64{0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}

// Metrics holds the instruments of all pods of a node. Their names are
// queue-proxy's. It is safe for concurrent use.
type Metrics struct {
	duration metric.Float64Histogram
}

// NewMetrics makes the instruments of provider.
func NewMetrics(provider metric.MeterProvider) (*Metrics, error) {
	duration, err := provider.Meter("github.com/wisp-serving/wisp/provider/queueproxy").Float64Histogram(
		"kn.serving.invocation.duration",
		metric.WithDescription("Time from a request's arrival at its pod to the end of its answer"),
		metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(durationBounds...),
	)
	if err != nil {
		return nil, fmt.Errorf("make the request metrics: %w", err)
	}
	return &Metrics{duration: duration}, nil
}

// revisionMetrics records one revision's requests.
type revisionMetrics struct {
	duration metric.Float64Histogram
	revision []attribute.KeyValue
	options  sync.Map // of status → []metric.RecordOption, made once for each
}

// of returns the metrics of the revision.
func (m *Metrics) of(s Settings) *revisionMetrics {
	return &revisionMetrics{duration: m.duration, revision: []attribute.KeyValue{
		attribute.String("k8s.namespace.name", s.Namespace),
		attribute.String("kn.service.name", s.Service),
		attribute.String("kn.configuration.name", s.Configuration),
		attribute.String("kn.revision.name", s.Revision),
	}}
}

func (m *revisionMetrics) record(status int, took time.Duration) {
	options, ok := m.options.Load(status)
	if !ok {
		set := attribute.NewSet(append(m.revision[:len(m.revision):len(m.revision)], attribute.Int("http.response.status_code", status))...)
		options, _ = m.options.LoadOrStore(status, []metric.RecordOption{metric.WithAttributeSet(set)})
	}
	// Not the request's context: a record is never cut short.
	m.duration.Record(context.Background(), took.Seconds(), options.([]metric.RecordOption)...)
}
