package translate

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
)

func TestTiers(t *testing.T) {
	rev := types.NamespacedName{Namespace: "default", Name: "sort-00001"}
	a, b := Node{Name: "a", IP: "10.0.0.1"}, Node{Name: "b", IP: "10.0.0.2"}
	// The order of a and b for this revision is what the hash gives.
	order := rank(rev, []Node{a, b})
	first, second := order[0], order[1]
	cordoned := first
	cordoned.Cordoned = true
	pod := func(n Node) Pod { return Pod{IP: n.IP, NodeIP: n.IP} }
	at := func(n Node, weight uint32) []Endpoint { return []Endpoint{{IP: n.IP, Port: 8012, Weight: weight}} }

	tests := []struct {
		name  string
		pods  []Pod
		nodes []Node
		want  [][]Endpoint
	}{{
		name: "nothing at all",
		want: [][]Endpoint{{}},
	}, {
		name:  "no pod: nodes in rank order, each a tier",
		nodes: []Node{a, b},
		want:  [][]Endpoint{{}, at(first, 1), at(second, 1)},
	}, {
		name:  "a node with a pod isn't its own spare",
		pods:  []Pod{pod(first)},
		nodes: []Node{a, b},
		want:  [][]Endpoint{at(first, 1), at(second, 1)},
	}, {
		name:  "pods on one node share its address and weigh more",
		pods:  []Pod{pod(second), pod(second)},
		nodes: []Node{a, b},
		want:  [][]Endpoint{at(second, 2), at(first, 1)},
	}, {
		name:  "a pod with an address of its own",
		pods:  []Pod{{IP: "10.244.0.7", NodeIP: first.IP}},
		nodes: []Node{a, b},
		want:  [][]Endpoint{{{IP: "10.244.0.7", Port: 8012, Weight: 1}}, at(second, 1)},
	}, {
		name:  "a cordoned node comes last",
		nodes: []Node{cordoned, second},
		want:  [][]Endpoint{{}, at(second, 1), at(first, 1)},
	}, {
		name: "a pod whose node is not ready",
		pods: []Pod{pod(a)},
		want: [][]Endpoint{at(a, 1)},
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Tiers(rev, tt.pods, tt.nodes)); diff != "" {
				t.Errorf("tiers (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRankMovesLittle(t *testing.T) {
	var nodes []Node
	for i := range 20 {
		nodes = append(nodes, Node{Name: fmt.Sprintf("node-%d", i), IP: fmt.Sprintf("10.0.0.%d", i)})
	}
	firsts := map[string]int{}
	for i := range 1000 {
		rev := types.NamespacedName{Namespace: "default", Name: fmt.Sprintf("rev-%d", i)}
		with, without := Tiers(rev, nil, nodes), Tiers(rev, nil, nodes[1:])
		firsts[with[1][0].IP]++
		if with[1][0].IP != nodes[0].IP && with[1][0] != without[1][0] {
			t.Fatalf("%s moved from %s to %s when another node left", rev, with[1][0].IP, without[1][0].IP)
		}
		if len(with) != 1+Spares {
			t.Fatalf("%s has %d tiers, want %d", rev, len(with), 1+Spares)
		}
	}
	for _, n := range nodes {
		if firsts[n.IP] < 20 || firsts[n.IP] > 90 {
			t.Errorf("%s comes first for %d of 1000 revisions, want about 50", n.Name, firsts[n.IP])
		}
	}
}
