// Package ports says which TCP ports a platform uses, and checks before
// anything starts that they are free.
package ports

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"syscall"
)

// Loopback is the address that everything but the wisp nodes listens on.
const Loopback = "127.0.0.1"

// Ports are the ports of one platform. All but NodeHealth are on [Loopback].
type Ports struct {
	Etcd              int `json:"etcd"`
	EtcdPeer          int `json:"etcd-peer"`
	APIServer         int `json:"apiserver"`
	ControllerManager int `json:"controller-manager"`
	Scheduler         int `json:"scheduler"`
	Registry          int `json:"registry"`
	// Webhook is Knative's webhook, KnativeHealth its controller's probe port.
	Webhook       int `json:"webhook"`
	KnativeHealth int `json:"knative-health"`
	// Gateway takes requests for external hosts, GatewayTLS the same by HTTPS,
	// GatewayInternal those for cluster-local ones.
	Gateway         int `json:"gateway"`
	GatewayTLS      int `json:"gateway-tls"`
	GatewayInternal int `json:"gateway-internal"`
	EnvoyAdmin      int `json:"envoy-admin"`
	GatewayHealth   int `json:"gateway-health"`
	// NodeHealth is at each node's own address.
	NodeHealth       int `json:"node-health"`
	AutoscalerHealth int `json:"autoscaler-health"`
	AutoscalerStats  int `json:"autoscaler-stats"`
}

// Default returns the ports of the user's platform. Where a component has a
// well-known port, it is that; the webhook leaves 8443 to a gateway's HTTPS.
func Default() Ports {
	return Ports{
		Etcd: 2379, EtcdPeer: 2380, APIServer: 6443,
		ControllerManager: 10257, Scheduler: 10259, Registry: 5000,
		Webhook: 9443, KnativeHealth: 9442,
		Gateway: 8080, GatewayTLS: 8443, GatewayInternal: 8081, EnvoyAdmin: 9901,
		GatewayHealth: 9450, NodeHealth: 9440,
		AutoscalerHealth: 9461, AutoscalerStats: 9460,
	}
}

// Setting is one port by the name of its setting.
type Setting struct {
	Name   string
	Number *int
}

// Settings returns every port, to be read or set.
func (p *Ports) Settings() []Setting {
	return []Setting{
		{"etcd", &p.Etcd},
		{"etcd-peer", &p.EtcdPeer},
		{"apiserver", &p.APIServer},
		{"controller-manager", &p.ControllerManager},
		{"scheduler", &p.Scheduler},
		{"registry", &p.Registry},
		{"webhook", &p.Webhook},
		{"knative-health", &p.KnativeHealth},
		{"gateway", &p.Gateway},
		{"gateway-tls", &p.GatewayTLS},
		{"gateway-internal", &p.GatewayInternal},
		{"envoy-admin", &p.EnvoyAdmin},
		{"gateway-health", &p.GatewayHealth},
		{"node-health", &p.NodeHealth},
		{"autoscaler-health", &p.AutoscalerHealth},
		{"autoscaler-stats", &p.AutoscalerStats},
	}
}

// Set changes one port by the name of its setting.
func (p *Ports) Set(name string, number int) error {
	for _, s := range p.Settings() {
		if s.Name != name {
			continue
		}
		if number < 1 || number > 65535 {
			return fmt.Errorf("port %s = %d, must be in [1; 65535]", name, number)
		}
		*s.Number = number
		return nil
	}
	return fmt.Errorf("port %s: there is no such setting", name)
}

// Check returns an error for each port that two settings share or that is
// taken, joined.
func (p Ports) Check() error {
	var errs []error
	settings := map[int]string{}
	for _, s := range p.Settings() {
		if other, twice := settings[*s.Number]; twice {
			errs = append(errs, fmt.Errorf("port %s = %d, must be another than that of %s", s.Name, *s.Number, other))
			continue
		}
		settings[*s.Number] = s.Name
		if s.Number == &p.NodeHealth {
			continue // needed elsewhere
		}
		if err := CheckFree(Loopback, *s.Number); err != nil {
			errs = append(errs, fmt.Errorf("%w: give another with --port %s=NUMBER", err, s.Name))
		}
	}
	return errors.Join(errs...)
}

// CheckFree returns an error that names the port if it can't be listened on.
func CheckFree(host string, port int) error {
	l, err := net.Listen("tcp", Address(host, port))
	switch {
	case err == nil:
		return l.Close()
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("port %d on %s is taken by %s", port, host, holder(host, port))
	default:
		return fmt.Errorf("port %d on %s can't be used: %w", port, host, err)
	}
}

// Address joins host and port.
func Address(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// The range that free ports are taken from lies below the one from which Linux
// takes the ports of outgoing connections (32768 on), so that none of these
// takes a port between its choice and its use.
const firstFree, lastFree = 20000, 32000

// Free returns ports that nothing listens on now.
func Free() (Ports, error) {
	var p Ports
	taken := map[int]bool{}
	for _, s := range p.Settings() {
		n, err := freePort(taken)
		if err != nil {
			return p, err
		}
		taken[n] = true
		*s.Number = n
	}
	return p, nil
}

func freePort(taken map[int]bool) (int, error) {
	for range 1000 {
		n := firstFree + rand.IntN(lastFree-firstFree)
		if !taken[n] && CheckFree(Loopback, n) == nil {
			return n, nil
		}
	}
	return 0, fmt.Errorf("find a free port in [%d; %d]: 1000 tries found none", firstFree, lastFree)
}

// FreeHost returns an address of 127.0.0.0/8 on which all the given ports are
// free. Nodes need one each, since a function's port is the same on all.
func FreeHost(needed ...int) (string, error) {
	for range 100 {
		host := net.IPv4(127, byte(1+rand.IntN(254)), byte(rand.IntN(256)), byte(1+rand.IntN(254))).String()
		free := true
		for _, n := range needed {
			free = free && CheckFree(host, n) == nil
		}
		if free {
			return host, nil
		}
	}
	return "", errors.New("find a free loopback address: 100 tries found none")
}
