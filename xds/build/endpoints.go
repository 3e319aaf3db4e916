package build

import (
	"sync"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/wisp-serving/wisp/xds/translate"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// overprovisioning, in percent, keeps traffic on a tier for as long as 1 % of it
// is healthy. Envoy's 140 would spill to the next tier, and start functions
// there, when a third of the nodes are out.
const overprovisioning = 10_000

// policy is the same of all.
var policy = sync.OnceValue(func() *endpointv3.ClusterLoadAssignment_Policy {
	return &endpointv3.ClusterLoadAssignment_Policy{OverprovisioningFactor: wrapperspb.UInt32(overprovisioning)}
})

// Endpoints returns the endpoints of the named cluster. The index of a tier is
// its priority. A part of it is also one of others: it must not be changed.
func Endpoints(cluster string, tiers [][]translate.Endpoint) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{
		ClusterName: cluster,
		Policy:      policy(),
	}
	for priority, tier := range tiers {
		locality := &endpointv3.LocalityLbEndpoints{Priority: uint32(priority)}
		for _, e := range tier {
			locality.LbEndpoints = append(locality.LbEndpoints, &endpointv3.LbEndpoint{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
					Address: tcp(e.IP, e.Port),
				}},
				LoadBalancingWeight: wrapperspb.UInt32(e.Weight),
			})
		}
		out.Endpoints = append(out.Endpoints, locality)
	}
	return out
}
