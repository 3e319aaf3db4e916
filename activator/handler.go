package activator

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"k8s.io/apimachinery/pkg/types"
	netheader "knative.dev/networking/pkg/http/header"
	"knative.dev/serving/pkg/activator"

	"github.com/wisp-serving/wisp/span"
)

// ServeHTTP is the request's route through the node: probe, identity, revision,
// count, slot, function.
func (a *Activator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if a.answerProbe(w, r) {
		return
	}
	key := identity(r)
	if key.Namespace == "" || key.Name == "" {
		http.Error(w, "the request names no revision: call the function through the gateway", http.StatusNotFound)
		return
	}
	a.admit(w, r, key, "")
}

// Pod returns the handler of what comes straight to the address of a pod, whose id
// Add was given. A request waits for that pod, as one of at most ten times its
// concurrency; once the pod takes none any more it goes where any request of the
// revision goes. So does what a gateway has sent: it names the revision and means
// no pod of it. What a request says of another revision is not heard.
func (a *Activator) Pod(revision types.NamespacedName, id types.UID) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		pod := id
		if identity(r) == revision && r.Header.Get(netheader.ProxyKey) == "" {
			pod = ""
		}
		a.admit(w, r, revision, pod)
	})
}

// admit counts the request and serves it: by the function pod alone, unless that
// is empty.
func (a *Activator) admit(w http.ResponseWriter, r *http.Request, key types.NamespacedName, pod types.UID) {
	revision, ok := a.cfg.Revisions.Get(key)
	if !ok {
		http.Error(w, "revision "+key.String()+" does not exist", http.StatusNotFound)
		return
	}
	sent := r.Header.Get(netheader.ProxyKey) != "" // by another node, which counts it
	hideIdentity(r)
	if a.cfg.Traces != nil {
		var traced trace.Span
		r, traced = span.Continue(a.cfg.Traces, r,
			attribute.String("k8s.namespace.name", key.Namespace),
			attribute.String("kn.revision.name", key.Name),
			attribute.String("http.request.method", r.Method))
		defer traced.End()
	}

	e := a.entry(key)
	now := time.Now()
	defer e.load.begin(now, sent).end()

	deadline := now.Add(revision.Timeout)
	ctx, cancel := context.WithDeadline(r.Context(), deadline)
	defer cancel()
	release := bound(w, deadline.Add(lastWords))
	whole := false
	defer func() { release(whole) }()
	a.serve(w, r.WithContext(ctx), call{revision: revision, entry: e, pod: pod, local: sent})
	whole = true
}

// call is a request's way through the node.
type call struct {
	revision Revision
	entry    *entry
	// pod is the only function that may take it, empty for any.
	pod types.UID
	// local is whether only functions of this node may take it.
	local bool
	// stay is whether it waits here rather than start its revision elsewhere.
	stay bool
}

// serve brings the request to a target, and to another if a node can't be
// reached.
func (a *Activator) serve(w http.ResponseWriter, r *http.Request, c call) {
	for {
		asked := time.Now()
		_, waits := span.Begin(r.Context(), span.Queue)
		t, err := a.slot(r, c)
		waits.End()
		c.entry.waits.record(time.Since(asked), err)
		if err != nil {
			a.refuse(w, r, c, err)
			return
		}
		if a.hand(w, r, c, t) {
			return
		}
		c.stay = true
	}
}

// hand gives the request to the target, and the slot back. It returns false if
// the target is a node that can't be reached: nothing of the request has left.
func (a *Activator) hand(w http.ResponseWriter, r *http.Request, c call, t *target) bool {
	// Deferred, so that a handler's panic gives the slot back too.
	defer c.entry.slots.release(t)
	if t.handler != nil {
		t.handler.ServeHTTP(w, r)
		return true
	}
	if a.forward.forward(w, r, c.revision.NamespacedName, t.address) {
		return true
	}
	c.entry.slots.suspend(t, time.Now().Add(avoidFor))
	return false
}

// lastWords is how long after a revision's timeout the answer that says so may
// take.
const lastWords = time.Second

// bound sets when reads of the request's body and writes of its answer fail: a
// context ends neither, and a client that stalls would keep its slot. The
// returned func frees the connection for its next request, as net/http does for
// reads alone. A writer without deadlines is left as it is.
//
// If the answer isn't whole, because the handler has panicked to break it off, the
// connection is closed at once: net/http would first read what is left of the body,
// for as long as the client likes.
func bound(w http.ResponseWriter, at time.Time) (release func(whole bool)) {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(at)
	_ = c.SetWriteDeadline(at)
	return func(whole bool) {
		if whole {
			_ = c.SetWriteDeadline(time.Time{})
			return
		}
		if conn, _, err := c.Hijack(); err == nil { // HTTP/2 ends the stream by itself
			conn.Close()
		}
	}
}

// slot takes a slot of the revision. If nothing of it runs, its function is
// started: here, or on another node if this one may not.
func (a *Activator) slot(r *http.Request, c call) (*target, error) {
	s := c.entry.slots
	if c.pod != "" {
		t, err := a.slotOf(r, c)
		if !errors.Is(err, errGone) {
			return t, err
		}
	}
	if t := s.try(c.local); t != nil {
		return t, nil
	}
	if !a.mayStart() && s.cold(c.local) {
		if t := a.sendOn(c); t != nil {
			return t, nil
		}
		if a.draining.Load() {
			return nil, errDraining
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), a.cfg.QueueTimeout)
	defer cancel()
	return s.wait(ctx, c.local, held(r), func() { a.activate(c.revision, c.entry) })
}

// slotOf takes a slot of the function that the request came to.
func (a *Activator) slotOf(r *http.Request, c call) (*target, error) {
	ctx, cancel := context.WithTimeout(r.Context(), a.cfg.QueueTimeout)
	defer cancel()
	return c.entry.slots.waitFor(ctx, c.pod, held(r))
}

// sendOn returns the node that starts the revision in this one's place, nil if
// the request must stay.
func (a *Activator) sendOn(c call) *target {
	if c.local || c.stay {
		return nil
	}
	address := a.cfg.Next(c.revision.NamespacedName)
	if address == "" {
		return nil
	}
	a.poke(c.revision, c.entry) // the other node leaves the counting to us
	return &target{address: address, inFlight: 1}
}

// errDraining says that this node is stopping, and nothing can take the request.
var errDraining = errors.New("this node is stopping")

// streamBuffer is how much of an HTTP/2 request's body is taken in before the
// function reads it, and lineBuffer of an HTTP/1.1 one's (net/http reads through
// a buffer of that size). Both in bytes.
const (
	streamBuffer = 256 << 10
	lineBuffer   = 4 << 10
)

// held returns how many bytes of this process's memory a request may hold while
// it waits: its headers, and what is taken in of its body.
func held(r *http.Request) int64 {
	n := int64(len(r.RequestURI))
	for name, values := range r.Header {
		for _, v := range values {
			n += int64(len(name) + len(v))
		}
	}
	body := int64(lineBuffer)
	if r.ProtoMajor == 2 {
		body = streamBuffer
	}
	if r.ContentLength >= 0 {
		body = min(body, r.ContentLength)
	}
	return n + body
}

// refuse answers a request that got no slot. Statuses are those of Knative's
// activator (serving pkg/activator/handler/handler.go).
func (a *Activator) refuse(w http.ResponseWriter, r *http.Request, c call, err error) {
	name := "revision " + c.revision.String()
	switch {
	case errors.Is(err, errQueueFull):
		http.Error(w, name+" is overloaded: its queue is full", http.StatusServiceUnavailable)
	case errors.Is(err, errDraining):
		http.Error(w, name+" has no instance: "+err.Error(), http.StatusServiceUnavailable)
	case errors.Is(context.Cause(r.Context()), context.DeadlineExceeded):
		http.Error(w, "request timeout: "+name+" had no instance ready in time"+a.because(c), http.StatusGatewayTimeout)
	case r.Context().Err() != nil: // the client has gone: nobody reads an answer
	default:
		http.Error(w, name+" had no instance ready in time"+a.because(c), http.StatusServiceUnavailable)
	}
}

// because returns what keeps the revision from running, as the end of a sentence;
// empty if nobody knows.
func (a *Activator) because(c call) string {
	if reason := a.cfg.Refusal(c.revision.NamespacedName); reason != "" {
		return ": " + reason
	}
	if reason := c.entry.reason.Load(); reason != nil {
		return ": " + *reason
	}
	return ""
}

func identity(r *http.Request) types.NamespacedName {
	return types.NamespacedName{
		Namespace: r.Header.Get(activator.RevisionHeaderNamespace),
		Name:      r.Header.Get(activator.RevisionHeaderName),
	}
}

// hideIdentity removes what is between the gateway and the node, which no
// function may see. That a node has sent the request on is for the pod's own
// queue-proxy to know, and to hide.
func hideIdentity(r *http.Request) {
	r.Header.Del(activator.RevisionHeaderNamespace)
	r.Header.Del(activator.RevisionHeaderName)
	r.Header.Del(netheader.HashKey)
	r.Header.Del(netheader.PassthroughLoadbalancingKey)
	r.Header.Del(netheader.RouteTagKey)
	r.Header.Del(netheader.DefaultRouteKey)
}

// queueProbe is what a probe says that asks for a ready pod, and the body of the
// answer to it: the name of Knative's queue-proxy (queue.Name in serving
// pkg/queue).
const queueProbe = "queue"

// answerProbe answers the probes that Knative's networking sends through the
// data plane, and those that ask whether a pod of the revision is ready here.
// They reach no function and count nowhere.
func (a *Activator) answerProbe(w http.ResponseWriter, r *http.Request) bool {
	switch netheader.GetKnativeProbeValue(r) {
	case "":
		return false
	case netheader.ProbeValue:
		hash := r.Header.Get(netheader.HashKey)
		if hash == "" {
			http.Error(w, "the probe has no "+netheader.HashKey+" header", http.StatusBadRequest)
			return true
		}
		w.Header().Set(netheader.HashKey, hash)
		w.WriteHeader(http.StatusOK)
	case queueProbe:
		key := identity(r)
		if e, ok := a.lookUp(key); !ok || e.slots.occupancy().targets == 0 {
			http.Error(w, "no pod of revision "+key.String()+" is ready here", http.StatusServiceUnavailable)
			return true
		}
		_, _ = io.WriteString(w, queueProbe) // to a prober that may have gone
	default:
		http.Error(w, netheader.ProbeKey+" must be "+netheader.ProbeValue+" or "+queueProbe, http.StatusBadRequest)
	}
	return true
}
