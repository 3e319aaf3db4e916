package activator

import (
	"net/http"
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
