package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/platform/supervise"
)

const (
	node       = "wisp-node"
	gateway    = "wisp-gateway"
	autoscaler = "wisp-autoscaler"
	envoy      = "envoy"
	nodeName   = "wisp-0"
)

// nodeDrain is how long the node waits for running requests as the platform
// stops.
const nodeDrain = 2 * time.Second

// wisp writes the settings of Wisp's roles and returns them and Envoy.
func (s *Stack) wisp() ([]supervise.Component, error) {
	var err error
	if s.socket, err = s.state.socketDir("xds.sock"); err != nil {
		return nil, err
	}
	node, gateway, autoscaler := s.nodeConfig(), s.gatewayConfig(), s.autoscalerConfig()
	for _, role := range []struct {
		name     string
		settings any
	}{{"node", node}, {"gateway", gateway}, {"autoscaler", autoscaler}} {
		text, err := yaml.Marshal(role.settings)
		if err != nil {
			return nil, fmt.Errorf("write settings of %s: %w", role.name, err)
		}
		if err := os.WriteFile(s.state.settings(role.name), text, 0o600); err != nil {
			return nil, fmt.Errorf("write settings of %s: %w", role.name, err)
		}
	}
	return []supervise.Component{
		s.role("autoscaler", autoscaler.HealthAddress),
		s.role("gateway", gateway.HealthAddress),
		s.envoy(),
		s.role("node", node.HealthAddress),
	}, nil
}

func (s *Stack) nodeConfig() config.Node {
	c := config.DefaultNode()
	c.Log.Format = "console"
	c.Name = nodeName
	c.Address = s.cfg.NodeAddress
	c.HealthAddress = s.local(s.cfg.Ports.NodeHealth)
	c.Cluster.Kubeconfig = s.state.kubeconfig("kubelet")
	c.Reader.Kubeconfig = s.accountKubeconfig(nodeAccount)
	c.DataDir = s.state.data("node")
	c.Autoscaler = "ws://" + s.local(s.cfg.Ports.AutoscalerStats)
	c.DrainTimeout = metav1.Duration{Duration: nodeDrain}
	return c
}

func (s *Stack) gatewayConfig() config.Gateway {
	c := config.DefaultGateway()
	c.Log.Format = "console"
	c.Cluster.Kubeconfig = s.accountKubeconfig(gatewayAccount)
	c.HealthAddress = s.local(s.cfg.Ports.GatewayHealth)
	c.XDSSocket = filepath.Join(s.socket, "xds.sock")
	c.Envoy.HTTPAddress = s.local(s.cfg.Ports.Gateway)
	c.Envoy.InternalAddress = s.local(s.cfg.Ports.GatewayInternal)
	c.Envoy.AdminAddress = s.local(s.cfg.Ports.EnvoyAdmin)
	return c
}

func (s *Stack) autoscalerConfig() config.Autoscaler {
	c := config.DefaultAutoscaler()
	c.Log.Format = "console"
	c.Cluster.Kubeconfig = s.accountKubeconfig(autoscalerAccount)
	c.HealthAddress = s.local(s.cfg.Ports.AutoscalerHealth)
	c.StatAddress = s.local(s.cfg.Ports.AutoscalerStats)
	return c
}

// role returns one of Wisp's roles. They come after Knative's webhook, which
// has a say in the statuses that they write, and after the registry, from which
// the node pulls.
func (s *Stack) role(name, health string) supervise.Component {
	return supervise.Component{
		Name:  "wisp-" + name,
		After: []string{knativeWebhook},
		Path:  s.state.Bin("wisp"),
		Args:  []string{name, "--config", s.state.settings(name)},
		// With the race detector, a process would end only a second after it has.
		Env:     []string{"GORACE=atexit_sleep_ms=0"},
		Address: "http://" + health,
		Ready:   httpReady("http://" + health + "/readyz"),
	}
}

func (s *Stack) envoy() supervise.Component {
	bootstrap := s.state.settings("envoy")
	return supervise.Component{
		Name:    envoy,
		After:   []string{gateway},
		Prepare: func(ctx context.Context) error { return s.writeBootstrap(ctx, bootstrap) },
		Path:    s.cfg.Programs.Envoy,
		// Two workers leave a laptop's other cores to the functions.
		Args:    []string{"-c", bootstrap, "--concurrency", "2", "--disable-hot-restart", "--log-level", "info"},
		Address: s.cfg.Gateway(),
		Ready:   httpReady("http://" + s.local(s.cfg.Ports.EnvoyAdmin) + "/ready"),
		// Nothing is behind it any more once the platform stops.
		StopTimeout: 2 * time.Second,
	}
}

func (s *Stack) writeBootstrap(ctx context.Context, path string) error {
	out, err := exec.CommandContext(ctx, s.state.Bin("wisp"), "gateway", "bootstrap", "--config", s.state.settings("gateway")).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w\n%s", err, exit.Stderr)
		}
		return fmt.Errorf("make Envoy's bootstrap: %w", err)
	}
	return os.WriteFile(path, out, 0o600)
}
