package activator

import (
	"context"
	"time"

	"knative.dev/serving/pkg/autoscaler/metrics"
)

// startAgainAfter is how long after a start that failed another request may
// try the next one. A broken function must not cost a start per request.
const startAgainAfter = time.Second

// activate asks for the revision twice: of the autoscaler, by a stat sent at
// once, and of this node, by an early start. It returns without waiting; the
// started function becomes a target, and whoever waits for a slot gets it.
//
// One call at a time does so per revision; the others join it by waiting.
func (a *Activator) activate(revision Revision, e *entry) {
	if !e.starting.CompareAndSwap(false, true) {
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
		a.start(ctx, revision)
	}()
	// The start is on the request's path and the stat isn't: in this order,
	// the start runs while the stat is marshalled.
	a.cfg.Report([]metrics.StatMessage{e.load.poke(revision.NamespacedName, a.cfg.NodeName)})
}

func (a *Activator) start(ctx context.Context, revision Revision) {
	began := time.Now()
	err := a.cfg.StartEarly(ctx, revision)
	if err == nil {
		a.cfg.Log.Infow("function started ahead of its pod", "key", revision.String(), "took", time.Since(began))
		return
	}
	if ctx.Err() != nil {
		return
	}
	a.cfg.Log.Infow("the request waits for a pod: no early start", "key", revision.String(), "error", err)
	select {
	case <-time.After(startAgainAfter):
	case <-ctx.Done():
	}
}

// admitStarts lets early starts begin; they run under ctx.
func (a *Activator) admitStarts(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running = ctx
}

// beginStart counts a start that is about to run, unless Run has ended.
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
