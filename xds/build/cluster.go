package build

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"sync"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	commondnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/common/dns/v3"
	dnsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/dns/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/wisp-serving/wisp/xds/translate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const (
	httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	// connectTimeout is short, since nodes are near and a retry on the next
	// one waits for it.
	connectTimeout = 2 * time.Second
	// bufferLimit bounds what Envoy holds of one stream in each direction
	// before it stops reading.
	bufferLimit = 64 << 10
	// unlimited is above what a machine has in sockets. Nodes queue and refuse
	// by what a revision can take; Envoy's defaults of 1,024 would refuse first.
	unlimited = 1 << 20
)

// Cluster returns a backend's cluster.
// See RATIONALE.md "Why does a cluster's name end in a hash?".
//
// Parts of it are also parts of other clusters: it must not be changed.
func Cluster(c translate.Cluster) *clusterv3.Cluster {
	of := alike()
	out := &clusterv3.Cluster{
		AltStatName:                   c.String(),
		LbPolicy:                      clusterv3.Cluster_LEAST_REQUEST,
		ConnectTimeout:                of.connectTimeout,
		PerConnectionBufferLimitBytes: of.bufferLimit,
		CircuitBreakers:               of.circuitBreakers,
		OutlierDetection:              of.outlierDetection,
		TypedExtensionProtocolOptions: of.options[c.Protocol],
	}
	if c.Kind == translate.Self {
		out.OutlierDetection = nil // the gateway itself has nothing to be replaced by
	}
	discover(out, c)
	out.Name = c.String() + "/" + settingsHash(out)
	if out.LoadAssignment != nil {
		out.LoadAssignment.ClusterName = out.Name
	}
	return out
}

// parts are those that clusters have in common. With thousands of clusters, each with
// its own, they would be most of what a gateway holds.
type parts struct {
	connectTimeout   *durationpb.Duration
	bufferLimit      *wrapperspb.UInt32Value
	circuitBreakers  *clusterv3.CircuitBreakers
	outlierDetection *clusterv3.OutlierDetection
	discovered       *clusterv3.Cluster_EdsClusterConfig
	options          map[translate.Protocol]map[string]*anypb.Any
}

var alike = sync.OnceValue(func() parts {
	out := parts{
		connectTimeout:   durationpb.New(connectTimeout),
		bufferLimit:      wrapperspb.UInt32(bufferLimit),
		circuitBreakers:  circuitBreakers(),
		outlierDetection: outlierDetection(),
		discovered:       &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
		options:          map[translate.Protocol]map[string]*anypb.Any{},
	}
	for _, p := range []translate.Protocol{translate.HTTP1, translate.H2C, translate.AsClient} {
		out.options[p] = map[string]*anypb.Any{httpOptions: packed(protocolOptions(p))}
	}
	return out
})

// discover says where the addresses of c come from.
func discover(out *clusterv3.Cluster, c translate.Cluster) {
	if c.Discovered() {
		out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
		out.EdsClusterConfig = alike().discovered
		return
	}
	at, err := TCP(c.Address)
	if err != nil {
		panic(fmt.Sprintf("cluster %s: %v", c, err)) // it was put together from a host and a number
	}
	out.LoadAssignment = &endpointv3.ClusterLoadAssignment{Endpoints: []*endpointv3.LocalityLbEndpoints{{
		LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: at}}}},
	}}}
	if net.ParseIP(at.GetSocketAddress().GetAddress()) != nil {
		out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
		return
	}
	out.ClusterDiscoveryType = &clusterv3.Cluster_ClusterType{ClusterType: &clusterv3.Cluster_CustomClusterType{
		Name: "envoy.clusters.dns",
		TypedConfig: packed(&dnsv3.DnsCluster{
			RespectDnsTtl:   true,
			DnsLookupFamily: commondnsv3.DnsLookupFamily_V4_PREFERRED,
		}),
	}}
}

func settingsHash(c *clusterv3.Cluster) string {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		panic("marshal cluster: " + err.Error()) // only invalid UTF-8 fails; API server names are ASCII
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:4])
}

func protocolOptions(p translate.Protocol) *httpv3.HttpProtocolOptions {
	if p == translate.AsClient {
		return &httpv3.HttpProtocolOptions{
			UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
				UseDownstreamProtocolConfig: &httpv3.HttpProtocolOptions_UseDownstreamHttpConfig{
					HttpProtocolOptions:  &corev3.Http1ProtocolOptions{},
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{AllowConnect: true},
				},
			},
		}
	}
	explicit := &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
			HttpProtocolOptions: &corev3.Http1ProtocolOptions{},
		},
	}
	if p == translate.H2C {
		explicit.ProtocolConfig = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
			// With it a websocket, too, gets to a backend that speaks HTTP/2.
			Http2ProtocolOptions: &corev3.Http2ProtocolOptions{AllowConnect: true},
		}
	}
	return &httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: explicit},
	}
}

func circuitBreakers() *clusterv3.CircuitBreakers {
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections:     wrapperspb.UInt32(unlimited),
		MaxPendingRequests: wrapperspb.UInt32(unlimited),
		MaxRequests:        wrapperspb.UInt32(unlimited),
		MaxRetries:         wrapperspb.UInt32(unlimited),
	}}}
}

// outlierDetection takes a node out that can't be reached. What a function
// answers is its own matter, 503 included, and says nothing about its node.
func outlierDetection() *clusterv3.OutlierDetection {
	return &clusterv3.OutlierDetection{
		SplitExternalLocalOriginErrors:         true,
		ConsecutiveLocalOriginFailure:          wrapperspb.UInt32(3),
		EnforcingConsecutiveLocalOriginFailure: wrapperspb.UInt32(100),
		EnforcingConsecutive_5Xx:               wrapperspb.UInt32(0),
		EnforcingConsecutiveGatewayFailure:     wrapperspb.UInt32(0),
		EnforcingSuccessRate:                   wrapperspb.UInt32(0),
		EnforcingLocalOriginSuccessRate:        wrapperspb.UInt32(0),
		Interval:                               durationpb.New(time.Second),
		BaseEjectionTime:                       durationpb.New(5 * time.Second),
		// A tier of one node must be able to empty, so that the next one serves.
		// Where no tier is left, Envoy asks all of them again.
		MaxEjectionPercent: wrapperspb.UInt32(100),
	}
}
