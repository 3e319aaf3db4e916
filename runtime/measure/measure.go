// Package measure counts and times what guests do, as instruments of
// OpenTelemetry: their names are Wisp's own, listed in docs/operations.md.
//
// Attributes are a namespace and a revision, never a pod: those are without end.
// What is recorded for each request allocates nothing.
package measure

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/wisp-serving/wisp/runtime/guest"
)

const scope = "github.com/wisp-serving/wisp/runtime/measure"

// bounds are the buckets of durations, in seconds: an instance of a small module
// is there within 20 µs, and compiling a large one takes a minute.
var bounds = []float64{0.00001, 0.00005, 0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}

// Metrics holds a node's instruments. It is safe for concurrent use.
type Metrics struct {
	meter                           metric.Meter
	compile, wait, instantiate, run metric.Float64Histogram
}

// New makes the instruments of provider.
func New(provider metric.MeterProvider) (*Metrics, error) {
	m := &Metrics{meter: provider.Meter(scope)}
	for _, it := range []struct {
		instrument *metric.Float64Histogram
		name, what string
	}{
		{&m.compile, "wisp.compile.duration", "Time to meter and compile a module"},
		{&m.wait, "wisp.admission.duration", "Time that an instance waited for memory and a core"},
		{&m.instantiate, "wisp.instantiate.duration", "Time to make an instance"},
		{&m.run, "wisp.run.duration", "Time that an instance ran, by how it ended"},
	} {
		var err error
		*it.instrument, err = m.meter.Float64Histogram(it.name,
			metric.WithDescription(it.what), metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(bounds...))
		if err != nil {
			return nil, fmt.Errorf("make the metrics of guests: %w", err)
		}
	}
	return m, nil
}

// Compiled records a compilation that took so long and ended with err.
func (m *Metrics) Compiled(took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.compile.Record(context.Background(), took.Seconds(), metric.WithAttributes(attribute.String("result", result)))
}

// Place is whose instances are counted together. Revision is empty for pods that
// are none's.
type Place struct{ Namespace, Revision string }

func (p Place) attributes(more ...attribute.KeyValue) metric.MeasurementOption {
	list := []attribute.KeyValue{attribute.String("k8s.namespace.name", p.Namespace)}
	if p.Revision != "" {
		list = append(list, attribute.String("kn.revision.name", p.Revision))
	}
	return metric.WithAttributeSet(attribute.NewSet(append(list, more...)...))
}

// Present is what there is at a place now.
type Present struct {
	Instances int64
	Memory    int64 // bytes
}

// Watch has look asked for what there is whenever the metrics are collected, until
// unwatch is called.
func (m *Metrics) Watch(look func() map[Place]Present) (unwatch func(), err error) {
	instances, err := m.meter.Int64ObservableGauge("wisp.instances",
		metric.WithDescription("Instances that run"), metric.WithUnit("{instance}"))
	if err != nil {
		return nil, fmt.Errorf("make the metrics of guests: %w", err)
	}
	memory, err := m.meter.Int64ObservableGauge("wisp.memory",
		metric.WithDescription("Memory that instances hold"), metric.WithUnit("By"))
	if err != nil {
		return nil, fmt.Errorf("make the metrics of guests: %w", err)
	}
	registered, err := m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for place, present := range look() {
			at := place.attributes()
			o.ObserveInt64(instances, present.Instances, at)
			o.ObserveInt64(memory, present.Memory, at)
		}
		return nil
	}, instances, memory)
	if err != nil {
		return nil, fmt.Errorf("make the metrics of guests: %w", err)
	}
	return func() { _ = registered.Unregister() }, nil
}

// outcome is how an instance ended.
type outcome int

const (
	ok outcome = iota
	exit
	trap
	oom
	timeout
	ended
	outcomes
)

var names = [outcomes]string{"ok", "exit", "trap", "oom", "timeout", "ended"}

func outcomeOf(err error) outcome {
	exited, trapped, memory := new(guest.ExitError), new(guest.TrapError), new(guest.OOMError)
	switch {
	case err == nil:
		return ok
	case errors.As(err, &memory): // which wraps how the guest took it
		return oom
	case errors.As(err, &exited):
		return exit
	case errors.As(err, &trapped):
		return trap
	case errors.Is(err, context.DeadlineExceeded):
		return timeout
	default:
		return ended // with its client, its pod or its output
	}
}

// Function records the instances of one place. It implements guest.Observer.
type Function struct {
	metrics *Metrics
	place   []metric.RecordOption
	ends    [outcomes][]metric.RecordOption
}

var _ guest.Observer = (*Function)(nil)

// At returns what records the instances at a place.
func (m *Metrics) At(p Place) *Function {
	f := &Function{metrics: m, place: []metric.RecordOption{p.attributes()}}
	for i, name := range names {
		f.ends[i] = []metric.RecordOption{p.attributes(attribute.String("outcome", name))}
	}
	return f
}

// Started records an instance that has waited and was then made. The contexts of
// records are none's: a record is never cut short.
func (f *Function) Started(waited, made time.Duration) {
	f.metrics.wait.Record(context.Background(), waited.Seconds(), f.place...)
	f.metrics.instantiate.Record(context.Background(), made.Seconds(), f.place...)
}

// Ended records how an instance has ended after it had run.
func (f *Function) Ended(ran time.Duration, err error) {
	f.metrics.run.Record(context.Background(), ran.Seconds(), f.ends[outcomeOf(err)]...)
}
