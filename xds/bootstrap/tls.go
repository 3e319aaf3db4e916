package bootstrap

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/envoyproxy/go-control-plane/pkg/wellknown"
	"github.com/wisp-serving/wisp/config"
	"google.golang.org/protobuf/types/known/anypb"
)

// The files of Envoy's secrets, which are also the secrets' names.
const (
	ownSecret       = "xds-own.yaml"
	authoritySecret = "xds-authority.yaml"
)

// Secrets returns, as YAML by file name, where Envoy finds its certificate and the
// authority that it takes gateways from. Envoy reads these again when their folder
// changes, but only if each is named in a file of its own, and not in the bootstrap.
func Secrets(cfg config.Gateway) (map[string][]byte, error) {
	certificate, key, authority := cfg.XDS.Files()
	file := func(path string) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
	}
	watched := &corev3.WatchedDirectory{Path: cfg.XDS.Certificates}
	out := map[string][]byte{}
	for _, s := range []*tlsv3.Secret{
		{Name: ownSecret, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: file(certificate), PrivateKey: file(key), WatchedDirectory: watched,
		}}},
		{Name: authoritySecret, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: file(authority), WatchedDirectory: watched,
		}}},
	} {
		packed, err := anypb.New(s)
		if err != nil {
			return nil, fmt.Errorf("render Envoy's secrets: %w", err)
		}
		if out[s.GetName()], err = asYAML(&discoveryv3.DiscoveryResponse{Resources: []*anypb.Any{packed}}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// mutualTLS returns how Envoy speaks with the gateway of a host: it shows its
// certificate and takes one for that host alone.
func mutualTLS(host, dir string) (*corev3.TransportSocket, error) {
	if !filepath.IsAbs(dir) {
		return nil, errors.New("xds.server is set: Envoy needs the names of its secrets in a folder with an absolute path")
	}
	secret := func(name string) *tlsv3.SdsSecretConfig {
		return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{
			ResourceApiVersion: corev3.ApiVersion_V3,
			ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{
				PathConfigSource: &corev3.PathConfigSource{Path: filepath.Join(dir, name)},
			},
		}}
	}
	named := &tlsv3.SubjectAltNameMatcher{
		SanType: tlsv3.SubjectAltNameMatcher_DNS,
		Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: host}},
	}
	sni := host
	if net.ParseIP(host) != nil {
		named.SanType, sni = tlsv3.SubjectAltNameMatcher_IP_ADDRESS, ""
	}
	packed, err := anypb.New(&tlsv3.UpstreamTlsContext{
		Sni: sni,
		CommonTlsContext: &tlsv3.CommonTlsContext{
			AlpnProtocols:                  []string{"h2"},
			TlsParams:                      &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3, TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3},
			TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{secret(ownSecret)},
			ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
				CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
					DefaultValidationContext:         &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{named}},
					ValidationContextSdsSecretConfig: secret(authoritySecret),
				},
			},
		},
	})
	if err != nil {
		return nil, err
	}
	return &corev3.TransportSocket{Name: wellknown.TransportSocketTLS, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed}}, nil
}
