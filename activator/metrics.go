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
type Metrics struct{ queue metric.Float64Histogram }

// NewMetrics makes the instruments of provider.
func NewMetrics(provider metric.MeterProvider) (*Metrics, error) {
	queue, err := provider.Meter("github.com/wisp-serving/wisp/activator").Float64Histogram(
		"wisp.queue.duration",
		metric.WithDescription("Time that a request waited for a slot of its revision, by whether it got one"),
		metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(waitBounds...),
	)
	if err != nil {
		return nil, fmt.Errorf("make the queue metrics: %w", err)
	}
	return &Metrics{queue: queue}, nil
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
		return []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(
			attribute.String("k8s.namespace.name", revision.Namespace),
			attribute.String("kn.revision.name", revision.Name),
			attribute.String("outcome", outcome),
		))}
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
