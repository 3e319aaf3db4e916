package main

import (
	"fmt"
	"net/http"

	prom "github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/exemplar"
)

// maxSeries is how many series an instrument may have: some of every revision that
// was ever called here. Those beyond are counted together, as otel_metric_overflow.
const maxSeries = 20_000

// meters collects a role's metrics for Prometheus to scrape.
type meters struct {
	metric.MeterProvider
	// Handler answers scrapes.
	http.Handler
}

// newMeters returns meters that also tell of the process itself.
func newMeters() (*meters, error) {
	registry := prom.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return metersOf(registry)
}

// newPodMeters returns meters of one pod.
func newPodMeters() (*meters, error) { return metersOf(prom.NewRegistry()) }

func metersOf(registry *prom.Registry) (*meters, error) {
	exporter, err := prometheus.New(prometheus.WithRegisterer(registry))
	if err != nil {
		return nil, fmt.Errorf("set up metrics: %w", err)
	}
	return &meters{
		MeterProvider: sdkmetric.NewMeterProvider(
			sdkmetric.WithReader(exporter),
			sdkmetric.WithCardinalityLimit(maxSeries),
			// The text format shows no exemplars, and a histogram would hold 2 KB of them.
			sdkmetric.WithExemplarFilter(exemplar.AlwaysOffFilter),
		),
		Handler: promhttp.HandlerFor(registry, promhttp.HandlerOpts{}),
	}, nil
}
