package translate

import (
	"cmp"
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
)

// Addresses returns where a Service's port is served, by the Service's
// EndpointSlices: at all endpoints that are ready or, with none of them, at those
// that end and still serve, as kube-proxy has it. Of a dual-stack Service it is
// the IPv4 addresses, since they are the same pods.
func Addresses(all []discoveryv1.EndpointSlice, port string) []Endpoint {
	var ready, ending []Endpoint
	family := discoveryv1.AddressTypeIPv6
	if slices.ContainsFunc(all, func(s discoveryv1.EndpointSlice) bool { return s.AddressType == discoveryv1.AddressTypeIPv4 }) {
		family = discoveryv1.AddressTypeIPv4
	}
	for _, s := range all {
		number, ok := portOf(s, port)
		if !ok || s.AddressType != family {
			continue
		}
		for _, e := range s.Endpoints {
			at, ok := address(e, number)
			switch {
			case !ok:
			case isOr(e.Conditions.Ready, true):
				ready = append(ready, at)
			case isOr(e.Conditions.Terminating, false) && isOr(e.Conditions.Serving, false):
				ending = append(ending, at)
			}
		}
	}
	if len(ready) == 0 {
		ready = ending
	}
	// An endpoint may be in two slices while it moves from one to the other.
	slices.SortFunc(ready, func(a, b Endpoint) int { return cmp.Or(cmp.Compare(a.IP, b.IP), cmp.Compare(a.Port, b.Port)) })
	return slices.Compact(ready)
}

func portOf(s discoveryv1.EndpointSlice, name string) (uint32, bool) {
	for _, p := range s.Ports {
		if p.Port != nil && (p.Name == nil && name == "" || p.Name != nil && *p.Name == name) && *p.Port > 0 && *p.Port < 1<<16 {
			return uint32(*p.Port), true
		}
	}
	return 0, false
}

// address returns e's first address, which stands for all of them. What is no IP
// address is none: Envoy would refuse it, and with it those of other backends.
func address(e discoveryv1.Endpoint, port uint32) (Endpoint, bool) {
	if len(e.Addresses) == 0 {
		return Endpoint{}, false
	}
	if _, err := netip.ParseAddr(e.Addresses[0]); err != nil {
		return Endpoint{}, false
	}
	return Endpoint{IP: e.Addresses[0], Port: port, Weight: 1}, true
}

func isOr(b *bool, otherwise bool) bool {
	if b == nil {
		return otherwise
	}
	return *b
}
