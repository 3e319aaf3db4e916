package translate

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/networking"

	"github.com/wisp-serving/wisp/ranking"
)

// Pod is a ready pod of a revision.
type Pod struct {
	IP     string
	NodeIP string
}

// Node is a ready wasm node.
type Node struct {
	Name string
	IP   string
	// Cordoned nodes start no function ahead of its pod, so others are asked
	// first.
	Cordoned bool
}

// Endpoint is an address that answers for a backend, with its share of the
// traffic relative to its tier.
type Endpoint struct {
	IP     string `json:"ip"`
	Port   uint32 `json:"port"`
	Weight uint32 `json:"weight"`
}

// Spares is how many nodes stand behind a revision's pods.
// See RATIONALE.md "Why does each spare node have a priority of its own?".
const Spares = ranking.Spares

// Tiers returns the addresses of a revision by priority: first those of its
// ready pods, weighted by pods, then up to Spares further nodes in the
// revision's rank order, each a tier of its own. The first tier exists even
// when it is empty, so that a scale event moves addresses and nothing else.
func Tiers(revision types.NamespacedName, pods []Pod, nodes []Node) [][]Endpoint {
	weights := map[string]uint32{}
	busy := map[string]bool{}
	for _, p := range pods {
		weights[p.IP]++
		busy[p.NodeIP] = true
	}
	first := make([]Endpoint, 0, len(weights))
	for ip, w := range weights {
		first = append(first, Endpoint{IP: ip, Port: networking.BackendHTTPPort, Weight: w})
	}
	slices.SortFunc(first, func(a, b Endpoint) int { return cmp.Compare(a.IP, b.IP) })

	tiers := [][]Endpoint{first}
	for _, n := range rank(revision, nodes) {
		if len(tiers) > Spares {
			break
		}
		if !busy[n.IP] {
			tiers = append(tiers, []Endpoint{{IP: n.IP, Port: networking.BackendHTTPPort, Weight: 1}})
		}
	}
	return tiers
}

// rank orders nodes as the nodes themselves do.
func rank(revision types.NamespacedName, nodes []Node) []Node {
	return ranking.Of(revision, nodes, func(n Node) (string, bool) { return n.Name, n.Cordoned })
}
