package build

import (
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/wisp-serving/wisp/xds/translate"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

func TestClusterNames(t *testing.T) {
	one := translate.Cluster{Kind: translate.Revision, Namespace: "default", Service: "sort-00001", Protocol: translate.HTTP1}
	same, h2c := Cluster(one), one
	h2c.Protocol = translate.H2C
	if got, want := Cluster(one).GetName(), same.GetName(); got != want {
		t.Errorf("name is %s the second time, and was %s", got, want)
	}
	if !strings.HasPrefix(same.GetName(), "default/sort-00001/") {
		t.Errorf("name is %s, want it to tell the revision", same.GetName())
	}
	if Cluster(h2c).GetName() == same.GetName() {
		t.Error("another protocol has the same name: the cluster would change in place")
	}
}

func TestEndpoints(t *testing.T) {
	got := Endpoints("c", [][]translate.Endpoint{{}, {{IP: "127.0.0.2", Port: 8012, Weight: 3}}})
	if n := len(got.GetEndpoints()); n != 2 {
		t.Fatalf("%d tiers, want 2: an empty first one too", n)
	}
	if first := got.GetEndpoints()[0]; first.GetPriority() != 0 || len(first.GetLbEndpoints()) != 0 {
		t.Errorf("first tier is %v", first)
	}
	second := got.GetEndpoints()[1]
	address := second.GetLbEndpoints()[0].GetEndpoint().GetAddress()
	if diff := cmp.Diff(tcp("127.0.0.2", 8012), address, protocmp.Transform()); diff != "" {
		t.Errorf("address (-want +got):\n%s", diff)
	}
	if second.GetPriority() != 1 || second.GetLbEndpoints()[0].GetLoadBalancingWeight().GetValue() != 3 {
		t.Errorf("second tier is %v", second)
	}
}

func TestVirtualHost(t *testing.T) {
	a := translate.Cluster{Kind: translate.Revision, Namespace: "ns", Service: "a", Protocol: translate.HTTP1}
	b := translate.Cluster{Kind: translate.Revision, Namespace: "ns", Service: "b", Protocol: translate.HTTP1}
	vh := VirtualHost(translate.VirtualHost{
		Name:  "ns/x/0",
		Hosts: []string{"x.example.com"},
		Routes: []translate.Route{{
			Path:  "/one",
			Match: []translate.Header{{Name: "exact", Value: "v"}, {Name: "present"}},
			Splits: []translate.Split{
				{Cluster: a, Weight: 100, Set: []translate.Header{{Name: "who", Value: "50%"}}},
			},
		}, {
			Path:        "/",
			RewriteHost: "inner",
			Splits:      []translate.Split{{Cluster: a, Weight: 90}, {Cluster: b, Weight: 10, Set: []translate.Header{{Name: "who", Value: "b"}}}},
		}},
	}, 8443)
	want := &routev3.VirtualHost{}
	text := `{
	  "name": "ns/x/0", "domains": ["x.example.com"],
	  "routes": [{
	    "match": {"prefix": "/one", "headers": [{"name": "exact", "stringMatch": {"exact": "v"}}, {"name": "present", "presentMatch": true}]},
	    "route": {"cluster": "` + Cluster(a).GetName() + `", "timeout": "0s"},
	    "requestHeadersToAdd": [{"header": {"key": "who", "value": "50%%"}, "appendAction": "OVERWRITE_IF_EXISTS_OR_ADD", "keepEmptyValue": true}]
	  }, {
	    "match": {"prefix": "/"},
	    "route": {"timeout": "0s", "hostRewriteLiteral": "inner", "weightedClusters": {"clusters": [
	      {"name": "` + Cluster(a).GetName() + `", "weight": 90},
	      {"name": "` + Cluster(b).GetName() + `", "weight": 10,
	       "requestHeadersToAdd": [{"header": {"key": "who", "value": "b"}, "appendAction": "OVERWRITE_IF_EXISTS_OR_ADD", "keepEmptyValue": true}]}]}}
	  }]}`
	if err := protojson.Unmarshal([]byte(text), want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, vh, protocmp.Transform(), protocmp.IgnoreFields(vh, "retry_policy")); diff != "" {
		t.Errorf("virtual host (-want +got):\n%s", diff)
	}
	if got := vh.GetRetryPolicy().GetRetryOn(); strings.Contains(got, "5xx") || strings.Contains(got, "gateway-error") || strings.Contains(got, "reset,") {
		t.Errorf("retries on %s, which includes answers", got)
	}
}

// TestRoutes reads what is written as Envoy does.
func TestRoutes(t *testing.T) {
	vhosts := []*routev3.VirtualHost{{Name: "a", Domains: []string{"a.example.com"}}, {Name: "b", Domains: []string{"b.example.com"}}}
	var fields [][]byte
	for _, vh := range vhosts {
		field, err := Encode(vh)
		if err != nil {
			t.Fatal(err)
		}
		fields = append(fields, field)
	}
	raw, err := proto.Marshal(Routes(translate.External, fields))
	if err != nil {
		t.Fatal(err)
	}
	got := &routev3.RouteConfiguration{}
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, got); err != nil {
		t.Fatal(err)
	}
	want := Routes(translate.External, nil)
	want.VirtualHosts = vhosts
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	if err := want.ValidateAll(); err != nil {
		t.Error(err)
	}
	if _, err := Encode(&routev3.VirtualHost{Name: "c"}); err == nil || !strings.HasPrefix(err.Error(), "virtual host c: ") {
		t.Errorf("error without domains is %v", err)
	}
}

func TestListener(t *testing.T) {
	l, err := Listener(translate.Internal, "127.0.0.1:8081", Filters(translate.Internal, true))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.ValidateAll(); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"127.0.0.1", "127.0.0.1:70000", "127.0.0.1:http"} {
		if _, err := Listener(translate.Internal, bad, nil); err == nil || !strings.HasPrefix(err.Error(), "build listener internal: parse address") {
			t.Errorf("%s: error is %v", bad, err)
		}
	}
}
