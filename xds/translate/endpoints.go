package translate

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"slices"

	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/networking"
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
const Spares = 3

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

// rank orders nodes by rendezvous hashing: each revision has its own order, and
// a node that comes or goes changes no other nodes' order.
func rank(revision types.NamespacedName, nodes []Node) []Node {
	type ranked struct {
		node Node
		sum  [sha256.Size]byte
	}
	all := make([]ranked, 0, len(nodes))
	for _, n := range nodes {
		all = append(all, ranked{n, sha256.Sum256([]byte(revision.String() + "\x00" + n.Name))})
	}
	slices.SortFunc(all, func(a, b ranked) int {
		return cmp.Or(
			cmp.Compare(boolInt(a.node.Cordoned), boolInt(b.node.Cordoned)),
			bytes.Compare(a.sum[:], b.sum[:]),
		)
	})
	out := make([]Node, 0, len(all))
	for _, r := range all {
		out = append(out, r.node)
	}
	return out
}
