package activator

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"k8s.io/apimachinery/pkg/types"
)

// waitBounds are the buckets of waits, in seconds: nobody before one, a function
// that starts, a Pod that comes.
var waitBounds = []float64{0.00001, 0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}

// Metrics holds the instruments of the request path. It is safe for concurrent
// use.
type Metrics struct {
	meter metric.Meter
	queue metric.Float64Histogram
	depth metric.Int64ObservableGauge
}

// NewMetrics makes the instruments of provider.
func NewMetrics(provider metric.MeterProvider) (*Metrics, error) {
	m := &Metrics{meter: provider.Meter("github.com/wisp-serving/wisp/activator")}
	var err error
	m.queue, err = m.meter.Float64Histogram(
		"wisp.queue.duration",
		metric.WithDescription("Time that a request waited for a slot of its revision, by whether it got one"),
		metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(waitBounds...),
	)
	if err == nil {
		// Its name, and what it counts, are queue-proxy's (serving pkg/queue/request_metric.go).
		m.depth, err = m.meter.Int64ObservableGauge(
			"kn.serving.queue.depth",
			metric.WithDescription("Requests that have a slot of their revision or wait for one"),
			metric.WithUnit("{request}"),
		)
	}
	if err != nil {
		return nil, fmt.Errorf("make the queue metrics: %w", err)
	}
	return m, nil
}

// watch has depths asked whenever somebody reads the metrics, until stop is called.
func (m *Metrics) watch(depths func(observe func(types.NamespacedName, int))) (stop func(), err error) {
	if m == nil {
		return func() {}, nil
	}
	registration, err := m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		depths(func(revision types.NamespacedName, n int) {
			o.ObserveInt64(m.depth, int64(n), metric.WithAttributes(whose(revision)...))
		})
		return nil
	}, m.depth)
	if err != nil {
		return nil, fmt.Errorf("watch the queues: %w", err)
	}
	return func() { _ = registration.Unregister() }, nil
}

func whose(revision types.NamespacedName) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("k8s.namespace.name", revision.Namespace),
		attribute.String("kn.revision.name", revision.Name),
	}
}

// waits records one revision's.
type waits struct {
	queue           metric.Float64Histogram
	served, refused []metric.RecordOption
}

func (m *Metrics) of(revision types.NamespacedName) *waits {
	if m == nil {
		return nil
	}
	options := func(outcome string) []metric.RecordOption {
		return []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(append(whose(revision), attribute.String("outcome", outcome))...))}
	}
	return &waits{queue: m.queue, served: options("served"), refused: options("refused")}
}

// record takes a wait that has ended with err. Its context is not the request's: a
// record is never cut short.
func (w *waits) record(took time.Duration, err error) {
	if w == nil {
		return
	}
	options := w.served
	if err != nil {
		options = w.refused
	}
	w.queue.Record(context.Background(), took.Seconds(), options...)
}
