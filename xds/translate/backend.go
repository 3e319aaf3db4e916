package translate

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Protocol is what a backend speaks.
type Protocol string

// The protocols of a backend.
const (
	HTTP1 Protocol = "http1"
	H2C   Protocol = "h2c"
	// AsClient is what the client of each request speaks.
	AsClient Protocol = "as-client"
	// Encrypted is whatever is inside TLS, which no cluster speaks.
	Encrypted Protocol = "tls"
)

// Kind says where a cluster's addresses come from.
type Kind string

// The kinds of a cluster.
const (
	// Revision is a revision of Wisp: its ready pods, and spare nodes.
	Revision Kind = "revision"
	// Service is any other Service: its EndpointSlices.
	Service Kind = "service"
	// Name is a host outside: DNS.
	Name Kind = "name"
	// Self is the gateway's own cluster-local listener.
	Self Kind = "self"
)

// Cluster is one destination. It is comparable: two routes with equal Clusters
// share one.
type Cluster struct {
	Kind Kind `json:"kind"`
	// Namespace and Service are the backend Service's, and empty for Self. A
	// revision has its Service's name.
	Namespace string `json:"namespace,omitempty"`
	Service   string `json:"service,omitempty"`
	// Port is the name of the port in a Service's EndpointSlices. It may be
	// empty, where the Service has one port.
	Port string `json:"port,omitempty"`
	// Address is the host:port of a Name or of Self.
	Address  string   `json:"address,omitempty"`
	Protocol Protocol `json:"protocol"`
}

// Key returns the key of the Service.
func (c Cluster) Key() types.NamespacedName {
	return types.NamespacedName{Namespace: c.Namespace, Name: c.Service}
}

// Discovered reports whether the cluster's addresses are published apart from
// it, as Endpoints.
func (c Cluster) Discovered() bool { return c.Kind == Revision || c.Kind == Service }

// String returns what tells c apart for its reader.
func (c Cluster) String() string {
	switch c.Kind {
	case Self:
		return "self"
	case Service:
		return c.Key().String() + ":" + c.Port
	default:
		return c.Key().String()
	}
}

func compareClusters(a, b Cluster) int {
	return cmp.Or(
		compareKeys(a.Key(), b.Key()),
		cmp.Compare(a.Port, b.Port),
		cmp.Compare(a.Address, b.Address),
		cmp.Compare(a.Kind, b.Kind),
		cmp.Compare(a.Protocol, b.Protocol),
	)
}

// Backend is what is known of a Service that KIngresses lead to.
type Backend struct {
	// Revision is what it speaks as a revision of Wisp, or empty where it is
	// none. Of a revision nothing else is known.
	Revision Protocol `json:"revision,omitempty"`
	// ExternalName is the host that a Service of that type stands for.
	ExternalName string `json:"externalName,omitempty"`
	// Ports are the Service's.
	Ports []Port `json:"ports,omitempty"`
}

// Port is a port of a Service.
type Port struct {
	Name     string   `json:"name,omitempty"`
	Number   int32    `json:"number"`
	Protocol Protocol `json:"protocol"`
}

// Gateway is what a translation needs to know of the gateway itself.
type Gateway struct {
	// InternalDomain is the name that Services of type ExternalName use for the
	// cluster-local listener, and InternalAddress is where Envoy reaches it.
	InternalDomain  string
	InternalAddress string
	// ExternalNames allows Services of type ExternalName to other hosts.
	ExternalNames bool
	// TLS says that there is a listener for it, and InternalTLS the same for
	// cluster-local hosts.
	TLS, InternalTLS bool
	// SharedHost is the host on which KIngresses of SharedNamespaces, * for all, may
	// have places; empty means that there is none.
	SharedHost       string
	SharedNamespaces []string
}

// cluster returns the destination of one port of a Service. Its error is a *Refusal
// where there is the port, and it can't be served.
func (g Gateway) cluster(service types.NamespacedName, b Backend, port intstr.IntOrString) (Cluster, error) {
	c := Cluster{Namespace: service.Namespace, Service: service.Name}
	if b.Revision != "" { // nodes serve all that their revisions speak at one port
		c.Kind, c.Protocol = Revision, b.Revision
		return c, nil
	}
	if b.ExternalName != "" {
		return g.named(c, b, port)
	}
	p, ok := find(b.Ports, port)
	if !ok {
		return c, fmt.Errorf("backend service %s has no port %s", service.Name, port.String())
	}
	if p.Protocol == Encrypted {
		return c, encrypted(service.Name, port)
	}
	c.Kind, c.Port, c.Protocol = Service, p.Name, p.Protocol
	return c, nil
}

func find(ports []Port, want intstr.IntOrString) (Port, bool) {
	for _, p := range ports {
		if want.Type == intstr.Int && p.Number == want.IntVal || want.Type == intstr.String && p.Name == want.StrVal {
			return p, true
		}
	}
	return Port{}, false
}

// named returns the destination of a Service of type ExternalName. The port is
// that of the KIngress; the Service need not list it.
func (g Gateway) named(c Cluster, b Backend, port intstr.IntOrString) (Cluster, error) {
	host := strings.ToLower(strings.TrimSuffix(b.ExternalName, "."))
	if host == g.InternalDomain {
		// See RATIONALE.md "Why does a DomainMapping go through Envoy twice?".
		return Cluster{Kind: Self, Address: g.InternalAddress, Protocol: AsClient}, nil
	}
	if !g.ExternalNames {
		return c, fmt.Errorf("backend service %s is of type ExternalName, and %s is not this gateway: set externalNames to true to lead there", c.Service, host)
	}
	if !outside(host) {
		return c, fmt.Errorf("backend service %s is of type ExternalName, and %s is Envoy's own machine", c.Service, host)
	}
	p, ok := find(b.Ports, port)
	if !ok && port.Type == intstr.Int {
		p, ok = Port{Number: port.IntVal, Protocol: HTTP1}, true
	}
	if !ok {
		return c, fmt.Errorf("backend service %s has no port %s", c.Service, port.String())
	}
	if p.Protocol == Encrypted {
		return c, encrypted(c.Service, port)
	}
	c.Kind, c.Address, c.Protocol = Name, net.JoinHostPort(host, strconv.Itoa(int(p.Number))), p.Protocol
	return c, nil
}

func encrypted(service string, port intstr.IntOrString) *Refusal {
	return refuse(ReasonNotSupported, "backend service %s speaks TLS at its port %s, which this gateway speaks to no backend; Knative leads there with system-internal-tls in config-network", service, port.String())
}

// outside reports whether host isn't plainly a way to what listens for Envoy's
// machine alone, such as Envoy's admin interface or a cloud's metadata.
func outside(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return err != nil || !addr.IsLoopback() && !addr.IsLinkLocalUnicast() && !addr.IsUnspecified()
}
