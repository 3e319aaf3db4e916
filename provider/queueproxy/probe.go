package queueproxy

import (
	"io"
	"net/http"
	"strings"

	netheader "knative.dev/networking/pkg/http/header"
	"knative.dev/serving/pkg/queue"
)

// isProbe is whether r asks for the pod's health instead of its function: a
// kubelet's probe, one of Knative's activator or autoscaler, or the gateway's. None
// reaches the function, none counts.
func isProbe(r *http.Request) bool {
	return netheader.GetKnativeProbeValue(r) != "" || asksForHealth(r.UserAgent())
}

// answerProbe answers a probe (serving pkg/queue/health/handler.go, pkg
// network/handlers/drain.go).
func (c *chain) answerProbe(w http.ResponseWriter, r *http.Request) {
	switch value := netheader.GetKnativeProbeValue(r); {
	case c.drain.began():
		http.Error(w, "shutting down", http.StatusServiceUnavailable)
	case value == netheader.ProbeValue:
		answerGateway(w, r)
	case value == queue.Name:
		c.answerHealth(w, r)
	default:
		http.Error(w, "unexpected probe header value: "+value, http.StatusBadRequest)
	}
}

// asksForHealth is whether a client of this name sends nothing but probes.
func asksForHealth(userAgent string) bool {
	return strings.HasPrefix(userAgent, netheader.KubeProbeUAPrefix) ||
		strings.HasPrefix(userAgent, netheader.ActivatorUserAgent) ||
		strings.HasPrefix(userAgent, netheader.AutoscalingUserAgent)
}

// answerGateway proves to a gateway that its configuration leads here.
func answerGateway(w http.ResponseWriter, r *http.Request) {
	hash := r.Header.Get(netheader.HashKey)
	if hash == "" {
		http.Error(w, "the probe has no "+netheader.HashKey+" header", http.StatusBadRequest)
		return
	}
	w.Header().Set(netheader.HashKey, hash)
	w.WriteHeader(http.StatusOK)
}

func (c *chain) answerHealth(w http.ResponseWriter, r *http.Request) {
	if c.cfg.Ready != nil {
		if err := c.cfg.Ready(r.Context()); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
	}
	_, _ = io.WriteString(w, queue.Name)
}
