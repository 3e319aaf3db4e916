package queueproxy

import (
	"net/http"
	"sync"
	"time"

	netheader "knative.dev/networking/pkg/http/header"
	netstats "knative.dev/networking/pkg/http/stats"
	"knative.dev/serving/pkg/autoscaler/metrics"
)

// reportingPeriod is how long a count lasts, as in queue-proxy.
const reportingPeriod = time.Second

// counts counts a pod's requests for an autoscaler that scrapes.
type counts struct {
	stats *netstats.RequestStats
	began time.Time

	mu       sync.Mutex
	reported time.Time
	report   netstats.RequestStatsReport // per second
}

func (c *counts) init(now time.Time) {
	c.stats, c.began, c.reported = netstats.NewRequestStats(now), now, now
}

func (c *counts) event(now time.Time, kind netstats.ReqEventType) {
	c.stats.HandleEvent(netstats.ReqEvent{Time: now, Type: kind})
}

// at returns what happened per second in the last whole period. It is made when
// it is asked for, so that a pod nobody scrapes costs nothing, and kept for a
// period, so that two who scrape see the same.
func (c *counts) at(now time.Time) netstats.RequestStatsReport {
	c.mu.Lock()
	defer c.mu.Unlock()
	if elapsed := now.Sub(c.reported); elapsed >= reportingPeriod {
		c.report = c.stats.Report(now)
		c.report.RequestCount /= elapsed.Seconds()
		c.report.ProxiedRequestCount /= elapsed.Seconds()
		c.reported = now
	}
	return c.report
}

// Stat returns the pod's load as Knative's autoscaler reads it.
func (p *Proxy) Stat(now time.Time) metrics.Stat {
	report := p.counts.at(now)
	return metrics.Stat{
		PodName:                          p.as.Load().cfg.Pod,
		ProcessUptime:                    now.Sub(p.counts.began).Seconds(),
		RequestCount:                     report.RequestCount,
		ProxiedRequestCount:              report.ProxiedRequestCount,
		AverageConcurrentRequests:        report.AverageConcurrency,
		AverageProxiedConcurrentRequests: report.AverageProxiedConcurrency,
	}
}

// serveStat answers a scrape by Knative's autoscaler (serving
// pkg/queue/protobuf_stats_reporter.go).
func (p *Proxy) serveStat(w http.ResponseWriter, _ *http.Request) {
	stat := p.Stat(time.Now())
	b, err := stat.Marshal()
	if err != nil {
		http.Error(w, "marshal the stat: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", netheader.ProtobufMIMEType)
	_, _ = w.Write(b)
}
