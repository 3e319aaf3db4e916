package xds

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/wisp-serving/wisp/xds/build"
	"github.com/wisp-serving/wisp/xds/snapshot"
	"github.com/wisp-serving/wisp/xds/translate"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
)

// table turns what the cluster says, piece by piece, into the configuration that
// follows from it. It keeps the built form of each piece, so that a change costs
// what it touches. It does no I/O; one goroutine uses it.
type table struct {
	listeners snapshot.Set

	parts    map[types.NamespacedName]*part
	backends map[types.NamespacedName]translate.Protocol
	nodes    []translate.Node

	// clusters are those that routes lead to.
	clusters map[translate.Cluster]*destination
	routes   snapshot.Set
	// stale says that clusters and routes don't follow from parts any more.
	stale bool
}

// part is one KIngress.
type part struct {
	uid        types.UID
	generation int64
	created    time.Time
	services   []types.NamespacedName
	// good is the last translation that succeeded, with its messages, or nil.
	// It stays in use while a newer one is refused.
	// See RATIONALE.md "Why does a refused KIngress keep its last routes?".
	good               *translate.Ingress
	external, internal []*routev3.VirtualHost
	// refusal is why the KIngress as it is now isn't served, or nil.
	refusal *translate.Refusal
	// conflict is why another KIngress is served in its place, or nil.
	conflict *translate.Refusal
}

// destination is a cluster in use.
type destination struct {
	cluster   snapshot.Resource
	endpoints snapshot.Resource
	pods      []translate.Pod
}

func newTable(listeners snapshot.Set) *table {
	return &table{
		listeners: listeners,
		parts:     map[types.NamespacedName]*part{},
		backends:  map[types.NamespacedName]translate.Protocol{},
		clusters:  map[translate.Cluster]*destination{},
		stale:     true, // even without KIngresses there are two route configurations
	}
}

// setNodes replaces the wasm nodes and reports whether that changed anything.
func (t *table) setNodes(nodes []translate.Node) bool {
	sorted := slices.Clone(nodes)
	slices.SortFunc(sorted, func(a, b translate.Node) int { return cmp.Compare(a.Name, b.Name) })
	if slices.Equal(t.nodes, sorted) {
		return false
	}
	t.nodes = sorted
	return true
}

// setBackend says what a revision speaks, or with !ok that it is none of ours,
// and returns the KIngresses that must be set again for it.
func (t *table) setBackend(revision types.NamespacedName, p translate.Protocol, ok bool) []types.NamespacedName {
	old, had := t.backends[revision]
	if had == ok && old == p {
		return nil
	}
	if ok {
		t.backends[revision] = p
	} else {
		delete(t.backends, revision)
	}
	var out []types.NamespacedName
	for key, part := range t.parts {
		if slices.Contains(part.services, revision) {
			out = append(out, key)
		}
	}
	return out
}

// current reports whether the KIngress is known as ing has it.
func (t *table) current(key types.NamespacedName, ing *v1alpha1.Ingress) bool {
	p, ok := t.parts[key]
	if ing == nil || !ok {
		return ing == nil && !ok
	}
	return p.uid == ing.UID && p.generation == ing.Generation
}

// setIngress translates a KIngress, or forgets it where ing is nil.
func (t *table) setIngress(key types.NamespacedName, ing *v1alpha1.Ingress) {
	t.stale = true
	if ing == nil {
		delete(t.parts, key)
		return
	}
	p := &part{uid: ing.UID, generation: ing.Generation, created: ing.CreationTimestamp.Time, services: translate.Services(ing)}
	if old, ok := t.parts[key]; ok && old.uid == ing.UID {
		p.good, p.external, p.internal = old.good, old.external, old.internal
	}
	t.parts[key] = p
	good, refusal := translate.Translate(ing, t.resolve)
	if refusal != nil {
		p.refusal = refusal
		return
	}
	external, internal := vhosts(good.External), vhosts(good.Internal)
	if err := check(external, internal); err != nil {
		p.refusal = &translate.Refusal{Reason: translate.ReasonInvalid, Message: err.Error()}
		return
	}
	p.good, p.external, p.internal = &good, external, internal
}

func (t *table) resolve(service types.NamespacedName) (translate.Protocol, bool) {
	p, ok := t.backends[service]
	return p, ok
}

func vhosts(in []translate.VirtualHost) []*routev3.VirtualHost {
	out := make([]*routev3.VirtualHost, 0, len(in))
	for _, vh := range in {
		out = append(out, build.VirtualHost(vh))
	}
	return out
}

// check finds what Envoy would refuse, such as a header name with a space,
// while it is still known whose it is.
func check(sets ...[]*routev3.VirtualHost) error {
	for _, set := range sets {
		for _, vh := range set {
			if err := vh.ValidateAll(); err != nil {
				return fmt.Errorf("virtual host %s: %w", vh.GetName(), err)
			}
		}
	}
	return nil
}

// whyNot returns why a KIngress isn't served as it is now, or nil.
func (p *part) whyNot() *translate.Refusal { return cmp.Or(p.refusal, p.conflict) }

// refresh makes clusters and routes follow from the parts. It returns the
// KIngresses that have won or lost a host thereby, and the clusters that came
// into use and have no endpoints yet.
func (t *table) refresh() (moved []types.NamespacedName, added []translate.Cluster, err error) {
	if !t.stale {
		return nil, nil, nil
	}
	admitted, moved := t.admit()
	if t.routes, err = routes(admitted); err != nil {
		return nil, nil, err
	}
	added, err = t.use(admitted)
	t.stale = false
	return moved, added, err
}

// admit returns the parts that keep their hosts, oldest first, and the keys of
// those whose conflict is new, another or gone.
func (t *table) admit() ([]*part, []types.NamespacedName) {
	var claims []translate.Claim
	for key, p := range t.parts {
		if p.good != nil {
			claims = append(claims, translate.Claim{Key: key, Created: p.created, Ingress: *p.good})
		}
	}
	kept, conflicts := translate.Admit(claims)
	var moved []types.NamespacedName
	for key, p := range t.parts {
		if was, is := p.conflict, conflicts[key]; (was == nil) != (is == nil) || was != nil && *was != *is {
			p.conflict = is
			moved = append(moved, key)
		}
	}
	admitted := make([]*part, 0, len(kept))
	for _, c := range kept {
		admitted = append(admitted, t.parts[c.Key])
	}
	return admitted, moved
}

func routes(parts []*part) (snapshot.Set, error) {
	var external, internal []*routev3.VirtualHost
	for _, p := range parts {
		external = append(external, p.external...)
		internal = append(internal, p.internal...)
	}
	e, err := snapshot.NewResource(build.Routes(build.External, external))
	if err != nil {
		return nil, err
	}
	i, err := snapshot.NewResource(build.Routes(build.Internal, internal))
	if err != nil {
		return nil, err
	}
	return snapshot.SetOf(e, i), nil
}

// use makes the clusters in use those that parts lead to, and returns the new
// ones.
func (t *table) use(parts []*part) ([]translate.Cluster, error) {
	clusters := map[translate.Cluster]*destination{}
	var added []translate.Cluster
	for _, p := range parts {
		for _, c := range p.good.Clusters() {
			if clusters[c] != nil {
				continue
			}
			d, ok := t.clusters[c]
			if !ok {
				r, err := snapshot.NewResource(build.Cluster(c))
				if err != nil {
					return nil, err
				}
				d = &destination{cluster: r}
				added = append(added, c)
			}
			clusters[c] = d
		}
	}
	t.clusters = clusters
	return added, nil
}

// setPods replaces the pods behind a cluster in use.
func (t *table) setPods(c translate.Cluster, pods []translate.Pod) error {
	d, ok := t.clusters[c]
	if !ok {
		return nil
	}
	d.pods = pods
	return t.place(c, d)
}

// place rebuilds a cluster's endpoints from its pods and the nodes.
func (t *table) place(c translate.Cluster, d *destination) error {
	tiers := translate.Tiers(c.Key(), d.pods, t.nodes)
	r, err := snapshot.NewResource(build.Endpoints(d.cluster.Name, tiers))
	if err != nil {
		return err
	}
	d.endpoints = r
	return nil
}

// placeAll rebuilds every cluster's endpoints.
func (t *table) placeAll() error {
	for c, d := range t.clusters {
		if err := t.place(c, d); err != nil {
			return err
		}
	}
	return nil
}

// clustersOf returns the clusters in use of a revision; two while its protocol
// changes.
func (t *table) clustersOf(revision types.NamespacedName) []translate.Cluster {
	var out []translate.Cluster
	for _, p := range []translate.Protocol{translate.HTTP1, translate.H2C} {
		c := translate.Cluster{Namespace: revision.Namespace, Revision: revision.Name, Protocol: p}
		if t.clusters[c] != nil {
			out = append(out, c)
		}
	}
	return out
}

// state returns the configuration. refresh must have been called.
func (t *table) state() snapshot.State {
	s := snapshot.State{
		Listeners: t.listeners,
		Routes:    t.routes,
		Clusters:  make(snapshot.Set, len(t.clusters)),
		Endpoints: make(snapshot.Set, len(t.clusters)),
	}
	for _, d := range t.clusters {
		s.Clusters[d.cluster.Name] = d.cluster
		s.Endpoints[d.endpoints.Name] = d.endpoints
	}
	return s
}
