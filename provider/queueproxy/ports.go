package queueproxy

import (
	"net/http"
	"sync"
	"time"

	"knative.dev/serving/pkg/networking"
	"knative.dev/serving/pkg/queue"
)

// Ports returns what a pod with an address of its own serves there, by port, as
// queue-proxy does (serving pkg/queue/sharedmain/servers.go): requests, in HTTP/1.1
// and in HTTP/2 on both of two; what a preStop hook waits for; the load for an
// autoscaler that scrapes; and, unless it is nil, metrics for Prometheus. next
// brings requests to p in their turn.
func (p *Proxy) Ports(next, metrics http.Handler) map[uint16]http.Handler {
	requests := p.entrance(next)
	ports := map[uint16]http.Handler{
		networking.BackendHTTPPort:             requests,
		networking.BackendHTTP2Port:            requests,
		networking.QueueAdminPort:              only(queue.RequestQueueDrainPath, p.serveDrain),
		networking.AutoscalingQueueMetricsPort: only("/metrics", p.serveStat),
	}
	if metrics != nil {
		ports[networking.UserQueueMetricsPort] = only("/metrics", metrics.ServeHTTP)
	}
	return ports
}

func only(path string, h http.HandlerFunc) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(path, h)
	return mux
}

// Drain says that the pod ends: probes are answered 503 from now on. Requests
// that still come are served; who sends them is told by the probes to stop.
func (p *Proxy) Drain() { p.drain.start() }

// notEnding is after how long a hook hears that its pod doesn't end at all: just
// the container does, as after a liveness probe has failed.
const notEnding = time.Second

// serveDrain answers a preStop hook when the pod has begun to end and no request is
// left in it.
func (p *Proxy) serveDrain(_ http.ResponseWriter, r *http.Request) {
	wait := time.NewTimer(notEnding)
	defer wait.Stop()
	select {
	case <-p.drain.begun:
	case <-wait.C:
		return
	case <-r.Context().Done():
		return
	}
	select {
	case <-p.drain.quiet:
	case <-r.Context().Done():
	}
}

// drain knows whether the pod ends, and whether requests are left.
type drain struct {
	begun, quiet chan struct{} // closed

	mu       sync.Mutex
	started  bool
	done     bool
	requests int
}

func (d *drain) init() { d.begun, d.quiet = make(chan struct{}), make(chan struct{}) }

func (d *drain) began() bool {
	select {
	case <-d.begun:
		return true
	default:
		return false
	}
}

func (d *drain) start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.started {
		d.started = true
		close(d.begun)
		d.settle()
	}
}

func (d *drain) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests++
}

func (d *drain) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests--
	d.settle()
}

// settle notes the first moment without requests; mu is held.
func (d *drain) settle() {
	if d.started && !d.done && d.requests == 0 {
		d.done = true
		close(d.quiet)
	}
}
