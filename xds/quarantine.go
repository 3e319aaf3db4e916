package xds

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/wisp-serving/wisp/xds/translate"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
)

// Envoy refuses a response as a whole and rarely says which KIngress it was. So
// those that changed since the last acknowledgement are halved: the later half
// goes back to the form that was acknowledged, and the first is tried alone. A
// refusal halves it again, until one is left, which is the culprit; an
// acknowledgement frees half of those that were held. With one culprit among n
// that is some 2 log2 n tries, each as long as an Envoy takes to answer, and all
// that is good is published in the end. Between two tries Envoys are given what
// they had acknowledged before.
// See RATIONALE.md "Why are KIngresses halved when Envoy refuses them?".

// isolate makes desired leave out what may have caused a rejection: half of the
// suspects or, where there is but one, that one until it changes.
func (g *gateway) isolate(ctx context.Context, rejection string) error {
	touched := map[types.NamespacedName]bool{}
	switch suspects := g.suspects(); len(suspects) {
	case 0:
		return nil // it is no KIngress's fault; the server has logged it
	case 1:
		for _, key := range suspects[0] {
			g.log.Warnw("ingress quarantined", "key", key, "reason", rejection)
			g.table.hold(key, &translate.Refusal{Reason: translate.ReasonRejected, Message: "Envoy refuses it: " + strings.TrimSpace(rejection)})
			touched[key] = true
		}
	default:
		for _, unit := range suspects[(len(suspects)+1)/2:] {
			for _, key := range unit {
				g.table.hold(key, nil)
				g.held[key] = true
				delete(g.inFlight, key)
			}
		}
	}
	return g.rebuild(ctx, noChanges(), touched)
}

// suspects returns the KIngresses in flight that are in the transition in a form
// that no Envoy has acknowledged, and are in the table as they are there. Those
// that share a Secret are suspects together: it is published once.
func (g *gateway) suspects() [][]types.NamespacedName {
	var keys []types.NamespacedName
	for key, f := range g.inFlight {
		if p, ok := g.table.parts[key]; ok && f != nil && f == p.good && !p.held && !f.equal(p.proved) {
			keys = append(keys, key)
		}
	}
	return g.units(keys)
}

// units sorts keys, and puts together what shares a Secret.
func (g *gateway) units(keys []types.NamespacedName) [][]types.NamespacedName {
	slices.SortFunc(keys, func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
	unitOf := map[types.NamespacedName]int{} // by Secret
	var units [][]types.NamespacedName
	for _, key := range keys {
		n := len(units)
		for _, secret := range g.table.secretsOf(key) {
			if other, ok := unitOf[secret]; ok {
				n = min(n, other)
			}
		}
		if n == len(units) {
			units = append(units, nil)
		}
		units[n] = append(units[n], key)
		for _, secret := range g.table.secretsOf(key) {
			unitOf[secret] = n
		}
	}
	return units
}

// retry frees half of the KIngresses that were held for others' sake, now that
// those are settled.
func (g *gateway) retry(ctx context.Context) error {
	if len(g.held) == 0 {
		return nil
	}
	units := g.units(slices.Collect(maps.Keys(g.held)))
	touched := map[types.NamespacedName]bool{}
	for _, unit := range units[:(len(units)+1)/2] {
		for _, key := range unit {
			delete(g.held, key)
			if g.table.release(key) {
				touched[key] = true
			}
		}
	}
	return g.rebuild(ctx, noChanges(), touched)
}

// rejections returns what earlier gateways have written of Envoy's refusal of
// KIngresses. It is read before anything else is said of these: what this gateway
// writes would hide it.
func (g *gateway) rejections(ctx context.Context, ingresses map[types.NamespacedName]bool) (map[types.NamespacedName]*translate.Refusal, error) {
	found := map[types.NamespacedName]*translate.Refusal{}
	for key := range ingresses {
		ing, err := g.source.ingress(ctx, key)
		if err != nil {
			return nil, err
		}
		if refusal := rejected(ing); refusal != nil {
			found[key] = refusal
		}
	}
	return found, nil
}

// distrust holds those KIngresses back of which an earlier gateway has written
// that Envoy refuses them, so that a fresh Envoy needn't find that out again. They
// are tried when all others are settled: this gateway, or Envoy, may be another.
func (g *gateway) distrust(ctx context.Context, rejections map[types.NamespacedName]*translate.Refusal) error {
	touched := map[types.NamespacedName]bool{}
	for key, refusal := range rejections {
		if g.table.parts[key] == nil {
			continue
		}
		g.table.hold(key, refusal)
		g.held[key] = true
		touched[key] = true
	}
	return g.rebuild(ctx, noChanges(), touched)
}

// rejected returns what ing's status says of Envoy's refusal of it as it is, or
// nil.
func rejected(ing *v1alpha1.Ingress) *translate.Refusal {
	if ing == nil || ing.Status.ObservedGeneration != ing.Generation {
		return nil
	}
	c := ing.Status.GetCondition(v1alpha1.IngressConditionNetworkConfigured)
	if c == nil || !c.IsFalse() || c.Reason != translate.ReasonRejected {
		return nil
	}
	return &translate.Refusal{Reason: c.Reason, Message: c.Message}
}
