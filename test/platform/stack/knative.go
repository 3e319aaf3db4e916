package stack

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/platform/cluster"
	"github.com/wisp-serving/wisp/test/platform/supervise"
)

const (
	manifests         = "manifests"
	accounts          = "accounts"
	knativeWebhook    = "knative-webhook"
	knativeController = "knative-controller"
)

// knativeSettings makes Knative use Wisp, on a laptop.
var knativeSettings = cluster.Settings{
	"config-network": {"ingress-class": config.IngressClass},
	"config-autoscaler": {
		"pod-autoscaler-class": config.PodAutoscalerClass,
		// Short, so that one can watch a function go to zero.
		"stable-window": "10s",
	},
	"config-deployment": {
		"runtime-class-name": config.RuntimeClass + ": {}\n",
		// Nobody pulls it: a wasm node does the queue-proxy's work itself.
		"queue-sidecar-image": "queue-proxy.wisp.dev/served-by-the-node:v1",
		// Its default of 25m for each pod would fill the node with nothing.
		"queue-sidecar-cpu-request": "1m",
	},
	// Else the API server warns of four missing fields at every Service.
	"config-features": {"secure-pod-defaults": "enabled"},
	// Names under localhost resolve to loopback without DNS.
	"config-domain": {"localhost": ""},
}

// knative returns the steps that bring the manifests in, and Knative Serving's
// own components.
func (s *Stack) knative() []supervise.Component {
	return []supervise.Component{
		{Name: manifests, After: []string{apiserver}, Prepare: s.apply},
		{Name: accounts, After: []string{manifests}, Prepare: s.tokens.Write},
		s.knativeWebhook(),
		s.knativeController(),
	}
}

func (s *Stack) apply(ctx context.Context) error {
	from := func(module string) string { return filepath.Join(s.cfg.Programs.Manifests, module) }
	objects, err := cluster.Knative(
		cluster.Sources{Serving: from("serving"), Networking: from("networking"), Caching: from("caching")},
		knativeSettings, s.cfg.Ports.Webhook)
	if err != nil {
		return err
	}
	return s.cluster.Apply(ctx, append(objects, s.chart...))
}

func (s *Stack) knativeWebhook() supervise.Component {
	address := s.local(s.cfg.Ports.Webhook)
	return supervise.Component{
		Name:    knativeWebhook,
		After:   []string{accounts},
		Path:    s.cfg.Programs.KnativeWebhook,
		Args:    []string{"--kubeconfig=" + s.accountKubeconfig(knativeAccount), "--disable-ha"},
		Env:     append(knativeEnv("webhook"), "WEBHOOK_NAME=webhook", fmt.Sprintf("WEBHOOK_PORT=%d", s.cfg.Ports.Webhook)),
		Address: "https://" + address,
		Ready:   func(ctx context.Context) error { return s.cluster.WebhookReady(ctx, address) },
		// It waits 45 s for a load balancer to notice. It keeps no state.
		StopTimeout: 100 * time.Millisecond,
	}
}

func (s *Stack) knativeController() supervise.Component {
	address := s.local(s.cfg.Ports.KnativeHealth)
	return supervise.Component{
		Name:  knativeController,
		After: []string{knativeWebhook, controllerManager, registry},
		Prepare: func(ctx context.Context) error {
			return s.cluster.ReleaseLeases(ctx, cluster.KnativeNamespace)
		},
		Path:    s.cfg.Programs.KnativeController,
		Args:    []string{"--kubeconfig=" + s.accountKubeconfig(knativeAccount)},
		Env:     append(knativeEnv("controller"), fmt.Sprintf("HEALTH_PORT=%d", s.cfg.Ports.KnativeHealth)),
		Address: "http://" + address,
		Ready:   httpReady("http://" + address + "/readiness"),
	}
}

// knativeEnv is what the pod's specification would set.
func knativeEnv(pod string) []string {
	return []string{
		"SYSTEM_NAMESPACE=" + cluster.KnativeNamespace,
		"POD_NAME=" + pod,
		"POD_IP=127.0.0.1",
		"CONFIG_LOGGING_NAME=config-logging",
		"CONFIG_OBSERVABILITY_NAME=config-observability",
		// Profiling is off, but its server listens. Any port will do.
		"PROFILING_PORT=0",
	}
}
