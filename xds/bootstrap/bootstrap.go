// Package bootstrap renders the file that Envoy starts from: who it is, where it
// reads everything else, and what it must never exceed. Listeners, routes,
// clusters and endpoints come over xDS and are none of its business.
package bootstrap

import (
	"fmt"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds/build"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"sigs.k8s.io/yaml"
)

const (
	// node is the id and the cluster of every Envoy of a gateway: all get the
	// same configuration.
	node = "wisp-gateway"
	// xdsCluster is the cluster of the control plane.
	xdsCluster = "xds"
	// maxConnections bounds clients' connections, far above what one Envoy
	// serves well and far below what exhausts memory.
	maxConnections = 50_000
)

// Render returns the bootstrap of an Envoy of this gateway as YAML, for
// `envoy -c`. Equal settings give equal bytes. Where Envoy reaches its gateway by
// TCP, dir is the absolute path of a folder with what Secrets returns.
func Render(cfg config.Gateway, dir string) ([]byte, error) { return render(cfg, dir, "") }

// Supervised is Render for an Envoy that may run beside another one of this gateway,
// and whose admin interface is therefore a Unix socket of its own. At the address of
// the settings either of them answers.
func Supervised(cfg config.Gateway, socket string) ([]byte, error) { return render(cfg, "", socket) }

func render(cfg config.Gateway, dir, socket string) ([]byte, error) {
	b, err := bootstrap(cfg, dir, socket)
	if err != nil {
		return nil, fmt.Errorf("render bootstrap: %w", err)
	}
	if err := b.ValidateAll(); err != nil {
		return nil, fmt.Errorf("render bootstrap: %w", err)
	}
	return asYAML(b)
}

func asYAML(m proto.Message) ([]byte, error) {
	raw, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("render bootstrap: %w", err)
	}
	// By way of YAML, since protojson varies its white space on purpose.
	return yaml.JSONToYAML(raw)
}

func bootstrap(cfg config.Gateway, dir, socket string) (*bootstrapv3.Bootstrap, error) {
	admin, err := build.TCP(cfg.Envoy.AdminAddress)
	if err != nil {
		return nil, err
	}
	views := Listeners(cfg.Envoy)
	if socket == "" {
		delete(views, adminView)
	} else {
		admin = &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: socket, Mode: 0o600}}}
	}
	control, err := controlPlane(cfg, dir)
	if err != nil {
		return nil, err
	}
	static := &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{control}}
	if err := addViews(static, views, admin); err != nil {
		return nil, err
	}
	overload, err := overload(cfg.Envoy.Heap.Value())
	if err != nil {
		return nil, err
	}
	return &bootstrapv3.Bootstrap{
		Node:  &corev3.Node{Id: node, Cluster: node},
		Admin: &bootstrapv3.Admin{Address: admin},
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			LdsConfig: ads(),
			CdsConfig: ads(),
			AdsConfig: &corev3.ApiConfigSource{
				ApiType:                   corev3.ApiConfigSource_DELTA_GRPC,
				TransportApiVersion:       corev3.ApiVersion_V3,
				SetNodeOnFirstMessageOnly: true,
				GrpcServices: []*corev3.GrpcService{{
					TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
						ClusterName: xdsCluster,
						// A restarted gateway is found again at once: the socket is
						// local, and there is one of it. Elsewhere another one may
						// answer.
						RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
							BaseInterval: durationpb.New(100 * time.Millisecond),
							MaxInterval:  durationpb.New(time.Second),
						}},
					}},
				}},
			},
		},
		StaticResources: static,
		OverloadManager: overload,
	}, nil
}

func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

// controlPlane returns the cluster of the gateway: its socket, or its address.
func controlPlane(cfg config.Gateway, dir string) (*clusterv3.Cluster, error) {
	options, err := anypb.New(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
						// A gateway that hangs is dialled anew.
						ConnectionKeepalive: &corev3.KeepaliveSettings{
							Interval: durationpb.New(10 * time.Second),
							Timeout:  durationpb.New(5 * time.Second),
						},
					},
				},
			},
		},
	})
	if err != nil {
		return nil, err
	}
	out := &clusterv3.Cluster{
		Name:                          xdsCluster,
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:                durationpb.New(time.Second),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(1 << 20),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options,
		},
	}
	address := &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: cfg.XDSSocket}}}
	if cfg.XDS.Server != "" {
		// A name may be of several gateways, and of others tomorrow.
		out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
		if address, err = build.TCP(cfg.XDS.Server); err != nil {
			return nil, err
		}
		if out.TransportSocket, err = mutualTLS(address.GetSocketAddress().GetAddress(), dir); err != nil {
			return nil, err
		}
	}
	out.LoadAssignment = &endpointv3.ClusterLoadAssignment{
		ClusterName: xdsCluster,
		Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}},
		}}}},
	}
	return out, nil
}
