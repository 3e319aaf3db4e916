package snapshot

import (
	"maps"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/google/go-cmp/cmp"
)

// short describes a State as "routes|clusters|endpoints", each as name@version.
func short(s State) string {
	list := func(set Set) string {
		var out []string
		for _, name := range slices.Sorted(maps.Keys(set)) {
			out = append(out, name+"@"+set[name].Version)
		}
		return strings.Join(out, " ")
	}
	return list(s.Routes) + "|" + list(s.Clusters) + "|" + list(s.Endpoints)
}

// long is short's reverse.
func long(text string) State {
	parts := strings.Split(text, "|")
	set := func(text string) Set {
		s := Set{}
		for _, f := range strings.Fields(text) {
			name, version, _ := strings.Cut(f, "@")
			s[name] = Resource{Name: name, Version: version}
		}
		return s
	}
	return State{Routes: set(parts[0]), Clusters: set(parts[1]), Endpoints: set(parts[2])}
}

var typeURLs = map[string]string{
	"clusters":  resourcev3.ClusterType,
	"endpoints": resourcev3.EndpointType,
	"routes":    resourcev3.RouteType,
}

func TestNext(t *testing.T) {
	tests := []struct {
		name              string
		published, target string
		// acked are the types that Envoys have acknowledged as asked, held those
		// of which they still hold what comes anew.
		acked, held string
		want        string
		step        Step
	}{{
		name:      "a new cluster joins before any route leads to it",
		published: "r@1|a@1|a@1", target: "r@2|b@1|b@1",
		want: "r@1|a@1 b@1|a@1 b@1", step: Publish,
	}, {
		name:      "a cluster comes back only after it has gone",
		published: "r@2|b@1|b@1", target: "r@1|a@1|a@1", acked: "clusters endpoints routes", held: "clusters",
		want: "r@2|b@1|b@1", step: Wait,
	}, {
		name:      "and so do its endpoints",
		published: "r@2|b@1|b@1", target: "r@1|a@1|a@1", acked: "clusters endpoints routes", held: "endpoints",
		want: "r@2|b@1|b@1", step: Wait,
	}, {
		name:      "routes wait for the cluster",
		published: "r@1|a@1 b@1|a@1 b@1", target: "r@2|b@1|b@1", acked: "endpoints routes",
		want: "r@1|a@1 b@1|a@1 b@1", step: Wait,
	}, {
		name:      "routes wait for its endpoints",
		published: "r@1|a@1 b@1|a@1 b@1", target: "r@2|b@1|b@1", acked: "clusters routes",
		want: "r@1|a@1 b@1|a@1 b@1", step: Wait,
	}, {
		name:      "routes follow",
		published: "r@1|a@1 b@1|a@1 b@1", target: "r@2|b@1|b@1", acked: "clusters endpoints",
		want: "r@2|a@1 b@1|a@1 b@1", step: Publish,
	}, {
		name:      "the old cluster stays while a worker may have old routes",
		published: "r@2|a@1 b@1|a@1 b@1", target: "r@2|b@1|b@1", acked: "clusters endpoints",
		want: "r@2|a@1 b@1|a@1 b@1", step: Wait,
	}, {
		name:      "and then goes",
		published: "r@2|a@1 b@1|a@1 b@1", target: "r@2|b@1|b@1", acked: "clusters endpoints routes",
		want: "r@2|b@1|b@1", step: Publish,
	}, {
		name:      "done",
		published: "r@2|b@1|b@1", target: "r@2|b@1|b@1", acked: "clusters endpoints routes",
		want: "r@2|b@1|b@1", step: Done,
	}, {
		name:      "not done before the routes are acknowledged",
		published: "r@2|b@1|b@1", target: "r@2|b@1|b@1", acked: "clusters endpoints",
		want: "r@2|b@1|b@1", step: Wait,
	}, {
		name:      "new routes to old clusters wait for nothing but these",
		published: "r@1|a@1|a@1", target: "r@2|a@1|a@1", acked: "clusters endpoints",
		want: "r@2|a@1|a@1", step: Publish,
	}, {
		name:      "moved endpoints wait for nothing",
		published: "r@1|a@1|a@1", target: "r@1|a@1|a@2",
		want: "r@1|a@1|a@2", step: Publish,
	}, {
		name:      "from nothing",
		published: "||", target: "r@1|a@1|a@1",
		want: "|a@1|a@1", step: Publish,
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			listed := func(list, typeURL string) bool {
				return slices.ContainsFunc(strings.Fields(list), func(name string) bool { return typeURLs[name] == typeURL })
			}
			acked := func(typeURL string, want map[string]string) bool {
				for _, version := range want {
					if version == Absent {
						return !listed(tt.held, typeURL)
					}
				}
				return len(want) == 0 || listed(tt.acked, typeURL)
			}
			got, step := Next(long(tt.published), long(tt.target), acked)
			if short(got) != tt.want || step != tt.step {
				t.Errorf("got %q, step %d; want %q, step %d", short(got), step, tt.want, tt.step)
			}
		})
	}
}

// TestNextAsksForWhatIsWanted pins which versions a route waits for: its clusters'
// exactly, its endpoints' any.
func TestNextAsksForWhatIsWanted(t *testing.T) {
	asked := map[string]map[string]string{}
	Next(long("r@1|a@1 b@1|a@1 b@2"), long("r@2|b@1|b@2"), func(typeURL string, want map[string]string) bool {
		asked[typeURL] = want
		return true
	})
	want := map[string]map[string]string{
		resourcev3.ClusterType:  {"b": "1"},
		resourcev3.EndpointType: {"b": ""},
	}
	if diff := cmp.Diff(want, asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

func TestRefresh(t *testing.T) {
	s := long("r@1|a@1 b@1|a@1 b@1")
	got, changed := s.Refresh(long("||b@2 c@1").Endpoints)
	if want := "r@1|a@1 b@1|a@1 b@2"; short(got) != want || !changed {
		t.Errorf("got %q, %t; want %q, true", short(got), changed, want)
	}
	if short(s) != "r@1|a@1 b@1|a@1 b@1" {
		t.Errorf("the old state became %q", short(s))
	}
	if _, changed := s.Refresh(long("||a@1").Endpoints); changed {
		t.Error("equal endpoints count as a change")
	}
}

func edsCluster(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		}},
	}
}

func TestSnapshot(t *testing.T) {
	c, err := NewResource(edsCluster("a"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := NewResource(&endpointv3.ClusterLoadAssignment{ClusterName: "a"})
	if err != nil {
		t.Fatal(err)
	}
	s := State{Clusters: SetOf(c), Endpoints: SetOf(e)}
	snap, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	// Pre-filled versions are those that go-control-plane would work out, which
	// are what it sends.
	want := cachev3.Snapshot{Resources: snap.Resources}
	if err := want.ConstructVersionMap(); err != nil {
		t.Fatal(err)
	}
	for _, typeURL := range []string{resourcev3.ClusterType, resourcev3.EndpointType} {
		if diff := cmp.Diff(want.VersionMap[typeURL], snap.VersionMap[typeURL]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", typeURL, diff)
		}
	}
	if _, err := (State{Clusters: SetOf(c)}).Snapshot(); err == nil {
		t.Error("a cluster without endpoints passed")
	}
	if _, err := (State{Endpoints: SetOf(e)}).Snapshot(); err == nil {
		t.Error("endpoints without a cluster passed")
	}
}

func TestNewResourceRefuses(t *testing.T) {
	_, err := NewResource(&routev3.VirtualHost{Name: "", Domains: []string{"a"}})
	if err == nil || !strings.HasPrefix(err.Error(), "check VirtualHost") {
		t.Errorf("error is %v, want one that names the resource", err)
	}
}

func TestBack(t *testing.T) {
	with := func(s State) State {
		s.Listeners = Set{"l": {Name: "l", Version: s.Routes["r"].Version}}
		return s
	}
	published, settled, wanted := with(long("r@3|a b c d|a@2 b@2 c@1 d@1")), with(long("r@1|a b|a@1 b@1")), with(long("r@2|b c|b@3 c@1"))
	want := with(long("r@1|a b c|a@1 b@3 c@1")) // without d, which nobody wants, and with a, which settled routes use
	if got := Back(published, settled, wanted); short(got) != short(want) || !got.Listeners.Equal(want.Listeners) {
		t.Errorf("back to %s, want %s", short(got), short(want))
	}
	if got := Back(published, State{}, wanted); short(got) != short(wanted) {
		t.Errorf("with nothing settled back to %s, want %s", short(got), short(wanted))
	}
}
