// Package stack wires a platform together: which components there are, with
// which settings and identities, in which order; and it starts one as a daemon
// or inside a test.
//
// What runs a process is supervise's, what a cluster holds is cluster's, and
// where programs come from is tools'. The daemon and the tests run the same
// [Stack].
package stack

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/platform/ports"
	"github.com/wisp-serving/wisp/test/platform/tools"
)

// Config says what a platform consists of. It is kept in the state folder, from
// where the daemon reads it.
type Config struct {
	// Root is the checkout's root folder, for charts/wisp.
	Root string `json:"root"`
	// State is the folder of everything that the platform writes.
	State State `json:"state"`
	// Ports are those on 127.0.0.1.
	Ports ports.Ports `json:"ports"`
	// NodeAddresses are the addresses of the wisp nodes, a node for each: wisp-0,
	// wisp-1 and so on. A node needs ports 8012, 10250 and that of its health
	// checks there.
	NodeAddresses []string `json:"nodeAddresses"`
	// WithoutWisp leaves Wisp's roles and Envoy out.
	WithoutWisp bool `json:"withoutWisp,omitempty"`
	// Race builds wisp with the race detector.
	Race bool `json:"race,omitempty"`
	// Audit is the folder in which the API server notes what Wisp's roles ask of it,
	// for package audit; empty if nobody wants to know.
	Audit string `json:"audit,omitempty"`
	// Settings change those that the platform gives the roles. They are not kept.
	Settings Settings `json:"-"`
	// Programs are the paths of everything that is not of this checkout.
	Programs tools.Programs `json:"programs"`
	// Wisp and Platform are the checkout's own programs. They are copied into
	// the state folder: a later build doesn't change what runs.
	Wisp     string `json:"wisp,omitempty"`
	Platform string `json:"platform"`
}

// Settings change what the platform sets itself. Each may be nil.
type Settings struct {
	Gateway    func(*config.Gateway)
	Autoscaler func(*config.Autoscaler)
	// Node is called for each node.
	Node func(*config.Node)
	// APIServer and ControllerManager are further flags of Kubernetes', as in --v=4.
	APIServer, ControllerManager []string
}

// None reports whether nothing is changed.
func (s Settings) None() bool {
	return s.Gateway == nil && s.Autoscaler == nil && s.Node == nil && s.APIServer == nil && s.ControllerManager == nil
}

// The ports that a wisp node listens on at its own address: Knative's port of a
// pod's proxy, and the kubelet API.
const (
	functionPort = 8012
	kubeletPort  = 10250
)

// DefaultNodeAddress is the first node's address on the user's platform.
const DefaultNodeAddress = "127.0.1.1"

// NodeName is the name of the i-th node, counted from 0.
func NodeName(i int) string { return fmt.Sprintf("wisp-%d", i) }

// NodeAddresses returns n addresses that count up from first.
func NodeAddresses(first string, n int) ([]string, error) {
	addr, err := netip.ParseAddr(first)
	if err != nil {
		return nil, fmt.Errorf("node-address = %q, must be an IP address", first)
	}
	var all []string
	for range n {
		all = append(all, addr.String())
		addr = addr.Next()
	}
	return all, nil
}

// FreeNodeAddresses returns n loopback addresses whose ports nobody uses, given
// the platform's other ports.
func FreeNodeAddresses(p ports.Ports, n int) ([]string, error) {
	var all []string
	for range n {
		host, err := ports.FreeHost(nodePorts(p)...)
		if err != nil {
			return nil, err
		}
		all = append(all, host)
	}
	return all, nil
}

// nodePorts are the ports that each node needs at its own address.
func nodePorts(p ports.Ports) []int { return []int{functionPort, kubeletPort, p.NodeHealth} }

// Validate returns every broken rule, joined.
func (c Config) Validate() error {
	var errs []error
	if c.State.Dir == "" || !filepath.IsAbs(c.State.Dir) {
		errs = append(errs, fmt.Errorf("state = %q, must be an absolute path", c.State.Dir))
	}
	if len(c.NodeAddresses) == 0 && !c.WithoutWisp {
		errs = append(errs, errors.New("nodes = 0, must be at least 1"))
	}
	seen := map[string]bool{}
	for _, a := range c.NodeAddresses {
		addr, err := netip.ParseAddr(a)
		if err != nil || !addr.IsLoopback() {
			errs = append(errs, fmt.Errorf("node-address = %q, must be a loopback address", a))
		}
		if seen[a] {
			errs = append(errs, fmt.Errorf("node-address = %q, must be another for each node", a))
		}
		seen[a] = true
	}
	return errors.Join(errs...)
}

// CheckPorts returns an error for each address that something else listens on.
func (c Config) CheckPorts() error {
	errs := []error{c.Ports.Check()}
	if c.WithoutWisp {
		return errors.Join(errs...)
	}
	for _, address := range c.NodeAddresses {
		for _, p := range nodePorts(c.Ports) {
			if err := ports.CheckFree(address, p); err != nil {
				errs = append(errs, fmt.Errorf("%w: give the nodes other addresses with --node-address 127.X.Y.Z", err))
			}
		}
	}
	return errors.Join(errs...)
}

// Gateway is the URL at which Envoy takes requests for external hosts.
func (c Config) Gateway() string { return "http://" + ports.Address(ports.Loopback, c.Ports.Gateway) }

// SecureGateway is the URL at which Envoy takes the same by TLS.
func (c Config) SecureGateway() string {
	return "https://" + ports.Address(ports.Loopback, c.Ports.GatewayTLS)
}

// InternalGateway is the URL at which Envoy takes requests for cluster-local
// hosts.
func (c Config) InternalGateway() string {
	return "http://" + ports.Address(ports.Loopback, c.Ports.GatewayInternal)
}

// Registry is the registry's host and port, as in an image reference. The name
// localhost tells clients to speak plain HTTP.
func (c Config) Registry() string { return ports.Address("localhost", c.Ports.Registry) }

// Save writes the configuration to its state folder.
func (c Config) Save() error {
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("save the platform's configuration: %w", err)
	}
	if err := os.WriteFile(c.State.config(), text, 0o600); err != nil {
		return fmt.Errorf("save the platform's configuration: %w", err)
	}
	return nil
}

// Load reads the configuration from a state folder.
func Load(state State) (Config, error) {
	var c Config
	text, err := os.ReadFile(state.config())
	if err != nil {
		return c, fmt.Errorf("load the platform's configuration: %w", err)
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return c, fmt.Errorf("load the platform's configuration %s: %w", state.config(), err)
	}
	return c, nil
}
