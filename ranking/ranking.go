// Package ranking gives each revision an order of nodes of its own: the one in
// which they are asked for a revision that has no pods. The gateway sends to the
// first of them, and the nodes know from it which revisions they may be asked
// for. It is pure and a leaf.
//
// The order is by rendezvous hashing: a node that comes or goes changes no other
// nodes' order, and revisions spread evenly.
package ranking

import (
	"bytes"
	"crypto/sha256"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// Spares is how many nodes stand behind a revision's pods, or in their place.
const Spares = 3

// Of returns the nodes in the revision's order, as a new slice. About says of a
// node its name, and whether it comes after all that don't, as a cordoned one.
func Of[N any](revision types.NamespacedName, nodes []N, about func(N) (name string, last bool)) []N {
	type ranked struct {
		node N
		last bool
		sum  [sha256.Size]byte
	}
	all := make([]ranked, 0, len(nodes))
	for _, n := range nodes {
		name, last := about(n)
		all = append(all, ranked{n, last, sha256.Sum256([]byte(revision.String() + "\x00" + name))})
	}
	slices.SortFunc(all, func(a, b ranked) int {
		switch {
		case a.last == b.last:
			return bytes.Compare(a.sum[:], b.sum[:])
		case a.last:
			return 1
		default:
			return -1
		}
	})
	out := make([]N, 0, len(all))
	for _, r := range all {
		out = append(out, r.node)
	}
	return out
}
