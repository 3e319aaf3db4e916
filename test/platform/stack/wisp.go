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
	"github.com/wisp-serving/wisp/test/platform/cluster"
	"github.com/wisp-serving/wisp/test/platform/ports"
	"github.com/wisp-serving/wisp/test/platform/supervise"
)

const (
	gateway    = "wisp-gateway"
	autoscaler = "wisp-autoscaler"
	envoy      = "envoy"
)

// nodeComponent is the component that is the i-th node, counted from 0.
func nodeComponent(i int) string {
	if i == 0 {
		return "wisp-node"
	}
	return fmt.Sprintf("wisp-node-%d", i)
}

// nodeDrain is how long the node waits for running requests as the platform
// stops.
const nodeDrain = 2 * time.Second

// wisp writes the settings of Wisp's roles and returns them and Envoy.
func (s *Stack) wisp() ([]supervise.Component, error) {
	var err error
	if s.socket, err = s.state.socketDir("xds.sock"); err != nil {
		return nil, err
	}
	var components []supervise.Component
	add := func(component, role, health string, settings any) error {
		text, err := yaml.Marshal(settings)
		if err == nil {
			err = os.WriteFile(s.state.Settings(component), text, 0o600)
		}
		if err != nil {
			return fmt.Errorf("write settings of %s: %w", component, err)
		}
		components = append(components, s.role(component, role, health))
		return nil
	}
	// What the chart's ConfigMaps say is what ships; the rest is where this
	// platform's processes are.
	n, g, a := config.DefaultNode(), config.DefaultGateway(), config.DefaultAutoscaler()
	err = errors.Join(
		cluster.ReadSettings(s.chart, "wisp-node", "node.yaml", &n),
		cluster.ReadSettings(s.chart, "wisp-gateway", "gateway.yaml", &g),
		cluster.ReadSettings(s.chart, "wisp-autoscaler", "autoscaler.yaml", &a),
	)
	if err != nil {
		return nil, err
	}
	s.placeGateway(&g)
	s.placeAutoscaler(&a)
	err = errors.Join(add(autoscaler, "autoscaler", a.HealthAddress, a), add(gateway, "gateway", g.HealthAddress, g))
	components = append(components, s.envoy())
	for i, address := range s.cfg.NodeAddresses {
		c := n
		s.placeNode(&c, i, address)
		err = errors.Join(err, add(nodeComponent(i), "node", c.HealthAddress, c))
	}
	return components, err
}

// chartValues are those of the platform, where processes are the workloads.
func chartValues() map[string]any {
	capacity := config.DefaultNode().Capacity
	return map[string]any{
		"workloads": false,
		"knative":   map[string]any{"mode": "default", "namespace": cluster.KnativeNamespace},
		"node": map[string]any{"capacity": map[string]any{
			"cpu": capacity.CPU.String(), "memory": capacity.Memory.String(), "pods": capacity.Pods.String(),
		}},
	}
}

func (s *Stack) placeNode(c *config.Node, i int, address string) {
	c.Log.Format = "console"
	c.Name = NodeName(i)
	c.Address = address
	c.HealthAddress = ports.Address(address, s.cfg.Ports.NodeHealth)
	c.Cluster.Kubeconfig = s.state.kubeconfig(nodeComponent(i))
	c.Reader.Kubeconfig = s.accountKubeconfig(nodeAccount)
	c.DataDir = s.state.data(nodeComponent(i))
	c.Autoscalers = []string{"ws://" + s.local(s.cfg.Ports.AutoscalerStats)}
	c.DrainTimeout = metav1.Duration{Duration: nodeDrain}
	c.Kubelet.ClientCA = filepath.Join(s.state.pki(), "ca.crt")
	if change := s.cfg.Settings.Node; change != nil {
		change(c)
	}
}

func (s *Stack) placeGateway(c *config.Gateway) {
	c.Log.Format = "console"
	c.Cluster.Kubeconfig = s.accountKubeconfig(gatewayAccount)
	c.HealthAddress = s.local(s.cfg.Ports.GatewayHealth)
	c.XDSSocket = filepath.Join(s.socket, "xds.sock")
	c.Envoy.HTTPAddress = s.local(s.cfg.Ports.Gateway)
	c.Envoy.HTTPSAddress = s.local(s.cfg.Ports.GatewayTLS)
	c.Envoy.HTTPSPort = uint16(s.cfg.Ports.GatewayTLS)
	c.Envoy.InternalAddress = s.local(s.cfg.Ports.GatewayInternal)
	c.Envoy.AdminAddress = s.local(s.cfg.Ports.EnvoyAdmin)
	if change := s.cfg.Settings.Gateway; change != nil {
		change(c)
	}
}

func (s *Stack) placeAutoscaler(c *config.Autoscaler) {
	c.Log.Format = "console"
	c.Cluster.Kubeconfig = s.accountKubeconfig(autoscalerAccount)
	c.HealthAddress = s.local(s.cfg.Ports.AutoscalerHealth)
	c.StatAddress = s.local(s.cfg.Ports.AutoscalerStats)
	if change := s.cfg.Settings.Autoscaler; change != nil {
		change(c)
	}
}

// role returns one of Wisp's roles. They come after Knative's webhook, which
// has a say in the statuses that they write, and after the registry, from which
// the node pulls.
func (s *Stack) role(component, role, health string) supervise.Component {
	return supervise.Component{
		Name:    component,
		After:   []string{knativeWebhook},
		Prepare: s.state.awaitRelease(component),
		Path:    s.state.Bin("wisp"),
		Args:    []string{role, "--config", s.state.Settings(component)},
		// With the race detector, a process would end only a second after it has.
		Env:     []string{"GORACE=atexit_sleep_ms=0"},
		Address: "http://" + health,
		Ready:   httpReady("http://" + health + "/readyz"),
	}
}

func (s *Stack) envoy() supervise.Component {
	bootstrap := s.state.Settings("envoy")
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
	out, err := exec.CommandContext(ctx, s.state.Bin("wisp"), "gateway", "bootstrap", "--config", s.state.Settings(gateway)).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w\n%s", err, exit.Stderr)
		}
		return fmt.Errorf("make Envoy's bootstrap: %w", err)
	}
	return os.WriteFile(path, out, 0o600)
}
