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

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	netheader "knative.dev/networking/pkg/http/header"
	netstats "knative.dev/networking/pkg/http/stats"
	"knative.dev/serving/pkg/activator"
	pkghttp "knative.dev/serving/pkg/http"
	"knative.dev/serving/pkg/queue"

	"github.com/wisp-serving/wisp/span"
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
	// Metrics take the durations of requests: those of the node, of the pod, or none.
	Metrics []*Metrics
}

// Proxy is a pod's queue-proxy. It is safe for concurrent use.
type Proxy struct {
	counts counts
	drain  drain
	as     atomic.Pointer[chain]
}

// chain is a Proxy as it is configured.
type chain struct {
	*Proxy
	cfg     Config
	handler http.Handler // the whole of it
	metrics []*revisionMetrics
}

// New returns a Proxy around cfg.Function.
func New(cfg Config) (*Proxy, error) {
	p := new(Proxy)
	p.counts.init(time.Now())
	p.drain.init()
	if err := p.Become(cfg); err != nil {
		return nil, err
	}
	return p, nil
}

// Become makes the Proxy one of cfg: a function that has run without a Pod gets
// its Pod's. Requests that are running end as they have begun; counts go on.
func (p *Proxy) Become(cfg Config) error {
	if cfg.Function == nil {
		return errors.New("queueproxy: Function must be set")
	}
	c := &chain{Proxy: p, cfg: cfg}
	for _, m := range cfg.Metrics {
		c.metrics = append(c.metrics, m.of(cfg.Settings))
	}
	var err error
	if c.handler, err = c.logged(http.HandlerFunc(c.serve)); err != nil {
		return err
	}
	p.as.Store(c)
	return nil
}

// logged returns h with the request log around it, if there is one.
func (c *chain) logged(h http.Handler) (http.Handler, error) {
	cfg := c.cfg
	if cfg.Settings.RequestLog == "" || cfg.RequestLog == nil {
		return h, nil
	}
	logged, err := pkghttp.NewRequestLogHandler(h, cfg.RequestLog, cfg.Settings.RequestLog,
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
	return logged, nil
}

// ServeHTTP answers a request of the pod: probes itself, others by the function.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.as.Load().handler.ServeHTTP(w, r)
}

// entrance is the handler of what comes straight to the pod's address: it answers
// probes as p does, and hands other requests to next, which brings them to p in
// their turn.
func (p *Proxy) entrance(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isProbe(r) {
			p.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (c *chain) serve(w http.ResponseWriter, r *http.Request) {
	if isProbe(r) {
		c.answerProbe(w, r)
		return
	}
	c.drain.begin()
	defer c.drain.end()
	began := time.Now()
	in, out := netstats.ReqIn, netstats.ReqOut
	if netheader.GetKnativeProxyValue(r) == activator.Name {
		in, out = netstats.ProxiedIn, netstats.ProxiedOut
	}
	c.counts.event(began, in)
	a := &answer{ResponseWriter: w}
	whole := false
	ctx, run := span.Begin(r.Context(), span.Run)
	if run.IsRecording() {
		r = r.WithContext(ctx)
		span.Pass(ctx, r.Header)
	}
	// Deferred, so that a function's panic, which cuts an answer off, counts too.
	defer func() {
		now := time.Now()
		c.counts.event(now, out)
		status := a.outcome(whole)
		for _, m := range c.metrics {
			m.record(status, now.Sub(began))
		}
		endRun(run, status)
	}()
	if c.cfg.FullDuplex {
		_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 is, and says it can't be
	}
	forward(r)
	c.call(a, r)
	whole = true
}

// endRun ends the span of the function's part, with how it went.
func endRun(run trace.Span, status int) {
	if run.IsRecording() {
		run.SetAttributes(attribute.Int("http.response.status_code", status))
		if status >= http.StatusInternalServerError {
			run.SetStatus(codes.Error, "")
		}
		run.End()
	}
}

// call calls the function within the bounds of its answer.
func (c *chain) call(a *answer, r *http.Request) {
	if c.cfg.ResponseStartTimeout == 0 && c.cfg.IdleTimeout == 0 {
		c.cfg.Function.ServeHTTP(a, r)
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	a.watch(cancel, c.cfg.ResponseStartTimeout, c.cfg.IdleTimeout)
	c.cfg.Function.ServeHTTP(a, r.WithContext(ctx))
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
