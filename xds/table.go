package xds

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"maps"
	"reflect"
	"slices"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/wisp-serving/wisp/config"
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
	gateway translate.Gateway
	envoy   config.Envoy
	domains domains
	// fixed are the listeners that no KIngress changes, secure what is behind each
	// of the others.
	fixed  snapshot.Set
	secure map[translate.Door][]*listenerv3.Filter

	parts map[types.NamespacedName]*part
	// backends and certificates are what parts name, and nothing else.
	backends         map[types.NamespacedName]known
	certificates     map[types.NamespacedName]certificate
	naming, trusting index
	nodes            []translate.Node
	// awaiting are the parts that await addresses.
	awaiting map[types.NamespacedName]bool

	// clusters are those that routes lead to, places those of each Service.
	clusters map[translate.Cluster]*destination
	places   map[types.NamespacedName][]translate.Cluster

	listeners, routes, secrets snapshot.Set
	// stale says that clusters, places and sets don't follow from parts any more.
	stale bool
}

// known is a backend, where it is there.
type known struct {
	backend translate.Backend
	ok      bool
}

// certificate is a Secret's resource, or why there is none.
type certificate struct {
	resource snapshot.Resource
	refusal  *translate.Refusal
}

// destination is a cluster in use.
type destination struct {
	cluster snapshot.Resource
	// endpoints are published where the cluster is discovered.
	endpoints snapshot.Resource
	// pods are a revision's.
	pods []translate.Pod
	// empty says that there is no address in endpoints.
	empty bool
}

func newTable(cfg config.Gateway) (*table, error) {
	t := &table{
		parts:        map[types.NamespacedName]*part{},
		backends:     map[types.NamespacedName]known{},
		certificates: map[types.NamespacedName]certificate{},
		naming:       index{},
		trusting:     index{},
		awaiting:     map[types.NamespacedName]bool{},
		clusters:     map[translate.Cluster]*destination{},
	}
	return t, t.configure(cfg)
}

// configure makes settings hold. All KIngresses must be set again.
func (t *table) configure(cfg config.Gateway) error {
	t.envoy = cfg.Envoy
	t.domains = domains{external: cfg.ExternalDomain, internal: cfg.InternalDomain}
	t.gateway = translate.Gateway{
		InternalDomain:  cfg.InternalDomain,
		InternalAddress: reach("", cfg.Envoy.InternalAddress),
		ExternalNames:   cfg.ExternalNames,
		TLS:             cfg.Envoy.HTTPSAddress != "",
		InternalTLS:     cfg.Envoy.InternalHTTPSAddress != "",

		SharedHost: cfg.SharedHost, SharedNamespaces: cfg.SharedNamespaces,
	}
	t.fixed, t.secure = snapshot.Set{}, map[translate.Door][]*listenerv3.Filter{}
	t.stale = true // even without KIngresses there are routes
	for door, address := range addresses(cfg.Envoy) {
		filters := build.Filters(door, cfg.Envoy.AccessLog)
		if door.TLS() {
			t.secure[door] = filters
			if _, err := build.SecureListener(door, address, filters, nil); err != nil {
				return err
			}
			continue
		}
		l, err := build.Listener(door, address, filters)
		if err != nil {
			return err
		}
		r, err := snapshot.NewResource(l)
		if err != nil {
			return err
		}
		t.fixed[r.Name] = r
	}
	return nil
}

// addresses returns where Envoy listens, by door. One without an address isn't
// there.
func addresses(e config.Envoy) map[translate.Door]string {
	out := map[translate.Door]string{
		translate.External:       e.HTTPAddress,
		translate.Secure:         e.HTTPSAddress,
		translate.Internal:       e.InternalAddress,
		translate.InternalSecure: e.InternalHTTPSAddress,
	}
	maps.DeleteFunc(out, func(_ translate.Door, address string) bool { return address == "" })
	return out
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

// setBackend says what a Service is, or with !ok that there is none, and returns
// the KIngresses that must be set again for it.
func (t *table) setBackend(service types.NamespacedName, b translate.Backend, ok bool) []types.NamespacedName {
	is := known{b, ok}
	if was, had := t.backends[service]; had && reflect.DeepEqual(was, is) {
		return nil
	}
	t.backends[service] = is
	return slices.Collect(maps.Keys(t.naming[service]))
}

// setCertificate says what is in a Secret, or with !ok that there is none, and
// returns the KIngresses that must be set again for it.
func (t *table) setCertificate(key types.NamespacedName, chain, private []byte, ok bool) []types.NamespacedName {
	is := newCertificate(key, chain, private, ok)
	if was, had := t.certificates[key]; had && was.resource.Version == is.resource.Version && same(was.refusal, is.refusal) {
		return nil
	}
	t.certificates[key] = is
	return slices.Collect(maps.Keys(t.trusting[key]))
}

func newCertificate(key types.NamespacedName, chain, private []byte, ok bool) certificate {
	bad := func(format string, args ...any) certificate {
		return certificate{refusal: &translate.Refusal{Reason: translate.ReasonCertificate, Message: fmt.Sprintf("secret "+key.String()+": "+format, args...)}}
	}
	if !ok {
		return bad("there is none of type kubernetes.io/tls")
	}
	if _, err := tls.X509KeyPair(chain, private); err != nil {
		return bad("%v", err)
	}
	r, err := snapshot.NewResource(build.Secret(key, chain, private))
	if err != nil {
		return bad("%v", err)
	}
	return certificate{resource: r}
}

func same(a, b *translate.Refusal) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }

// current reports whether the KIngress is known as ing has it.
func (t *table) current(key types.NamespacedName, ing *v1alpha1.Ingress) bool {
	p, ok := t.parts[key]
	if ing == nil || !ok {
		return ing == nil && !ok
	}
	return p.uid == ing.UID && p.generation == ing.Generation && p.places == placesOf(ing)
}

func placesOf(ing *v1alpha1.Ingress) string { return ing.Annotations[config.RoutesAnnotation] }

// setIngress translates a KIngress, or forgets it where ing is nil. What it names
// must have been set before.
func (t *table) setIngress(key types.NamespacedName, ing *v1alpha1.Ingress) {
	t.stale = true
	old := t.parts[key]
	if old != nil {
		t.naming.remove(old.services, key)
		t.trusting.remove(old.secrets, key)
	}
	if ing == nil {
		delete(t.parts, key)
		delete(t.awaiting, key)
		return
	}
	p := &part{
		uid: ing.UID, generation: ing.Generation, created: ing.CreationTimestamp.Time, places: placesOf(ing),
		services: translate.Services(ing), secrets: translate.Secrets(ing),
	}
	t.naming.add(p.services, key)
	t.trusting.add(p.secrets, key)
	if old != nil && old.uid == ing.UID {
		p.good, p.proved, p.held, p.awaits, p.rejection = old.good, old.proved, old.held, old.awaits, old.rejection
	}
	t.parts[key] = p
	good, refusal := t.translate(ing)
	switch {
	case refusal != nil:
		p.refusal = refusal
	case !good.equal(p.good): // what Envoy has refused, it would refuse again
		p.good, p.held, p.rejection = good, false, nil
		p.awaits = p.proved != nil && t.empty(good) && !t.empty(p.proved)
	}
	if p.awaits {
		t.awaiting[key] = true
	} else {
		delete(t.awaiting, key)
	}
}

// empty reports whether a form leads to a cluster that has no address.
func (t *table) empty(f *form) bool {
	return slices.ContainsFunc(f.ingress.Clusters(), func(c translate.Cluster) bool {
		d := t.clusters[c]
		switch c.Kind {
		case translate.Revision:
			return len(t.nodes) == 0 && (d == nil || len(d.pods) == 0)
		case translate.Service:
			return d == nil || d.empty
		default:
			return false
		}
	})
}

// arrived returns the KIngresses that await nobody any more, which makes them be
// served as they are.
func (t *table) arrived() []types.NamespacedName {
	var out []types.NamespacedName
	for key := range t.awaiting {
		if !t.empty(t.parts[key].good) {
			t.proceed(key)
			out = append(out, key)
		}
	}
	return out
}

// proceed makes a KIngress that awaits addresses be served as it is.
func (t *table) proceed(key types.NamespacedName) {
	delete(t.awaiting, key)
	t.parts[key].awaits, t.stale = false, true
}

// secretsOf returns the Secrets that a KIngress names.
func (t *table) secretsOf(key types.NamespacedName) []types.NamespacedName {
	if p, ok := t.parts[key]; ok {
		return p.secrets
	}
	return nil
}

// form returns what is published of a KIngress, or nil.
func (t *table) form(key types.NamespacedName) *form {
	p, ok := t.parts[key]
	if !ok || p.conflict != nil {
		return nil
	}
	return p.served()
}

// prove says that Envoys have acknowledged f, and reports whether that is the
// KIngress as it is.
func (t *table) prove(key types.NamespacedName, f *form) bool {
	p, ok := t.parts[key]
	if !ok || f == nil {
		return false
	}
	p.proved = f
	return f == p.good
}

// hold makes the last form that Envoys have acknowledged be served of a KIngress
// until release, for the given reason or, with nil, for now. It must be there.
func (t *table) hold(key types.NamespacedName, rejection *translate.Refusal) {
	p := t.parts[key]
	p.held, p.rejection, t.stale = true, rejection, true
}

// release makes a KIngress be served as it is, if it is there, and reports that.
func (t *table) release(key types.NamespacedName) bool {
	p, ok := t.parts[key]
	if !ok || !p.held {
		return false
	}
	p.held, p.rejection, t.stale = false, nil, true
	return true
}

func (t *table) translate(ing *v1alpha1.Ingress) (*form, *translate.Refusal) {
	good, refusal := translate.Translate(ing, translate.World{
		Gateway: t.gateway,
		Backend: func(service types.NamespacedName) (translate.Backend, bool) {
			b := t.backends[service]
			return b.backend, b.ok
		},
		Certificate: func(secret types.NamespacedName) *translate.Refusal { return t.certificates[secret].refusal },
	})
	if refusal != nil {
		return nil, refusal
	}
	var secrets []snapshot.Resource
	for _, c := range good.Certificates {
		secrets = append(secrets, t.certificates[c.Secret].resource)
	}
	f, err := newForm(good, t.envoy, t.secure, secrets)
	if err != nil {
		return nil, &translate.Refusal{Reason: translate.ReasonInvalid, Message: err.Error()}
	}
	return f, nil
}

// refresh makes clusters and sets follow from the parts. It returns the
// KIngresses that have won or lost a host thereby, and the clusters that came
// into use and have no endpoints yet.
func (t *table) refresh() (moved []types.NamespacedName, added []translate.Cluster, err error) {
	if !t.stale {
		return nil, nil, nil
	}
	admitted, shared, moved := t.admit()
	if err := t.setRoutes(admitted, shared); err != nil {
		return nil, nil, err
	}
	if err := t.setListeners(admitted); err != nil {
		return nil, nil, err
	}
	if added, err = t.use(admitted); err != nil {
		return nil, nil, err
	}
	t.forget()
	t.stale = false
	return moved, added, nil
}

// admit returns the parts that keep their hosts, oldest first, the shared host's
// routes, and the keys of the parts whose conflict is new, another or gone.
func (t *table) admit() ([]*part, []translate.Route, []types.NamespacedName) {
	var claims []translate.Claim
	for key, p := range t.parts {
		if f := p.served(); f != nil {
			claims = append(claims, translate.Claim{Key: key, Created: p.created, Ingress: f.ingress})
		}
	}
	kept, conflicts := translate.Admit(claims)
	shared, crowds := translate.Share(kept)
	var moved []types.NamespacedName
	for key, p := range t.parts {
		is, crowded := conflicts[key], crowds[key]
		if !same(p.conflict, is) || !same(p.crowded, crowded) {
			p.conflict, p.crowded = is, crowded
			moved = append(moved, key)
		}
	}
	admitted := make([]*part, 0, len(kept))
	for _, c := range kept {
		admitted = append(admitted, t.parts[c.Key])
	}
	return admitted, shared, moved
}

func (t *table) setRoutes(parts []*part, shared []translate.Route) error {
	t.routes = snapshot.Set{}
	for door := range addresses(t.envoy) {
		var vhosts [][]byte
		for _, p := range parts {
			vhosts = append(vhosts, p.served().vhosts[door]...)
		}
		if door == translate.External && len(shared) > 0 {
			built, err := build.Encode(sharedHost(t.gateway.SharedHost, shared))
			if err != nil {
				return err
			}
			vhosts = append(vhosts, built)
		}
		r, err := snapshot.NewResource(build.Routes(door, vhosts))
		if err != nil {
			return err
		}
		t.routes[r.Name] = r
	}
	return nil
}

// setListeners sets the listeners and the secrets that they use.
func (t *table) setListeners(parts []*part) error {
	t.secrets, t.listeners = snapshot.Set{}, maps.Clone(t.fixed)
	for _, p := range parts {
		for _, r := range p.served().secrets {
			t.secrets[r.Name] = r
		}
	}
	for door, filters := range t.secure {
		var chains []*listenerv3.FilterChain
		for _, p := range parts {
			chains = append(chains, p.served().chains[door]...)
		}
		l, err := build.SecureListener(door, addresses(t.envoy)[door], filters, chains)
		if err != nil {
			return err
		}
		r, err := snapshot.NewResource(l)
		if err != nil {
			return err
		}
		t.listeners[r.Name] = r
	}
	return nil
}

// use makes the clusters in use those that parts lead to, and returns the new
// ones whose addresses must be set.
func (t *table) use(parts []*part) ([]translate.Cluster, error) {
	clusters := map[translate.Cluster]*destination{}
	t.places = map[types.NamespacedName][]translate.Cluster{}
	var added []translate.Cluster
	for _, p := range parts {
		for _, c := range p.leads() {
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
			}
			clusters[c] = d
			if c.Discovered() {
				t.places[c.Key()] = append(t.places[c.Key()], c)
				if !ok {
					added = append(added, c)
				}
			}
		}
	}
	t.clusters = clusters
	return added, nil
}

// forget drops what no part names any more.
func (t *table) forget() {
	maps.DeleteFunc(t.backends, func(service types.NamespacedName, _ known) bool { return t.naming[service] == nil })
	maps.DeleteFunc(t.certificates, func(secret types.NamespacedName, _ certificate) bool { return t.trusting[secret] == nil })
}

// setPods replaces the pods behind a revision's cluster in use.
func (t *table) setPods(c translate.Cluster, pods []translate.Pod) error {
	d, ok := t.clusters[c]
	if !ok {
		return nil
	}
	d.pods = pods
	return d.place(translate.Tiers(c.Key(), pods, t.nodes))
}

// setAddresses replaces the addresses behind a Service's cluster in use.
func (t *table) setAddresses(c translate.Cluster, addresses []translate.Endpoint) error {
	d, ok := t.clusters[c]
	if !ok {
		return nil
	}
	return d.place([][]translate.Endpoint{addresses})
}

func (d *destination) place(tiers [][]translate.Endpoint) error {
	r, err := snapshot.NewResource(build.Endpoints(d.cluster.Name, tiers))
	if err != nil {
		return err
	}
	d.endpoints, d.empty = r, len(slices.Concat(tiers...)) == 0
	return nil
}

// placeAll rebuilds every revision's endpoints.
func (t *table) placeAll() error {
	for c, d := range t.clusters {
		if c.Kind != translate.Revision {
			continue
		}
		if err := t.setPods(c, d.pods); err != nil {
			return err
		}
	}
	return nil
}

// census counts the KIngresses by whether they are served as they ask.
func (t *table) census() map[string]int {
	out := map[string]int{}
	for _, p := range t.parts {
		switch {
		case p.rejection != nil:
			out["rejected"]++
		case p.whyNot() != nil:
			out["refused"]++
		default:
			out["served"]++
		}
	}
	return out
}

// state returns the configuration. refresh must have been called.
func (t *table) state() snapshot.State {
	s := snapshot.State{
		Listeners: t.listeners,
		Routes:    t.routes,
		Secrets:   t.secrets,
		Clusters:  make(snapshot.Set, len(t.clusters)),
		Endpoints: make(snapshot.Set, len(t.clusters)),
	}
	for c, d := range t.clusters {
		s.Clusters[d.cluster.Name] = d.cluster
		if c.Discovered() {
			s.Endpoints[d.endpoints.Name] = d.endpoints
		}
	}
	return s
}
