package build

import (
	"fmt"
	"time"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	"github.com/envoyproxy/go-control-plane/pkg/wellknown"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"knative.dev/networking/pkg/http/header"
	"knative.dev/serving/pkg/activator"
)

// Names of the two listeners, and of the route configuration of each.
const (
	External = "external"
	Internal = "internal"
)

// Listener returns the listener called name on address (host:port), which reads
// its routes by that same name. It depends on nothing else, so that no change
// of a KIngress drains it.
func Listener(name, address string) (*listenerv3.Listener, error) {
	addr, err := TCP(address)
	if err != nil {
		return nil, fmt.Errorf("build listener %s: %w", name, err)
	}
	return &listenerv3.Listener{
		Name:                          name,
		Address:                       addr,
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(bufferLimit),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name:       wellknown.HTTPConnectionManager,
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(connectionManager(name))},
		}}}},
	}, nil
}

func connectionManager(name string) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix: name,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			ConfigSource:    ads(),
			RouteConfigName: name,
		}},
		HttpFilters: []*hcmv3.HttpFilter{{
			Name: wellknown.Router,
			ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(&routerv3.Router{
				// Answers leave as the function gave them.
				SuppressEnvoyHeaders: true,
			})},
		}},
		EarlyHeaderMutationExtensions: []*corev3.TypedExtensionConfig{{
			Name:        "wisp.strip",
			TypedConfig: packed(strip()),
		}},
		ServerHeaderTransformation: hcmv3.HttpConnectionManager_PASS_THROUGH,
		UpgradeConfigs:             []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		// Envoy is the edge: the peer's address goes into X-Forwarded-For, and
		// X-Forwarded-Proto is what the connection is.
		UseRemoteAddress: wrapperspb.Bool(true),
		// No peer is internal, the loopback included: x-envoy-* request headers
		// of clients would set retries and timeouts. An empty list would mean
		// the private networks, so this one holds what can't be a peer.
		InternalAddressConfig: &hcmv3.HttpConnectionManager_InternalAddressConfig{
			CidrRanges: []*corev3.CidrRange{{AddressPrefix: "255.255.255.255", PrefixLen: wrapperspb.UInt32(32)}},
		},
		// Time is the revision's matter; a quiet stream may go on. Only a client
		// that doesn't finish its headers is cut off.
		StreamIdleTimeout:     durationpb.New(0),
		RequestHeadersTimeout: durationpb.New(10 * time.Second),
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			MaxConcurrentStreams:        wrapperspb.UInt32(128),
			InitialStreamWindowSize:     wrapperspb.UInt32(64 << 10),
			InitialConnectionWindowSize: wrapperspb.UInt32(1 << 20),
		},
	}
}

// strip removes what only a gateway or a node may say: whom a request is for,
// and that a node has passed it on.
// See RATIONALE.md "Why does the listener strip identity headers, and not the routes?".
func strip() *earlyv3.HeaderMutation {
	out := &earlyv3.HeaderMutation{}
	for _, name := range []string{
		activator.RevisionHeaderNamespace,
		activator.RevisionHeaderName,
		header.ProxyKey,
	} {
		out.Mutations = append(out.Mutations, &mutationv3.HeaderMutation{
			Action: &mutationv3.HeaderMutation_Remove{Remove: name},
		})
	}
	return out
}
