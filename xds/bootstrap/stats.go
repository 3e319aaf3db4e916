package bootstrap

import (
	"maps"
	"slices"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/envoyproxy/go-control-plane/pkg/wellknown"
	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds/build"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// adminCluster is the cluster of Envoy's own admin interface.
	adminCluster = "admin"
	// statsView and adminView are the listeners that pass on what everybody may read
	// of it, and all of it.
	statsView = "stats"
	adminView = "admin-address"
)

// Listeners returns those of a supervised Envoy's bootstrap: their names, and the
// host:port of each.
func Listeners(e config.Envoy) map[string]string {
	out := map[string]string{adminView: e.AdminAddress}
	if e.StatsAddress != "" {
		out[statsView] = e.StatsAddress
	}
	return out
}

// addViews adds listeners that pass on something of the admin interface, which is at
// admin.
func addViews(to *bootstrapv3.Bootstrap_StaticResources, views map[string]string, admin *corev3.Address) error {
	if len(views) == 0 {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(views)) {
		routes := []*routev3.Route{get("/ready"), get("/stats/prometheus")}
		if name == adminView {
			routes = []*routev3.Route{everything()}
		}
		l, err := view(name, views[name], routes)
		if err != nil {
			return err
		}
		to.Listeners = append(to.Listeners, l)
	}
	to.Clusters = append(to.Clusters, &clusterv3.Cluster{
		Name:                 adminCluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		ConnectTimeout:       durationpb.New(time.Second),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: adminCluster,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: admin}},
			}}}},
		},
	})
	return nil
}

// view returns a listener on address (host:port) with the given routes.
func view(name, address string, routes []*routev3.Route) (*listenerv3.Listener, error) {
	at, err := build.TCP(address)
	if err != nil {
		return nil, err
	}
	router, err := anypb.New(&routerv3.Router{})
	if err != nil {
		return nil, err
	}
	manager, err := anypb.New(&hcmv3.HttpConnectionManager{
		StatPrefix: name,
		HttpFilters: []*hcmv3.HttpFilter{{
			Name: wellknown.Router, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: router},
		}},
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			VirtualHosts: []*routev3.VirtualHost{{Name: name, Domains: []string{"*"}, Routes: routes}},
		}},
	})
	if err != nil {
		return nil, err
	}
	return &listenerv3.Listener{
		Name: name, Address: at,
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: wellknown.HTTPConnectionManager, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: manager},
		}}}},
	}, nil
}

// everything returns a route to all of the admin interface.
func everything() *routev3.Route {
	return &routev3.Route{
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: adminCluster},
			Timeout:          durationpb.New(0), // a profile takes as long as is asked for
		}},
	}
}

// get returns a route to the admin interface for one path.
func get(path string) *routev3.Route {
	return &routev3.Route{
		Match: &routev3.RouteMatch{
			PathSpecifier: &routev3.RouteMatch_Path{Path: path},
			Headers: []*routev3.HeaderMatcher{{
				Name: ":method",
				HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
					MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "GET"},
				}},
			}},
		},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: adminCluster},
		}},
	}
}
