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
	// NodeAddress is the loopback address of the wisp node, which needs its
	// ports 8012 and 10250.
	NodeAddress string `json:"nodeAddress"`
	// WithoutWisp leaves Wisp's roles and Envoy out.
	WithoutWisp bool `json:"withoutWisp,omitempty"`
	// Programs are the paths of everything that is not of this checkout.
	Programs tools.Programs `json:"programs"`
	// Wisp and Platform are the checkout's own programs. They are copied into
	// the state folder: a later build doesn't change what runs.
	Wisp     string `json:"wisp,omitempty"`
	Platform string `json:"platform"`
}

// The ports that a wisp node listens on at its own address: Knative's port of a
// pod's proxy, and the kubelet API.
const (
	functionPort = 8012
	kubeletPort  = 10250
)

// DefaultNodeAddress is the node's address on the user's platform.
const DefaultNodeAddress = "127.0.1.1"

// FreeNodeAddress returns a loopback address whose ports nobody uses.
func FreeNodeAddress() (string, error) { return ports.FreeHost(functionPort, kubeletPort) }

// Validate returns every broken rule, joined.
func (c Config) Validate() error {
	var errs []error
	if c.State.Dir == "" || !filepath.IsAbs(c.State.Dir) {
		errs = append(errs, fmt.Errorf("state = %q, must be an absolute path", c.State.Dir))
	}
	addr, err := netip.ParseAddr(c.NodeAddress)
	if err != nil || !addr.IsLoopback() {
		errs = append(errs, fmt.Errorf("node-address = %q, must be a loopback address", c.NodeAddress))
	}
	return errors.Join(errs...)
}

// CheckPorts returns an error for each address that something else listens on.
func (c Config) CheckPorts() error {
	errs := []error{c.Ports.Check()}
	if !c.WithoutWisp {
		for _, p := range []int{functionPort, kubeletPort} {
			if err := ports.CheckFree(c.NodeAddress, p); err != nil {
				errs = append(errs, fmt.Errorf("%w: give the node another address with --node-address 127.X.Y.Z", err))
			}
		}
	}
	return errors.Join(errs...)
}

// Gateway is the URL at which Envoy takes requests for external hosts.
func (c Config) Gateway() string { return "http://" + ports.Address(ports.Loopback, c.Ports.Gateway) }

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
