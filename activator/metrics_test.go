package activator

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

func TestQueueMetrics(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	m, err := NewMetrics(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	if err != nil {
		t.Fatal(err)
	}
	b := start(t, func(c *Config) { c.Metrics, c.QueueTimeout = m, 10*time.Millisecond })
	if status, _, _ := do(t, b.request(t)); status != http.StatusServiceUnavailable {
		t.Errorf("got %d without a function, want 503", status)
	}
	b.Add(sortKey, "pod", 0, nothing)
	do(t, b.request(t))
	do(t, b.request(t))
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, p := range all.ScopeMetrics[0].Metrics[0].Data.(metricdata.Histogram[float64]).DataPoints {
		got[p.Attributes.Encoded(attribute.DefaultEncoder())] = p.Count
	}
	at := "k8s.namespace.name=default,kn.revision.name=sort-00001,outcome="
	if diff := cmp.Diff(map[string]uint64{at + "served": 2, at + "refused": 1}, got); diff != "" {
		t.Errorf("waits (-want +got):\n%s", diff)
	}
}

// A request that is served and those that wait for its slot are the queue's depth, by
// the name that queue-proxy gives it.
func TestQueueDepth(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	m, err := NewMetrics(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)))
	if err != nil {
		t.Fatal(err)
	}
	b := start(t, func(c *Config) {
		c.Metrics = m
		r := c.Revisions.(revisionSet)[sortKey]
		r.Concurrency = 1
		c.Revisions.(revisionSet)[sortKey] = r
	})
	arrived, goOn := make(chan struct{}, 3), make(chan struct{})
	b.Add(sortKey, "pod", 1, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		arrived <- struct{}{}
		<-goOn
	}))
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() { do(t, b.request(t)) })
	}
	<-arrived
	for b.entry(sortKey).slots.occupancy().waiting < 2 {
		time.Sleep(time.Millisecond)
	}
	if got := depthOf(t, reader); got != 3 {
		t.Errorf("got %d, want 3", got)
	}
	close(goOn)
	all.Wait()
	if got := depthOf(t, reader); got != 0 {
		t.Errorf("afterwards: got %d, want 0", got)
	}
}

// depthOf reads the one queue's depth.
func depthOf(t *testing.T, reader sdkmetric.Reader) int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	for _, m := range all.ScopeMetrics[0].Metrics {
		if m.Name == "kn.serving.queue.depth" {
			points := m.Data.(metricdata.Gauge[int64]).DataPoints
			if len(points) == 1 {
				return points[0].Value
			}
		}
	}
	t.Fatalf("no such metric, or several, in %v", all.ScopeMetrics[0].Metrics)
	return 0
}
