package xds

import (
	"context"
	"fmt"
	"strings"
	"time"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/wisp-serving/wisp/xds/server"
	"github.com/wisp-serving/wisp/xds/snapshot"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are the gateway's instruments. They are safe for concurrent use.
type metrics struct {
	rejections, sent             metric.Int64Counter
	resources, envoys, ingresses metric.Int64Gauge
	ready                        metric.Float64Histogram
}

var _ server.Observer = (*metrics)(nil)

// readyBounds are in seconds: a KIngress is Ready within milliseconds, or waits for
// something.
var readyBounds = []float64{0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60}

func newMetrics(provider metric.MeterProvider) (*metrics, error) {
	meter := provider.Meter("github.com/wisp-serving/wisp/xds")
	m := &metrics{}
	var err error
	counter := func(to *metric.Int64Counter, name, unit, help string) {
		if err == nil {
			*to, err = meter.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(help))
		}
	}
	gauge := func(to *metric.Int64Gauge, name, unit, help string) {
		if err == nil {
			*to, err = meter.Int64Gauge(name, metric.WithUnit(unit), metric.WithDescription(help))
		}
	}
	counter(&m.rejections, "kn.wasm.gateway.rejections", "{response}", "Responses that an Envoy has rejected")
	counter(&m.sent, "kn.wasm.gateway.sent", "By", "Bytes of the responses sent to Envoys, before compression and framing")
	gauge(&m.resources, "kn.wasm.gateway.resources", "{resource}", "Resources that are published")
	gauge(&m.envoys, "kn.wasm.gateway.envoys", "{envoy}", "Envoys that are connected")
	gauge(&m.ingresses, "kn.wasm.gateway.ingresses", "{ingress}", "KIngresses of Wisp's class")
	if err == nil {
		m.ready, err = meter.Float64Histogram("kn.wasm.gateway.ready.duration",
			metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(readyBounds...),
			metric.WithDescription("Time from a change of a KIngress, as the gateway sees it, until it is proved"))
	}
	if err != nil {
		return nil, fmt.Errorf("make the gateway's metrics: %w", err)
	}
	return m, nil
}

// Rejected implements server.Observer.
func (m *metrics) Rejected(r server.Rejection) {
	m.rejections.Add(context.Background(), 1, metric.WithAttributes(kind(r.TypeURL)))
}

// Sent implements server.Observer.
func (m *metrics) Sent(typeURL string, bytes int) {
	m.sent.Add(context.Background(), int64(bytes), metric.WithAttributes(kind(typeURL)))
}

// kind is a type's last word, such as Cluster.
func kind(typeURL string) attribute.KeyValue {
	return attribute.String("type", typeURL[strings.LastIndexByte(typeURL, '.')+1:])
}

func (m *metrics) published(ctx context.Context, s snapshot.State) {
	for typeURL, set := range map[string]snapshot.Set{
		resourcev3.ListenerType: s.Listeners,
		resourcev3.RouteType:    s.Routes,
		resourcev3.ClusterType:  s.Clusters,
		resourcev3.EndpointType: s.Endpoints,
		resourcev3.SecretType:   s.Secrets,
	} {
		m.resources.Record(ctx, int64(len(set)), metric.WithAttributes(kind(typeURL)))
	}
}

func (m *metrics) connected(ctx context.Context, answering, silent int) {
	m.envoys.Record(ctx, int64(answering), metric.WithAttributes(attribute.String("state", "answering")))
	m.envoys.Record(ctx, int64(silent), metric.WithAttributes(attribute.String("state", "silent")))
}

// serving records how many KIngresses are served as they ask, are refused, and are
// set aside because Envoy refuses them.
func (m *metrics) serving(ctx context.Context, parts map[string]int) {
	for _, state := range []string{"served", "refused", "rejected"} {
		m.ingresses.Record(ctx, int64(parts[state]), metric.WithAttributes(attribute.String("state", state)))
	}
}

func (m *metrics) proved(ctx context.Context, took time.Duration) {
	m.ready.Record(ctx, took.Seconds())
}
