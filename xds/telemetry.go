package xds

import (
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	crmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
)

// telemetry is what the gateway tells of itself.
type telemetry struct {
	metrics  *metrics
	registry *prometheus.Registry
}

func newTelemetry() (*telemetry, error) {
	registry := prometheus.NewRegistry() // of this Run; the process may have others
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry), otelprometheus.WithoutScopeInfo(), otelprometheus.WithoutTargetInfo())
	if err != nil {
		return nil, fmt.Errorf("export metrics: %w", err)
	}
	m, err := newMetrics(sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter)))
	if err != nil {
		return nil, err
	}
	return &telemetry{metrics: m, registry: registry}, nil
}

// serve adds to mgr a server of /healthz, /readyz and /metrics. ready returns why the
// gateway isn't. The metrics are the gateway's, and those of its queue and of its
// requests to the API server.
func (t *telemetry) serve(mgr manager.Manager, address string, ready func() error) error {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("serve health: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.Gatherers{t.registry, crmetrics.Registry}, promhttp.HandlerOpts{}))
	grace := time.Second
	err = mgr.Add(&manager.Server{
		Name:            "health",
		Server:          &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second},
		Listener:        ln,
		ShutdownTimeout: &grace,
	})
	if err != nil {
		_ = ln.Close()
		return fmt.Errorf("add health server: %w", err)
	}
	return nil
}
