// Package queueproxy plays the queue-proxy of one pod of a Knative revision: what
// Knative puts as a native sidecar beside every container, and what no wasm
// runtime could run, is here a handler around the function's own.
//
// It does the part that belongs to a pod: the readiness probe that Knative has
// moved to the sidecar, timeouts of an answer's start and of its stalls, the
// headers a function sees, the request log, counts for a scraping autoscaler and
// metrics by queue-proxy's names. What belongs to a revision on a node (slots,
// queues, the timeout of the whole request) is the activator's, through which
// every request comes. The chain is Knative's (serving
// pkg/queue/sharedmain/handlers.go).
//
// It starts no goroutine. Timers run only where a revision bounds its answers.
package queueproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	netheader "knative.dev/networking/pkg/http/header"
	netstats "knative.dev/networking/pkg/http/stats"
	"knative.dev/serving/pkg/activator"
	pkghttp "knative.dev/serving/pkg/http"
	"knative.dev/serving/pkg/queue"
)

// Config says whose queue-proxy this is.
type Config struct {
	Settings
	// Pod and PodIP are the pod's, for stats and the request log.
	Pod, PodIP string
	// Function answers the requests. Required.
	Function http.Handler
	// Ready asks the function's readiness probes; nil: it is always ready.
	Ready func(context.Context) error
	// RequestLog takes one line for each request if Settings.RequestLog says so;
	// requests that end at once write at once. nil drops them.
	RequestLog io.Writer
	// Metrics takes the durations of requests; nil: nobody does.
	Metrics *Metrics
}

// Proxy is a pod's queue-proxy. It is safe for concurrent use.
type Proxy struct {
	cfg      Config
	handler  http.Handler // the whole chain
	counts   counts
	draining atomic.Bool
	metrics  *revisionMetrics
}

// New returns a Proxy around cfg.Function.
func New(cfg Config) (*Proxy, error) {
	if cfg.Function == nil {
		return nil, errors.New("queueproxy: Function must be set")
	}
	p := &Proxy{cfg: cfg, metrics: cfg.Metrics.of(cfg.Settings)}
	p.counts.init(time.Now())
	p.handler = http.HandlerFunc(p.serve)
	if cfg.Settings.RequestLog == "" || cfg.RequestLog == nil {
		return p, nil
	}
	logged, err := pkghttp.NewRequestLogHandler(p.handler, cfg.RequestLog, cfg.Settings.RequestLog,
		pkghttp.RequestLogTemplateInputGetterFromRevision(&pkghttp.RequestLogRevision{
			Name:          cfg.Revision,
			Namespace:     cfg.Namespace,
			Service:       cfg.Service,
			Configuration: cfg.Configuration,
			PodName:       cfg.Pod,
			PodIP:         cfg.PodIP,
		}), cfg.LogProbes)
	if err != nil {
		return nil, fmt.Errorf("request log template of %s/%s: %w", cfg.Namespace, cfg.Revision, err)
	}
	p.handler = logged
	return p, nil
}

// ServeHTTP answers a request of the pod: probes itself, others by the function.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.handler.ServeHTTP(w, r) }

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	if p.answerProbe(w, r) {
		return
	}
	began := time.Now()
	in, out := netstats.ReqIn, netstats.ReqOut
	if netheader.GetKnativeProxyValue(r) == activator.Name {
		in, out = netstats.ProxiedIn, netstats.ProxiedOut
	}
	p.counts.event(began, in)
	a := &answer{ResponseWriter: w}
	whole := false
	// Deferred, so that a function's panic, which cuts an answer off, counts too.
	defer func() {
		now := time.Now()
		p.counts.event(now, out)
		p.metrics.record(a.outcome(whole), now.Sub(began))
	}()
	if p.cfg.FullDuplex {
		_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 is, and says it can't be
	}
	forward(r)
	p.call(a, r)
	whole = true
}

// call calls the function within the bounds of its answer.
func (p *Proxy) call(a *answer, r *http.Request) {
	if p.cfg.ResponseStartTimeout == 0 && p.cfg.IdleTimeout == 0 {
		p.cfg.Function.ServeHTTP(a, r)
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	a.watch(cancel, p.cfg.ResponseStartTimeout, p.cfg.IdleTimeout)
	p.cfg.Function.ServeHTTP(a, r.WithContext(ctx))
	a.unwatch()
}

// forwarded sets Forwarded from the X-Forwarded-* headers (RFC 7239), which is
// all that is left to do for the handler inside it.
var forwarded = queue.ForwardedShimHandler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))

// forward gives the request the headers that a function sees: Forwarded, the
// host that the client named, and none that Knative's parts tell each other.
func forward(r *http.Request) {
	forwarded.ServeHTTP(nil, r)
	netheader.RewriteHostOut(r)
	for _, name := range internalHeaders {
		delete(r.Header, name)
	}
}

// internalHeaders are for Knative's own parts, in canonical form.
var internalHeaders = canonical(
	activator.RevisionHeaderName,
	activator.RevisionHeaderNamespace,
	netheader.ProxyKey,
	netheader.HashKey,
	netheader.PassthroughLoadbalancingKey,
	netheader.RouteTagKey,
	netheader.DefaultRouteKey,
)

func canonical(names ...string) []string {
	for i, name := range names {
		names[i] = http.CanonicalHeaderKey(name)
	}
	return names
}

// Drain says that the pod ends: probes are answered 503 from now on. Requests
// that still come are served; who sends them is told by the probes to stop.
func (p *Proxy) Drain() { p.draining.Store(true) }
