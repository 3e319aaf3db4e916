// Package activator is the node's request path: it takes a request for a
// revision, finds or makes a slot for it, and hands it to the function.
//
// It knows no wasm and no Kubernetes objects. Whoever runs functions (the
// provider) adds and removes targets, each an http.Handler; the activator calls
// the Config's StartEarly when a request meets a revision without one. What a
// revision is (its limits, whether it exists) it asks of Revisions, and what
// there is of it on other nodes it is told by SetElsewhere.
//
// A request goes to a function on this node, else to a node with a ready pod,
// else it starts the function here. What another node has sent goes no further.
//
// It plays the part of two of Knative's processes: the activator, which holds
// requests for revisions without pods, and the queue-proxy in each pod, which
// limits concurrency and time and counts requests. See RATIONALE.md.
//
// Goroutines, all joined by Run: the HTTP server's, one early start at a time
// per revision, and the stat reporter.
package activator

import (
	"context"
	"errors"
	"fmt"
	stdlog "log" //nolint:depguard // http.Server asks for it
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"go.uber.org/zap/zapio"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/autoscaler/metrics"
)

// DefaultQueueDepth is how many requests may wait for one revision, as in
// Knative's activator (serving pkg/activator/net/throttler.go), and
// DefaultQueueBytes how much memory they may hold together.
const (
	DefaultQueueDepth = 10_000
	DefaultQueueBytes = 256 << 20
)

// Revision is what the request path must know of a revision.
type Revision struct {
	types.NamespacedName
	UID types.UID
	// Concurrency is spec.containerConcurrency: the most requests that one pod
	// handles at a time. 0 means any number.
	Concurrency int
	// Timeout is spec.timeoutSeconds: the longest that a request may take.
	Timeout time.Duration
	// PodAfter is how long demand must last before a Pod is asked for.
	PodAfter time.Duration
}

// Revisions tells which revisions exist. It must answer without blocking.
type Revisions interface {
	Get(types.NamespacedName) (Revision, bool)
}

// Config is what New needs. All fields are required but those that say what nil
// or 0 means.
type Config struct {
	// Addr is the host:port to listen on; HTTP/1.1 and h2c share it.
	Addr string
	// NodeName names this node in the stats it reports.
	NodeName  string
	Revisions Revisions
	// StartEarly starts a revision's function ahead of its Pod and adds it as
	// a target before it returns. It is called with a context that ends when
	// Run has drained, at most once at a time per revision.
	StartEarly func(context.Context, Revision) error
	// Report takes one second's stats, or a single one at once when a request
	// meets a revision without targets. It must not block.
	Report func([]metrics.StatMessage)
	// MayStart is whether functions may start here ahead of their Pods: not where
	// the node is cordoned. Nil stands for always. It must answer without blocking.
	MayStart func() bool
	// Next returns the host:port of the other node that is the first to start the
	// revision, empty if there is none. It must answer without blocking. Nil stands
	// for no other node.
	Next func(types.NamespacedName) string
	// Refusal returns why Kubernetes runs no pod of the revision now, empty if it
	// hasn't said so. It must answer without blocking. Nil stands for nothing said.
	Refusal func(types.NamespacedName) string
	// QueueDepth is how many requests may wait per revision; 0 means
	// DefaultQueueDepth. QueueBytes is how much memory they may hold together; 0
	// means DefaultQueueBytes.
	QueueDepth int
	QueueBytes int64
	// QueueTimeout bounds how long a request may wait for a slot.
	QueueTimeout time.Duration
	// DrainTimeout bounds how long Run waits for running requests at its end.
	DrainTimeout time.Duration
	// Metrics takes how long requests wait for a slot; nil: nobody does.
	Metrics *Metrics
	// Traces takes the spans of requests; nil: nobody does.
	Traces trace.TracerProvider
	Log    *zap.SugaredLogger
}

func (c Config) validate() error {
	switch {
	case c.Addr == "":
		return errors.New("activator: Addr is empty, must be host:port")
	case c.NodeName == "":
		return errors.New("activator: NodeName is empty")
	case c.Revisions == nil, c.StartEarly == nil, c.Report == nil, c.Log == nil:
		return errors.New("activator: Revisions, StartEarly, Report and Log must be set")
	case c.QueueDepth < 0, c.QueueBytes < 0:
		return fmt.Errorf("activator: QueueDepth = %d, QueueBytes = %d, must not be negative", c.QueueDepth, c.QueueBytes)
	case c.QueueTimeout <= 0, c.DrainTimeout <= 0:
		return errors.New("activator: QueueTimeout and DrainTimeout must be above 0")
	}
	return nil
}

// Activator serves the requests of all revisions on this node. Its methods are
// safe for concurrent use.
type Activator struct {
	cfg     Config
	forward *forwarder
	ready   chan struct{}
	// draining is whether Run is coming to its end.
	draining atomic.Bool

	mu        sync.RWMutex
	revisions map[types.NamespacedName]*entry
	// running is the context of early starts, nil outside Run; starts counts
	// them. Both are guarded by mu, so that no start begins after Run waits.
	running context.Context
	starts  sync.WaitGroup
}

// entry is one revision's state on this node. It is made by the first request
// or target and lives until Forget.
type entry struct {
	slots    *slots
	load     *load
	waits    *waits // nil: nobody takes them
	starting atomic.Bool
	// reason is why the latest start failed, nil after one that didn't.
	reason atomic.Pointer[string]
}

// New checks cfg. It starts nothing.
func New(cfg Config) (*Activator, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.QueueDepth == 0 {
		cfg.QueueDepth = DefaultQueueDepth
	}
	if cfg.QueueBytes == 0 {
		cfg.QueueBytes = DefaultQueueBytes
	}
	if cfg.MayStart == nil {
		cfg.MayStart = func() bool { return true }
	}
	if cfg.Next == nil {
		cfg.Next = func(types.NamespacedName) string { return "" }
	}
	if cfg.Refusal == nil {
		cfg.Refusal = func(types.NamespacedName) string { return "" }
	}
	return &Activator{
		cfg:       cfg,
		forward:   newForwarder(cfg.Log),
		ready:     make(chan struct{}),
		revisions: make(map[types.NamespacedName]*entry),
	}, nil
}

// Ready is closed when requests are being served.
func (a *Activator) Ready() <-chan struct{} { return a.ready }

// Add makes h, which has a Pod, a target of the revision: it takes up to
// concurrency requests at a time (0: any number), from now until Remove. Requests
// that wait get it at once. Adding an id again replaces its handler.
func (a *Activator) Add(revision types.NamespacedName, id types.UID, concurrency int, h http.Handler) {
	a.entry(revision).slots.add(id, concurrency, h, false)
}

// AddEarly is Add for a function that has no Pod yet. Adopted says that it has
// one now.
func (a *Activator) AddEarly(revision types.NamespacedName, id types.UID, concurrency int, h http.Handler) {
	a.entry(revision).slots.add(id, concurrency, h, true)
}

// Adopted says that a target which was added early has a Pod now.
func (a *Activator) Adopted(revision types.NamespacedName, id types.UID) {
	a.entry(revision).slots.adopted(id)
}

// SetElsewhere says which other nodes have ready pods of the revision: their
// host:port, and how many requests each takes at a time (0: any number).
func (a *Activator) SetElsewhere(revision types.NamespacedName, nodes map[string]int) {
	e := a.entry(revision)
	if e.slots.setElsewhere(nodes) {
		a.wake(revision, e)
	}
	if _, exists := a.cfg.Revisions.Get(revision); !exists && len(nodes) == 0 {
		a.Forget(revision) // its last pod outlived it
	}
}

// Remove takes the target away: it gets no new request. Requests that have it
// go on, and the channel is closed when the last one has ended; ending them
// earlier is the target's owner's affair. An unknown id has none.
func (a *Activator) Remove(revision types.NamespacedName, id types.UID) (drained <-chan struct{}) {
	e, ok := a.lookUp(revision)
	if !ok {
		return closed()
	}
	drained, cold := e.slots.remove(id)
	if cold {
		a.wake(revision, e)
	}
	return drained
}

// Run serves until ctx ends, then drains. It returns after every goroutine it
// started has ended, and must be called once.
func (a *Activator) Run(ctx context.Context) error {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.cfg.Addr)
	if err != nil {
		return fmt.Errorf("listen for requests on %s: %w", a.cfg.Addr, err)
	}
	srv := a.NewServer(a)
	unwatch, err := a.cfg.Metrics.watch(a.depths)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	defer unwatch()

	// Not ended by ctx: a request that is drained may wait for its start.
	starts, stopStarts := context.WithCancel(context.WithoutCancel(ctx))
	defer stopStarts()
	a.admitStarts(starts)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve requests on %s: %w", a.cfg.Addr, err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		a.draining.Store(true)
		return a.drain(context.WithoutCancel(ctx), srv)
	})
	g.Go(func() error {
		a.reportEverySecond(ctx)
		return nil
	})
	close(a.ready)
	err = g.Wait()
	stopStarts()
	a.joinStarts()
	a.forward.close()
	return err
}

// drain stops taking connections and waits for running requests, at most the
// drain timeout; then it closes what is left.
func (a *Activator) drain(ctx context.Context, srv *http.Server) error {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.DrainTimeout)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		a.cfg.Log.Warnw("requests still running after the drain timeout are cut off", "timeout", a.cfg.DrainTimeout)
		return srv.Close()
	}
	return nil
}

// NewServer returns a server of h, for HTTP/1.1 and h2c, that bounds what a peer
// can hold open: headers in time and size, idle connections. Bodies are bounded in
// time by the Activator's handlers, in size by the function's ABI.
func (a *Activator) NewServer(h http.Handler) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           h,
		Protocols:         protocols,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		HTTP2:             &http.HTTP2Config{MaxReceiveBufferPerStream: streamBuffer},
		// What peers do wrong, they could do without end.
		ErrorLog: stdlog.New(&zapio.Writer{Log: a.cfg.Log.Desugar(), Level: zap.DebugLevel}, "", 0),
	}
}

// depths tells how many requests each revision with a bound on them has.
func (a *Activator) depths(observe func(types.NamespacedName, int)) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for key, e := range a.revisions {
		if r, ok := a.cfg.Revisions.Get(key); ok && r.Concurrency > 0 {
			observe(key, e.slots.depth())
		}
	}
}

// lookUp returns the revision's entry, if there is one.
func (a *Activator) lookUp(key types.NamespacedName) (*entry, bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	e, ok := a.revisions[key]
	return e, ok
}

// entry returns the revision's entry, made if need be.
func (a *Activator) entry(key types.NamespacedName) *entry {
	if e, ok := a.lookUp(key); ok {
		return e
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.revisions[key]; e != nil {
		return e
	}
	e := &entry{slots: newSlots(queueLimits{a.cfg.QueueDepth, a.cfg.QueueBytes}), load: newLoad(time.Now()), waits: a.cfg.Metrics.of(key)}
	a.revisions[key] = e
	return e
}
