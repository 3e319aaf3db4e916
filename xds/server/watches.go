package server

import (
	"context"
	"sync"

	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
)

// watches is the cache with two rules of the xDS protocol that go-control-plane
// v0.14.0 lacks. It is safe for concurrent use.
//
// A repeated subscription is sent its resource again. Envoy repeats one when a
// cluster went and came back, and would wait for its endpoints in vain.
//
// What an Envoy has refused counts as not sent. Of such a response it may have
// taken some resources and not others; so all of them are sent again, or removed,
// but only once there is something else to send than what it has refused.
type watches struct {
	cachev3.SnapshotCache

	mu sync.Mutex
	// refusals are requests that refuse a response, and have no watch yet.
	refusals map[*cachev3.DeltaRequest]refusal
	parked   map[*parked]bool
}

// refusal is what was refused: names, and the version of all of their type.
type refusal struct {
	names []string
	info  string
}

// parked is a watch that isn't open before another version of its type is
// published than info.
type parked struct {
	info    string
	request *cachev3.DeltaRequest
	sub     cachev3.Subscription
	out     chan cachev3.DeltaResponse
	// cancel is of the watch that has been opened since.
	cancel func()
}

func newWatches(c cachev3.SnapshotCache) *watches {
	return &watches{SnapshotCache: c, refusals: map[*cachev3.DeltaRequest]refusal{}, parked: map[*parked]bool{}}
}

// refused notes that req, for which a watch is about to be created, refuses names.
func (w *watches) refused(req *cachev3.DeltaRequest, names []string, info string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refusals[req] = refusal{names, info}
}

// CreateDeltaWatch implements cachev3.ConfigWatcher. The stream's goroutine calls
// it, and cancels one watch of a type before it creates the next.
func (w *watches) CreateDeltaWatch(req *cachev3.DeltaRequest, sub cachev3.Subscription, out chan cachev3.DeltaResponse) (func(), error) {
	if len(req.GetInitialResourceVersions()) == 0 {
		for _, name := range req.GetResourceNamesSubscribe() {
			delete(sub.ReturnedResources(), name)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r, refused := w.refusals[req]
	delete(w.refusals, req)
	if !refused {
		return w.SnapshotCache.CreateDeltaWatch(req, sub, out)
	}
	for _, name := range r.names {
		sub.ReturnedResources()[name] = "" // no version is that, so another follows, or a removal
	}
	if r.info != w.version(req.GetTypeUrl()) {
		return w.SnapshotCache.CreateDeltaWatch(req, sub, out)
	}
	p := &parked{info: r.info, request: req, sub: sub, out: out}
	w.parked[p] = true
	return func() { w.cancel(p) }, nil
}

func (w *watches) version(typeURL string) string {
	snap, err := w.GetSnapshot(group)
	if err != nil {
		return ""
	}
	return snap.GetVersion(typeURL)
}

func (w *watches) cancel(p *parked) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.parked, p)
	if p.cancel != nil {
		p.cancel()
	}
}

// publish sets what every Envoy gets, and opens the watches that have waited for
// it.
func (w *watches) publish(ctx context.Context, snap *cachev3.Snapshot) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.SetSnapshot(ctx, group, snap); err != nil {
		return err
	}
	for p := range w.parked {
		if p.info == snap.GetVersion(p.request.GetTypeUrl()) {
			continue
		}
		delete(w.parked, p)
		cancel, err := w.SnapshotCache.CreateDeltaWatch(p.request, p.sub, p.out)
		if err != nil {
			return err
		}
		p.cancel = cancel
	}
	return nil
}
