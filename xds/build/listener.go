package build

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/envoyproxy/go-control-plane/pkg/wellknown"
	"github.com/wisp-serving/wisp/xds/translate"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/networking/pkg/http/header"
	"knative.dev/serving/pkg/activator"
)

// Listener returns the listener of a door on address (host:port). It is named
// after the door, as its routes are, and depends on settings alone, so that no
// change of a KIngress drains it.
func Listener(door translate.Door, address string, filters []*listenerv3.Filter) (*listenerv3.Listener, error) {
	addr, err := TCP(address)
	if err != nil {
		return nil, fmt.Errorf("build listener %s: %w", door, err)
	}
	return &listenerv3.Listener{
		Name:                          string(door),
		Address:                       addr,
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(bufferLimit),
		FilterChains:                  []*listenerv3.FilterChain{{Filters: filters}},
	}, nil
}

// SecureListener returns the listener of a door for TLS on address, with the given
// filter chains. Envoy changes filter chains in place: one that comes or goes drains no
// connection of another, and a Secret that is renewed changes none.
func SecureListener(door translate.Door, address string, filters []*listenerv3.Filter, chains []*listenerv3.FilterChain) (*listenerv3.Listener, error) {
	out, err := Listener(door, address, filters)
	if err != nil {
		return nil, err
	}
	out.ListenerFilters = []*listenerv3.ListenerFilter{{
		Name:       wellknown.TLSInspector,
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: packed(&inspectorv3.TlsInspector{})},
	}}
	// The first chain matches nobody. With it the listener is there before any
	// certificate, and a port that is taken is found when the gateway starts.
	out.FilterChains[0].Name = nobody
	out.FilterChains[0].FilterChainMatch = &listenerv3.FilterChainMatch{ServerNames: []string{nobody}}
	out.FilterChains = append(out.FilterChains, chains...)
	return out, nil
}

// nobody is a name that no KIngress can have as a host (RFC 6761).
const nobody = "nobody.invalid"

// Chain returns the filter chain of a certificate.
func Chain(c translate.Certificate, filters []*listenerv3.Filter) *listenerv3.FilterChain {
	sum := sha256.Sum256([]byte(strings.Join(c.Hosts, " ")))
	return &listenerv3.FilterChain{
		Name:             SecretName(c.Secret) + "/" + hex.EncodeToString(sum[:4]),
		FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: c.Hosts},
		Filters:          filters,
		TransportSocket: &corev3.TransportSocket{
			Name: wellknown.TransportSocketTLS,
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed(&tlsv3.DownstreamTlsContext{
				CommonTlsContext: &tlsv3.CommonTlsContext{
					AlpnProtocols: []string{"h2", "http/1.1"},
					TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{
						Name:      SecretName(c.Secret),
						SdsConfig: ads(),
					}},
				},
			})},
		},
	}
}

// SecretName returns the name of a Secret's resource.
func SecretName(key types.NamespacedName) string { return key.String() }

// Secret returns a certificate chain and its key, both PEM.
func Secret(key types.NamespacedName, certificate, private []byte) *tlsv3.Secret {
	inline := func(b []byte) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
	}
	return &tlsv3.Secret{
		Name: SecretName(key),
		Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(certificate),
			PrivateKey:       inline(private),
		}},
	}
}

// Filters returns what a door's listener does with connections. It may be shared
// by filter chains.
func Filters(door translate.Door, accessLog bool) []*listenerv3.Filter {
	manager := connectionManager(string(door))
	if accessLog {
		manager.AccessLog = []*accesslogv3.AccessLog{stdout(string(door))}
	}
	return []*listenerv3.Filter{{
		Name:       wellknown.HTTPConnectionManager,
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(manager)},
	}}
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
		StreamIdleTimeout: durationpb.New(0),
		// What one request may have in headers. Both are refused with 431.
		MaxRequestHeadersKb: wrapperspb.UInt32(64),
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			MaxHeadersCount: wrapperspb.UInt32(200),
			IdleTimeout:     durationpb.New(time.Hour),
		},
		RequestHeadersTimeout: durationpb.New(10 * time.Second),
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			AllowConnect:                true, // websockets over HTTP/2
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
