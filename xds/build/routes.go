package build

import (
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	previousprioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/wisp-serving/wisp/xds/translate"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"knative.dev/networking/pkg/http/header"
)

// Routes returns the route configuration of a door with virtual hosts as Encode
// returns them. They are fields that the message doesn't know, which it writes as
// they are: Envoy reads a message like any other, and a change of one virtual host
// costs no encoding of the others.
func Routes(door translate.Door, vhosts [][]byte) *routev3.RouteConfiguration {
	out := &routev3.RouteConfiguration{
		Name: string(door),
		// host and host:port are one host.
		IgnorePortInHostMatching: true,
		// Envoy's own; X-Forwarded-For says the same.
		RequestHeadersToRemove: []string{"x-envoy-external-address"},
	}
	if len(vhosts) > 0 {
		out.ProtoReflect().SetUnknown(slices.Concat(vhosts...))
	}
	return out
}

// virtualHosts is the number of that field of a RouteConfiguration.
const virtualHosts = 2

// Encode checks vh by the rules in its proto file, and returns it as a field of a
// route configuration.
func Encode(vh *routev3.VirtualHost) ([]byte, error) {
	if err := vh.ValidateAll(); err != nil {
		return nil, fmt.Errorf("virtual host %s: %w", vh.GetName(), err)
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(vh)
	if err != nil {
		return nil, fmt.Errorf("virtual host %s: %w", vh.GetName(), err)
	}
	out := make([]byte, 0, protowire.SizeTag(virtualHosts)+protowire.SizeBytes(len(raw))) // it is kept
	return protowire.AppendBytes(protowire.AppendTag(out, virtualHosts, protowire.BytesType), raw), nil
}

// VirtualHost returns vh, which leads to the clusters that Cluster returns, or to
// the port at which clients reach the gateway by HTTPS.
func VirtualHost(vh translate.VirtualHost, httpsPort uint32) *routev3.VirtualHost {
	out := &routev3.VirtualHost{Name: vh.Name, Domains: vh.Hosts, RetryPolicy: retryPolicy()}
	known := names{}
	for _, r := range vh.Routes {
		if r.Redirect {
			out.Routes = append(out.Routes, redirect(r, httpsPort))
		} else {
			out.Routes = append(out.Routes, route(r, known))
		}
	}
	return out
}

// names are those of clusters, which cost a hash of their settings each: thousands
// of routes may lead to one.
type names map[translate.Cluster]string

func (n names) of(c translate.Cluster) string {
	name, ok := n[c]
	if !ok {
		name = Cluster(c).GetName()
		n[c] = name
	}
	return name
}

func match(r translate.Route) *routev3.RouteMatch {
	m := &routev3.RouteMatch{
		PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: r.Path},
		Headers:       matchers(r.Match),
	}
	if r.Exact {
		m.PathSpecifier = &routev3.RouteMatch_Path{Path: r.Path}
	}
	if r.Method != "" {
		m.Headers = append(m.Headers, matchers([]translate.Header{{Name: ":method", Value: r.Method}})...)
	}
	return m
}

// usualPort is where clients look for HTTPS when a URL has no port.
const usualPort = 443

func redirect(r translate.Route, httpsPort uint32) *routev3.Route {
	to := &routev3.RedirectAction{SchemeRewriteSpecifier: &routev3.RedirectAction_HttpsRedirect{HttpsRedirect: true}}
	if httpsPort != usualPort {
		to.PortRedirect = httpsPort
	}
	return &routev3.Route{Match: match(r), Action: &routev3.Route_Redirect{Redirect: to}}
}

func route(r translate.Route, known names) *routev3.Route {
	action := &routev3.RouteAction{Timeout: durationpb.New(0)}
	if r.RewriteHost != "" {
		action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: r.RewriteHost}
	}
	out := &routev3.Route{Match: match(r), Action: &routev3.Route_Route{Route: action}}
	if r.Hash != "" {
		out.ResponseHeadersToAdd = set([]translate.Header{{Name: header.HashKey, Value: r.Hash}})
	}
	if len(r.Splits) == 1 {
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: known.of(r.Splits[0].Cluster)}
		out.RequestHeadersToAdd = set(r.Splits[0].Set)
		return out
	}
	weighted := &routev3.WeightedCluster{}
	for _, s := range r.Splits {
		weighted.Clusters = append(weighted.Clusters, &routev3.WeightedCluster_ClusterWeight{
			Name:                known.of(s.Cluster),
			Weight:              wrapperspb.UInt32(s.Weight),
			RequestHeadersToAdd: set(s.Set),
		})
	}
	action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}
	return out
}

func matchers(headers []translate.Header) []*routev3.HeaderMatcher {
	var out []*routev3.HeaderMatcher
	for _, h := range headers {
		m := &routev3.HeaderMatcher{
			Name:                 h.Name,
			HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true},
		}
		if h.Value != "" {
			m.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
				MatchPattern: &matcherv3.StringMatcher_Exact{Exact: h.Value},
			}}
		}
		out = append(out, m)
	}
	return out
}

func set(headers []translate.Header) []*corev3.HeaderValueOption {
	var out []*corev3.HeaderValueOption
	for _, h := range headers {
		out = append(out, &corev3.HeaderValueOption{
			// See RATIONALE.md "Why are percent signs doubled?".
			Header:         &corev3.HeaderValue{Key: h.Name, Value: strings.ReplaceAll(h.Value, "%", "%%")},
			AppendAction:   corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			KeepEmptyValue: true,
		})
	}
	return out
}

// retryPolicy retries what never reached a function, on another node, and never
// an answer. See RATIONALE.md "Why is anything retried at all?".
func retryPolicy() *routev3.RetryPolicy {
	return &routev3.RetryPolicy{
		RetryOn:    "connect-failure,refused-stream,reset-before-request",
		NumRetries: wrapperspb.UInt32(translate.Spares),
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: packed(&previoushostsv3.PreviousHostsPredicate{})},
		}},
		HostSelectionRetryMaxAttempts: 3,
		// Without it a tier whose only node is dead would be asked again.
		RetryPriority: &routev3.RetryPolicy_RetryPriority{
			Name:       "envoy.retry_priorities.previous_priorities",
			ConfigType: &routev3.RetryPolicy_RetryPriority_TypedConfig{TypedConfig: packed(&previousprioritiesv3.PreviousPrioritiesConfig{UpdateFrequency: 1})},
		},
	}
}
