package activator

import (
	"context"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"
	netstats "knative.dev/networking/pkg/http/stats"
	"knative.dev/serving/pkg/autoscaler/metrics"
)

// load counts one revision's requests on this node, from arrival (so that those
// who wait for a slot count as demand) to answer.
type load struct {
	stats    *netstats.RequestStats
	inFlight atomic.Int64
	// poked counts requests that were reported ahead and must not be reported
	// again.
	poked atomic.Int64
}

func newLoad(now time.Time) *load { return &load{stats: netstats.NewRequestStats(now)} }

// begin counts a request that has arrived; the result's end counts it done.
func (l *load) begin(now time.Time) *load {
	l.inFlight.Add(1)
	l.stats.HandleEvent(netstats.ReqEvent{Time: now, Type: netstats.ReqIn})
	return l
}

func (l *load) end() {
	l.stats.HandleEvent(netstats.ReqEvent{Time: time.Now(), Type: netstats.ReqOut})
	l.inFlight.Add(-1)
}

// poke returns the stat that wakes the autoscaler: one request, now.
func (l *load) poke(key types.NamespacedName, node string) metrics.StatMessage {
	l.poked.Add(1)
	return metrics.StatMessage{Key: key, Stat: metrics.Stat{
		PodName:                   node,
		AverageConcurrentRequests: 1,
		RequestCount:              1,
	}}
}

// report returns what happened since the last report and starts anew. What
// poke has told already is taken off, so that load counts once.
func (l *load) report(now time.Time, key types.NamespacedName, node string) metrics.StatMessage {
	report := l.stats.Report(now)
	poked := float64(l.poked.Swap(0))
	return metrics.StatMessage{Key: key, Stat: metrics.Stat{
		PodName:                   node,
		AverageConcurrentRequests: max(report.AverageConcurrency-poked, 0),
		RequestCount:              max(report.RequestCount-poked, 0),
	}}
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
			if stats := a.stats(now); len(stats) > 0 {
				a.cfg.Report(stats)
			}
		}
	}
}

// stats returns a stat for every revision that the node holds: that has a
// target here, or a request. Zeros are reported too: the autoscaler scales down
// on what it is told, never on silence.
func (a *Activator) stats(now time.Time) []metrics.StatMessage {
	a.mu.RLock()
	defer a.mu.RUnlock()
	var stats []metrics.StatMessage
	for key, e := range a.revisions {
		stat := e.load.report(now, key, a.cfg.NodeName)
		targets, _ := e.slots.occupancy()
		if targets > 0 || e.load.inFlight.Load() > 0 || stat.Stat.RequestCount > 0 {
			stats = append(stats, stat)
		}
	}
	return stats
}

// Forget drops what is kept of a revision that was deleted. A request that is
// running for it goes on; one that waits for a slot gets none.
func (a *Activator) Forget(revision types.NamespacedName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.revisions, revision)
}
