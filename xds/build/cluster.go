package build

import (
	"crypto/sha256"
	"encoding/hex"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
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

// Cluster returns a revision's cluster.
// See RATIONALE.md "Why does a cluster's name end in a hash?".
func Cluster(c translate.Cluster) *clusterv3.Cluster {
	out := &clusterv3.Cluster{
		AltStatName:                   c.Key().String(),
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:              &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
		LbPolicy:                      clusterv3.Cluster_LEAST_REQUEST,
		ConnectTimeout:                durationpb.New(connectTimeout),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(bufferLimit),
		CircuitBreakers:               circuitBreakers(),
		OutlierDetection:              outlierDetection(),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpOptions: packed(protocolOptions(c.Protocol))},
	}
	out.Name = c.Key().String() + "/" + settingsHash(out)
	return out
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
	explicit := &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
			HttpProtocolOptions: &corev3.Http1ProtocolOptions{},
		},
	}
	if p == translate.H2C {
		explicit.ProtocolConfig = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
			Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
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
		MaxEjectionPercent: wrapperspb.UInt32(100),
	}
}
