// Package snapshot plans how a proxy's configuration gets from what it has to
// what it should have, in an order in which no request meets a route whose
// destination is missing.
//
// States are plain values, and Next is pure: it is given what is published, what
// is wanted and what the proxies have acknowledged, and says what to publish
// now. Package xds asks it again whenever one of the three changes. Nothing here
// sends anything.
package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"maps"
	"slices"

	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
)

// Resource is a message with its name and the hash of its content. Its message
// must not be changed.
type Resource struct {
	Name    string
	Version string
	Message proto.Message
}

// NewResource checks m by the rules in its proto file and hashes it, once for as
// long as it is used.
func NewResource(m proto.Message) (Resource, error) {
	name := cachev3.GetResourceName(m)
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return Resource{}, fmt.Errorf("check %s %s: %w", m.ProtoReflect().Descriptor().Name(), name, err)
		}
	}
	raw, err := cachev3.MarshalResource(m)
	if err != nil {
		return Resource{}, fmt.Errorf("marshal %s %s: %w", m.ProtoReflect().Descriptor().Name(), name, err)
	}
	// The cache sends this hash whatever a snapshot's VersionMap says. With
	// another one, a reconnecting Envoy would be sent everything anew.
	return Resource{Name: name, Version: cachev3.HashResource(raw), Message: m}, nil
}

// Set holds resources of one type by name.
type Set map[string]Resource

// SetOf returns a Set of the given resources.
func SetOf(resources ...Resource) Set {
	s := make(Set, len(resources))
	for _, r := range resources {
		s[r.Name] = r
	}
	return s
}

// Equal reports whether both hold the same names in the same versions.
func (s Set) Equal(other Set) bool { return len(s) == len(other) && s.holds(other) }

// holds reports whether s has all of other in other's versions.
func (s Set) holds(other Set) bool {
	for name, r := range other {
		if s[name].Version != r.Version {
			return false
		}
	}
	return true
}

// State is a whole configuration. Sets may be shared between States, so they are
// replaced, never changed.
type State struct {
	Listeners, Routes, Clusters, Endpoints, Secrets Set
}

// Equal reports whether both would configure a proxy alike.
func (s State) Equal(other State) bool {
	return s.Listeners.Equal(other.Listeners) && s.Routes.Equal(other.Routes) &&
		s.Clusters.Equal(other.Clusters) && s.Endpoints.Equal(other.Endpoints) && s.Secrets.Equal(other.Secrets)
}

// Refresh returns s with newer versions of those endpoints that it has, and
// whether there are any. Addresses move without regard to routes, so they may
// overtake a transition.
func (s State) Refresh(endpoints Set) (State, bool) {
	out := s
	out.Endpoints = make(Set, len(s.Endpoints))
	changed := false
	for name, old := range s.Endpoints {
		out.Endpoints[name] = old
		if r, ok := endpoints[name]; ok && r.Version != old.Version {
			out.Endpoints[name] = r
			changed = true
		}
	}
	return out, changed
}

// Versions returns the versions by name.
func (s Set) Versions() map[string]string {
	out := make(map[string]string, len(s))
	for name, r := range s {
		out[name] = r.Version
	}
	return out
}

// Acked reports whether all proxies have acknowledged the resources of a type
// that are wanted, given as versions by name; an empty version stands for any,
// and Absent for none. With no proxy there is nobody to wait for.
type Acked func(typeURL string, want map[string]string) bool

// Absent in place of a version wants that a proxy doesn't hold the resource, or
// has acknowledged that it went.
const Absent = "absent"

// Step is what Next wants done.
type Step int

// The steps of a transition.
const (
	// Publish the returned state, then ask again.
	Publish Step = iota
	// Wait until more is acknowledged, then ask again.
	Wait
	// Done: target is published, and all but its newest endpoints acknowledged.
	Done
)

// Next returns the next step from published to target:
//
//  1. Target's clusters, endpoints and secrets join those that are there. One
//     that comes back first waits until it has gone: its old acknowledgement
//     would be taken for the new one.
//  2. Once clusters and endpoints are acknowledged, and so have reached Envoy's
//     workers, target's routes and listeners replace the old ones.
//  3. Once these are acknowledged, and the secrets that Envoy asks for because of
//     them, what only the old routes used goes.
//
// See RATIONALE.md "Why wait for acknowledgements between clusters and routes?".
func Next(published, target State, acked Acked) (State, Step) {
	if !published.Clusters.holds(target.Clusters) || !published.Endpoints.holds(target.Endpoints) || !published.Secrets.holds(target.Secrets) {
		added := target.Clusters.without(published.Clusters)
		if !acked(resourcev3.ClusterType, added) || !acked(resourcev3.EndpointType, added) {
			return published, Wait
		}
		return State{
			Listeners: published.Listeners,
			Routes:    published.Routes,
			Clusters:  union(published.Clusters, target.Clusters),
			Endpoints: union(published.Endpoints, target.Endpoints),
			Secrets:   union(published.Secrets, target.Secrets),
		}, Publish
	}
	if !published.Routes.Equal(target.Routes) || !published.Listeners.Equal(target.Listeners) {
		if !acked(resourcev3.ClusterType, target.Clusters.Versions()) || !acked(resourcev3.EndpointType, target.Endpoints.anyVersion()) {
			return published, Wait
		}
		next := published
		next.Routes, next.Listeners = target.Routes, target.Listeners
		return next, Publish
	}
	for _, kind := range []struct {
		typeURL string
		set     Set
	}{
		{resourcev3.RouteType, target.Routes},
		{resourcev3.ListenerType, target.Listeners},
		{resourcev3.SecretType, target.Secrets},
	} {
		if !acked(kind.typeURL, kind.set.Versions()) {
			return published, Wait
		}
	}
	if !published.Equal(target) {
		return target, Publish
	}
	return published, Done
}

// Back returns what to publish when a proxy has refused published: what it has
// accepted before, and of what goes beyond that only what is still wanted. So what
// was refused is gone from each type, which makes the rest of the response that it
// came in be sent again. With nothing settled it is what is wanted.
func Back(published, settled, wanted State) State {
	if len(settled.Listeners) == 0 {
		return wanted
	}
	return State{
		Listeners: settled.Listeners,
		Routes:    settled.Routes,
		Clusters:  published.Clusters.within(settled.Clusters, wanted.Clusters),
		Endpoints: published.Endpoints.within(settled.Endpoints, wanted.Endpoints),
		Secrets:   published.Secrets.within(settled.Secrets, wanted.Secrets),
	}
}

// within returns those of s that settled or wanted have, in wanted's version where
// it has one.
func (s Set) within(settled, wanted Set) Set {
	out := Set{}
	for name := range s {
		if r, ok := wanted[name]; ok {
			out[name] = r
		} else if r, ok := settled[name]; ok {
			out[name] = r
		}
	}
	return out
}

// anyVersion returns the names with empty versions. A cluster is warm from its
// first endpoints on; waiting for the newest would let a busy scaler hold up
// routes.
func (s Set) anyVersion() map[string]string {
	out := make(map[string]string, len(s))
	for name := range s {
		out[name] = ""
	}
	return out
}

// without returns the names that other lacks, each to be Absent.
func (s Set) without(other Set) map[string]string {
	out := map[string]string{}
	for name := range s {
		if _, ok := other[name]; !ok {
			out[name] = Absent
		}
	}
	return out
}

// union returns both, with newer's version where both have one.
func union(older, newer Set) Set {
	out := make(Set, len(older)+len(newer))
	maps.Copy(out, older)
	maps.Copy(out, newer)
	return out
}

// Snapshot returns s for go-control-plane's cache, or an error where a listener's
// routes or a cluster's endpoints are missing or left over.
func (s State) Snapshot() (*cachev3.Snapshot, error) {
	out := &cachev3.Snapshot{VersionMap: map[string]map[string]string{}}
	for typeURL, set := range s.byType() {
		items := make(map[string]types.ResourceWithTTL, len(set))
		versions := make(map[string]string, len(set))
		for name, r := range set {
			items[name] = types.ResourceWithTTL{Resource: r.Message}
			versions[name] = r.Version
		}
		out.Resources[cachev3.GetResponseType(typeURL)] = cachev3.Resources{Version: set.version(), Items: items}
		out.VersionMap[typeURL] = versions
	}
	if err := out.Consistent(); err != nil {
		return nil, fmt.Errorf("check snapshot: %w", err)
	}
	return out, nil
}

func (s State) byType() map[string]Set {
	return map[string]Set{
		resourcev3.ListenerType: s.Listeners,
		resourcev3.RouteType:    s.Routes,
		resourcev3.ClusterType:  s.Clusters,
		resourcev3.EndpointType: s.Endpoints,
		resourcev3.SecretType:   s.Secrets,
	}
}

// version returns a hash over all names and versions.
func (s Set) version() string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(s)) {
		write(h, name)
		write(h, s[name].Version)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func write(h hash.Hash, s string) {
	_, _ = h.Write([]byte(s)) // a hash's Write never fails
	_, _ = h.Write([]byte{0})
}
