package load

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"knative.dev/serving/pkg/apis/autoscaling"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }

// report is what nodes say in each second of [from, to).
type report struct {
	from, to int
	values   map[string]float64
}

func play(w *Window, reports []report) {
	for _, r := range reports {
		for s := r.from; s < r.to; s++ {
			for node, v := range r.values {
				w.Record(at(s), node, v)
			}
		}
	}
}

func TestAverages(t *testing.T) {
	minute := Span{Stable: time.Minute, Panic: 6 * time.Second}
	tests := []struct {
		name                  string
		span                  Span
		reports               []report
		now                   int
		wantStable, wantPanic float64
		wantErr               error
	}{{
		name: "nothing was ever said", span: minute, now: 10, wantErr: ErrNoData,
	}, {
		name: "zeros are data", span: minute, now: 9,
		reports: []report{{0, 10, map[string]float64{"a": 0}}},
	}, {
		name: "two nodes add up", span: minute, now: 59,
		reports:    []report{{0, 60, map[string]float64{"a": 2, "b": 3}}},
		wantStable: 5, wantPanic: 5,
	}, {
		name: "panic sees the last seconds only", span: minute, now: 59,
		reports:    []report{{0, 54, map[string]float64{"a": 0}}, {54, 60, map[string]float64{"a": 10}}},
		wantStable: 1, wantPanic: 10,
	}, {
		name: "one request after a quiet minute", span: minute, now: 60,
		reports:    []report{{0, 60, map[string]float64{"a": 0}}, {60, 61, map[string]float64{"a": 60}}},
		wantStable: 1, wantPanic: 10,
	}, {
		name: "a window without a word is no data", span: minute, now: 200,
		reports: []report{{0, 60, map[string]float64{"a": 2}}},
		wantErr: ErrNoData,
	}, {
		name: "weights favour the latest", now: 59,
		span:       Span{Stable: time.Minute, Panic: 6 * time.Second, Algorithm: autoscaling.MetricAggregationAlgorithmWeightedExponential},
		reports:    []report{{0, 59, map[string]float64{"a": 0}}, {59, 60, map[string]float64{"a": 10}}},
		wantStable: 2, wantPanic: 7.8,
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := New(tt.span)
			play(w, tt.reports)
			stable, panicking, err := w.Averages(at(tt.now))
			if !errors.Is(err, tt.wantErr) {
				t.Fatalf("err = %v, want %v", err, tt.wantErr)
			}
			if !near(stable, tt.wantStable) || !near(panicking, tt.wantPanic) {
				t.Errorf("averages = %v, %v, want %v, %v", stable, panicking, tt.wantStable, tt.wantPanic)
			}
		})
	}
}

func near(a, b float64) bool { return a-b < 0.1 && b-a < 0.1 }

func TestCovers(t *testing.T) {
	zeros := func(nodes ...string) map[string]float64 {
		m := make(map[string]float64)
		for _, n := range nodes {
			m[n] = 0
		}
		return m
	}
	tests := []struct {
		name    string
		reports []report
		nodes   []string
		now     int
		want    bool
	}{
		{name: "never heard of", now: 100},
		{name: "not yet a full window", reports: []report{{0, 60, zeros("a")}}, nodes: []string{"a"}, now: 59},
		{name: "a full window", reports: []report{{0, 61, zeros("a")}}, nodes: []string{"a"}, now: 60, want: true},
		{name: "no pods, so no node must speak", reports: []report{{0, 61, zeros("a")}}, now: 60, want: true},
		{name: "silent now", reports: []report{{0, 61, zeros("a")}}, nodes: []string{"a"}, now: 66},
		{name: "a pause starts the window anew", reports: []report{{0, 50, zeros("a")}, {60, 101, zeros("a")}}, nodes: []string{"a"}, now: 100},
		{name: "a node with a pod was never heard", reports: []report{{0, 61, zeros("a")}}, nodes: []string{"a", "b"}, now: 60},
		{name: "a node with a pod fell silent", reports: []report{{0, 40, zeros("a", "b")}, {40, 61, zeros("a")}}, nodes: []string{"a", "b"}, now: 60},
		{name: "a node without a pod fell silent", reports: []report{{0, 40, zeros("a", "b")}, {40, 61, zeros("a")}}, nodes: []string{"a"}, now: 60, want: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := New(Span{Stable: time.Minute, Panic: 6 * time.Second})
			play(w, tt.reports)
			if got := w.Covers(at(tt.now), tt.nodes); got != tt.want {
				t.Errorf("Covers = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestResize(t *testing.T) {
	w := New(Span{Stable: time.Minute, Panic: 6 * time.Second})
	now := time.Now() // Knative's ResizeWindow reads the clock.
	w.Record(now, "a", 4)
	w.Resize(10*time.Second, time.Second)
	if got, want := w.Span(), (Span{Stable: 10 * time.Second, Panic: time.Second}); got != want {
		t.Errorf("span = %+v, want %+v", got, want)
	}
	if _, _, err := w.Averages(now); err != nil {
		t.Errorf("the report was lost: %v", err)
	}
	if _, _, err := w.Averages(now.Add(12 * time.Second)); !errors.Is(err, ErrNoData) {
		t.Errorf("err = %v, want %v", err, ErrNoData)
	}
}

func TestInventedNodesAreBounded(t *testing.T) {
	w := New(Span{Stable: time.Minute, Panic: 6 * time.Second})
	for i := range 3 * maxNodes {
		w.Record(at(0), fmt.Sprint("node-", i), 0)
	}
	if got := len(w.heard); got != maxNodes {
		t.Fatalf("holds %d nodes, want %d", got, maxNodes)
	}
	w.Record(at(10), "real", 0)
	if _, ok := w.heard["real"]; !ok || len(w.heard) != 1 {
		t.Errorf("holds %d nodes with real = %v, want only the one heard lately", len(w.heard), ok)
	}
}
