package activator

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/autoscaler/metrics"
)

// pokeAfter is how long after a start has begun the autoscaler is told of it.
//
// See RATIONALE.md "Why does a cold request both start the function and tell the
// autoscaler?"
const pokeAfter = 5 * time.Millisecond

// startAgainAfter is how long after a start that failed the next one may be
// tried. A broken function must not cost a start per request.
const startAgainAfter = time.Second

// reasonCordoned is what a request waits for on a node that starts nothing.
const reasonCordoned = "this node is cordoned: it starts nothing ahead of its pod"

// mayStart is whether functions start here ahead of their Pods.
func (a *Activator) mayStart() bool { return !a.draining.Load() && a.cfg.MayStart() }

// activate asks for the revision twice: of this node, by an early start, and of the
// autoscaler, by a stat sent ahead of the next report. It returns without waiting;
// the started function becomes a target, and whoever waits for a slot gets it.
//
// One call at a time does so per revision; the others join it by waiting.
func (a *Activator) activate(revision Revision, e *entry) {
	if !e.starting.CompareAndSwap(false, true) {
		return
	}
	if !a.mayStart() {
		e.because(reasonCordoned)
		e.starting.Store(false)
		a.poke(revision, e)
		return
	}
	ctx, ok := a.beginStart()
	if !ok {
		e.starting.Store(false)
		return
	}
	go func() {
		defer a.starts.Done()
		defer e.starting.Store(false)
		a.start(ctx, revision, e)
	}()
	if revision.PodAfter == 0 {
		a.pokeSoon(revision, e)
	}
}

func (a *Activator) start(ctx context.Context, revision Revision, e *entry) {
	err := a.cfg.StartEarly(ctx, revision)
	if err == nil {
		e.reason.Store(nil)
		return
	}
	if ctx.Err() != nil {
		return
	}
	if e.because(err.Error()) {
		a.cfg.Log.Infow("the request waits for a pod: no early start", "key", revision.String(), "error", err)
	}
	if revision.PodAfter > 0 {
		e.load.demand.hurry() // somebody waits for the Pod
		a.poke(revision, e)
	}
	pass(ctx, startAgainAfter)
}

// pass lets d pass, and reports whether ctx has gone on as long.
func pass(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// because keeps why a start failed and reports whether that is news.
func (e *entry) because(reason string) bool {
	before := e.reason.Swap(&reason)
	return before == nil || *before != reason
}

// poke tells the autoscaler of a request for which nothing runs, once until the
// next report. What another node has sent, that node tells.
func (a *Activator) poke(revision Revision, e *entry) {
	if stat, ok := e.load.poke(revision.NamespacedName, a.cfg.NodeName); ok {
		a.cfg.Report([]metrics.StatMessage{stat})
	}
}

// pokeSoon is poke after pokeAfter. What is told then was counted now: the request
// may be over.
func (a *Activator) pokeSoon(revision Revision, e *entry) {
	stat, ok := e.load.poke(revision.NamespacedName, a.cfg.NodeName)
	if !ok {
		return
	}
	ctx, ok := a.beginStart()
	if !ok {
		return
	}
	go func() {
		defer a.starts.Done()
		if pass(ctx, pokeAfter) {
			a.cfg.Report([]metrics.StatMessage{stat})
		}
	}()
}

// wake activates a revision for which requests wait that no target is left for.
func (a *Activator) wake(key types.NamespacedName, e *entry) {
	if revision, ok := a.cfg.Revisions.Get(key); ok {
		a.activate(revision, e)
	}
}

// admitStarts lets early starts begin; they run under ctx.
func (a *Activator) admitStarts(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running = ctx
}

// beginStart counts a start, or what is told of one, that is about to run, unless Run
// has ended.
func (a *Activator) beginStart() (context.Context, bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.running == nil {
		return nil, false
	}
	a.starts.Add(1)
	return a.running, true
}

// joinStarts lets no more start begin and waits for those that run.
func (a *Activator) joinStarts() {
	a.mu.Lock()
	a.running = nil
	a.mu.Unlock()
	a.starts.Wait()
}
