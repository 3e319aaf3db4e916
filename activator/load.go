package activator

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"
	netstats "knative.dev/networking/pkg/http/stats"
	"knative.dev/serving/pkg/autoscaler/metrics"
)

// load counts one revision's requests on this node, from arrival (so that those
// who wait for a slot count as demand) to answer. What another node has sent is
// counted as proxied: that node counts it too.
type load struct {
	stats *netstats.RequestStats
	// own is how many requests are under way that no other node counts, and sent
	// how many that another does.
	own, sent atomic.Int64
	// poked counts requests that were reported ahead and must not be reported
	// again.
	poked  atomic.Int64
	demand demand
}

func newLoad(now time.Time) *load { return &load{stats: netstats.NewRequestStats(now)} }

// counted is a request that has arrived; end counts it done.
type counted struct {
	*load
	sent bool
}

// begin counts a request that has arrived; sent is whether by another node.
func (l *load) begin(now time.Time, sent bool) counted {
	kind, under := netstats.ReqIn, &l.own
	if sent {
		kind, under = netstats.ProxiedIn, &l.sent
	}
	under.Add(1)
	l.stats.HandleEvent(netstats.ReqEvent{Time: now, Type: kind})
	return counted{l, sent}
}

func (c counted) end() {
	kind, under := netstats.ReqOut, &c.own
	if c.sent {
		kind, under = netstats.ProxiedOut, &c.load.sent
	}
	c.stats.HandleEvent(netstats.ReqEvent{Time: time.Now(), Type: kind})
	under.Add(-1)
}

func (l *load) inFlight() int64 { return l.own.Load() + l.sent.Load() }

// poke returns the stat that wakes the autoscaler: one request, now. It returns
// false if that was said already since the last report, or if every request is
// another node's to tell.
func (l *load) poke(key types.NamespacedName, node string) (metrics.StatMessage, bool) {
	if l.own.Load() == 0 || !l.poked.CompareAndSwap(0, 1) {
		return metrics.StatMessage{}, false
	}
	return metrics.StatMessage{Key: key, Stat: metrics.Stat{
		PodName:                   node,
		AverageConcurrentRequests: 1,
		RequestCount:              1,
	}}, true
}

// report returns what happened since the last report and starts anew. What
// poke has told already is taken off, so that load counts once.
func (l *load) report(now time.Time, key types.NamespacedName, node string) metrics.StatMessage {
	report := l.stats.Report(now)
	poked := float64(l.poked.Swap(0))
	return metrics.StatMessage{Key: key, Stat: metrics.Stat{
		PodName:                          node,
		AverageConcurrentRequests:        max(report.AverageConcurrency-poked, report.AverageProxiedConcurrency),
		AverageProxiedConcurrentRequests: report.AverageProxiedConcurrency,
		RequestCount:                     max(report.RequestCount-poked, report.ProxiedRequestCount),
		ProxiedRequestCount:              report.ProxiedRequestCount,
	}}
}

// demand is since when a revision has been called without a pause of a second.
// It is safe for concurrent use.
type demand struct {
	mu     sync.Mutex
	since  time.Time // zero: it isn't called
	urgent bool      // until it pauses
}

// look notes whether the revision was called in the second before now, and
// returns whether that has gone on for at least after.
func (d *demand) look(now time.Time, called bool, after time.Duration) (lasting bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !called {
		d.since, d.urgent = time.Time{}, false
		return false
	}
	if d.since.IsZero() {
		d.since = now
	}
	return d.urgent || now.Sub(d.since) >= after
}

// hurry makes the demand count as lasting.
func (d *demand) hurry() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.urgent = true
}

// reportEverySecond reports all revisions that this node holds until ctx ends.
func (a *Activator) reportEverySecond(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			stats, stranded := a.stats(now)
			if len(stats) > 0 {
				a.cfg.Report(stats)
			}
			for key, e := range stranded {
				a.wake(key, e)
			}
		}
	}
}

// stats returns a stat for every revision that the node holds: that has a
// target here, or a request. Zeros are reported too: the autoscaler scales down
// on what it is told, never on silence. With them come the revisions for which
// requests wait and nothing runs.
func (a *Activator) stats(now time.Time) ([]metrics.StatMessage, map[types.NamespacedName]*entry) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	var stats []metrics.StatMessage
	stranded := map[types.NamespacedName]*entry{}
	for key, e := range a.revisions {
		stat := e.load.report(now, key, a.cfg.NodeName)
		if e.slots.look(now) {
			stranded[key] = e
		}
		o := e.slots.occupancy()
		called := e.load.inFlight() > 0 || stat.Stat.RequestCount > 0
		if a.withheld(now, key, e, o, called) {
			continue
		}
		if o.targets > 0 || called {
			stats = append(stats, stat)
		}
	}
	return stats, stranded
}

// withheld is whether the autoscaler is not told of the revision's load yet: it
// asks for its Pod late, and has none.
func (a *Activator) withheld(now time.Time, key types.NamespacedName, e *entry, o occupancy, called bool) bool {
	if o.pods > 0 {
		return false
	}
	revision, ok := a.cfg.Revisions.Get(key)
	return !e.load.demand.look(now, called, revision.PodAfter) && ok && revision.PodAfter > 0
}

// Forget drops what is kept of a revision that was deleted. A request that is
// running for it goes on; one that waits for a slot gets none.
func (a *Activator) Forget(revision types.NamespacedName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.revisions, revision)
}
