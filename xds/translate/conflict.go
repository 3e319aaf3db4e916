package translate

import (
	"cmp"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Claim is a KIngress that wants hosts.
type Claim struct {
	Key     types.NamespacedName
	Created time.Time
	Ingress Ingress
}

// Admit returns the claims that keep their hosts, oldest first, and a refusal
// for each other one: a host belongs to the oldest KIngress that names it. Of
// the same age the lower key wins, so that every gateway decides alike.
func Admit(claims []Claim) ([]Claim, map[types.NamespacedName]*Refusal) {
	sorted := slices.Clone(claims)
	slices.SortFunc(sorted, func(a, b Claim) int {
		return cmp.Or(a.Created.Compare(b.Created), compareKeys(a.Key, b.Key))
	})
	owners := map[string]types.NamespacedName{}
	refused := map[types.NamespacedName]*Refusal{}
	admitted := sorted[:0]
	for _, c := range sorted {
		if host, owner, ok := c.taken(owners); ok {
			refused[c.Key] = refuse(ReasonConflict, "host %s belongs to the older ingress %s", host, owner)
			continue
		}
		for _, vh := range c.Ingress.Internal {
			for _, h := range vh.Hosts {
				owners[h] = c.Key
			}
		}
		admitted = append(admitted, c)
	}
	return admitted, refused
}

// taken returns c's first host that has an owner. Internal holds every host.
func (c Claim) taken(owners map[string]types.NamespacedName) (string, types.NamespacedName, bool) {
	for _, vh := range c.Ingress.Internal {
		for _, h := range vh.Hosts {
			if owner, ok := owners[h]; ok {
				return h, owner, true
			}
		}
	}
	return "", types.NamespacedName{}, false
}
