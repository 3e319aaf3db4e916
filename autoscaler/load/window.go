// Package load keeps the load of one revision, as nodes report it, over the
// two spans of time that an autoscaler looks at: the stable window and the
// panic window.
//
// The sums are Knative's (pkg/autoscaler/aggregation); what is added here is
// the difference between "no load" and "no report". A Window knows which nodes
// spoke, and since when without a pause, so that its owner can refuse to scale
// down on silence. See RATIONALE.md "Why is silence not zero?".
//
// The package has no goroutines and no clock: time is an argument.
package load

import (
	"errors"
	"time"

	"knative.dev/serving/pkg/apis/autoscaling"
	"knative.dev/serving/pkg/autoscaler/aggregation"
	asconfig "knative.dev/serving/pkg/autoscaler/config"
)

// ErrNoData says that nothing was reported for a whole stable window.
var ErrNoData = errors.New("no stats within the stable window")

const (
	// Silence is how long a node may say nothing before it counts as unheard.
	// Nodes report each second.
	Silence = 5 * time.Second
	// maxNodes bounds what a peer that invents node names can make us hold.
	maxNodes = 1024
)

// Span is what a Window covers. The zero Algorithm is linear.
type Span struct {
	Stable, Panic time.Duration
	// Algorithm is a value of Knative's metric-aggregation-algorithm, in its
	// dashed spelling.
	Algorithm string
}

// Window is the load of one revision. It is not safe for concurrent use.
type Window struct {
	span          Span
	stable, panic averager
	// heard holds the last report of each node.
	heard map[string]time.Time
	// since is when the reports began that go on without a pause longer than
	// Silence; last is the latest of them.
	since, last time.Time
}

// averager is what Knative's two kinds of buckets have in common.
type averager interface {
	Record(now time.Time, value float64)
	ResizeWindow(time.Duration)
	WindowAverage(now time.Time) float64
	IsEmpty(now time.Time) bool
}

// New returns an empty window.
func New(s Span) *Window {
	return &Window{
		span:   s,
		stable: newAverager(s.Algorithm, s.Stable),
		panic:  newAverager(s.Algorithm, s.Panic),
		heard:  make(map[string]time.Time),
	}
}

func newAverager(algorithm string, d time.Duration) averager {
	if algorithm == autoscaling.MetricAggregationAlgorithmWeightedExponential {
		return aggregation.NewWeightedFloat64Buckets(d, asconfig.BucketSize)
	}
	return aggregation.NewTimedFloat64Buckets(d, asconfig.BucketSize)
}

// Span returns what the window covers.
func (w *Window) Span() Span { return w.span }

// Resize changes the window's lengths and keeps what still fits. The algorithm
// stays as it is.
func (w *Window) Resize(stable, panicSpan time.Duration) {
	w.span.Stable, w.span.Panic = stable, panicSpan
	w.stable.ResizeWindow(stable)
	w.panic.ResizeWindow(panicSpan)
}

// Record adds what node reported at now: values of the same second add up, so
// that several nodes make one load. The value must be finite.
func (w *Window) Record(now time.Time, node string, value float64) {
	if now.Sub(w.last) > Silence {
		w.since = now
	}
	w.last = now
	w.hear(now, node)
	w.stable.Record(now, value)
	w.panic.Record(now, value)
}

func (w *Window) hear(now time.Time, node string) {
	if _, known := w.heard[node]; !known && len(w.heard) >= maxNodes {
		for n, at := range w.heard {
			if now.Sub(at) > Silence {
				delete(w.heard, n)
			}
		}
		if len(w.heard) >= maxNodes {
			return
		}
	}
	w.heard[node] = now
}

// Averages returns the load over the stable and the panic window, or ErrNoData.
func (w *Window) Averages(now time.Time) (stable, panicking float64, err error) {
	if w.stable.IsEmpty(now) {
		return 0, 0, ErrNoData
	}
	return w.stable.WindowAverage(now), w.panic.WindowAverage(now), nil
}

// Covers reports whether the averages at now are good enough to take pods
// away: reports came without a pause for a full stable window, and each of the
// given nodes, which should have something to say, was heard just now.
func (w *Window) Covers(now time.Time, nodes []string) bool {
	if now.Sub(w.last) > Silence || now.Sub(w.since) < w.span.Stable {
		return false
	}
	for _, n := range nodes {
		if now.Sub(w.heard[n]) > Silence {
			return false
		}
	}
	return true
}
