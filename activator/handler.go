package activator

import (
	"context"
	"errors"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/types"
	netheader "knative.dev/networking/pkg/http/header"
	"knative.dev/serving/pkg/activator"
)

// ServeHTTP is the request's route through the node: probe, identity, revision,
// count, slot, function.
func (a *Activator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if answerProbe(w, r) {
		return
	}
	key := identity(r)
	if key.Namespace == "" || key.Name == "" {
		http.Error(w, "the request names no revision: call the function through the gateway", http.StatusNotFound)
		return
	}
	revision, ok := a.cfg.Revisions.Get(key)
	if !ok {
		http.Error(w, "revision "+key.String()+" does not exist", http.StatusNotFound)
		return
	}
	hideIdentity(r)

	e := a.entry(key)
	now := time.Now()
	defer e.load.begin(now).end()

	deadline := now.Add(revision.Timeout)
	ctx, cancel := context.WithDeadline(r.Context(), deadline)
	defer cancel()
	defer bound(w, deadline.Add(lastWords))()
	t, err := a.slot(ctx, revision, e)
	if err != nil {
		a.refuse(w, r, key, err)
		return
	}
	// Deferred, so that a handler's panic gives the slot back too.
	defer e.slots.release(t)
	t.handler.ServeHTTP(w, r.WithContext(ctx))
}

// lastWords is how long after a revision's timeout the answer that says so may
// take.
const lastWords = time.Second

// bound sets when reads of the request's body and writes of its answer fail: a
// context ends neither, and a client that stalls would keep its slot. The
// returned func frees the connection for its next request, as net/http does for
// reads alone. A writer without deadlines is left as it is.
func bound(w http.ResponseWriter, at time.Time) func() {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(at)
	_ = c.SetWriteDeadline(at)
	return func() { _ = c.SetWriteDeadline(time.Time{}) }
}

// slot takes a slot of the revision, starting its function if none runs here.
func (a *Activator) slot(ctx context.Context, revision Revision, e *entry) (*target, error) {
	if t := e.slots.try(); t != nil {
		return t, nil
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.QueueTimeout)
	defer cancel()
	return e.slots.wait(ctx, func() { a.activate(revision, e) })
}

// refuse answers a request that got no slot. Statuses are those of Knative's
// activator (serving pkg/activator/handler/handler.go).
func (a *Activator) refuse(w http.ResponseWriter, r *http.Request, key types.NamespacedName, err error) {
	switch {
	case errors.Is(err, errQueueFull):
		http.Error(w, "revision "+key.String()+" is overloaded: its queue is full", http.StatusServiceUnavailable)
	case r.Context().Err() != nil: // the client has gone: nobody reads an answer
	default:
		http.Error(w, "revision "+key.String()+" had no instance ready in time", http.StatusServiceUnavailable)
	}
}

func identity(r *http.Request) types.NamespacedName {
	return types.NamespacedName{
		Namespace: r.Header.Get(activator.RevisionHeaderNamespace),
		Name:      r.Header.Get(activator.RevisionHeaderName),
	}
}

// hideIdentity removes what is between the gateway and the node, which no
// function may see.
func hideIdentity(r *http.Request) {
	r.Header.Del(activator.RevisionHeaderNamespace)
	r.Header.Del(activator.RevisionHeaderName)
	r.Header.Del(netheader.HashKey)
	r.Header.Del(netheader.ProxyKey)
	r.Header.Del(netheader.PassthroughLoadbalancingKey)
	r.Header.Del(netheader.RouteTagKey)
	r.Header.Del(netheader.DefaultRouteKey)
}

// answerProbe answers the probes that Knative's networking sends through the
// data plane. They reach no function and count nowhere.
func answerProbe(w http.ResponseWriter, r *http.Request) bool {
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
	default:
		http.Error(w, netheader.ProbeKey+" must be "+netheader.ProbeValue, http.StatusBadRequest)
	}
	return true
}
