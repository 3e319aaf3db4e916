// Package translate turns a KIngress into what a proxy must do for it, in terms
// that know neither Kubernetes' caches nor Envoy's messages. It also says which
// addresses stand behind a revision, and which KIngress loses when two want one
// host.
//
// All of it is pure: the same input gives the same output, byte for byte, and
// nothing is read, kept or logged. Package xds calls it from one goroutine and
// hands the result to package build.
package translate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/networking/pkg/http/header"
	"knative.dev/networking/pkg/ingress"
)

// Header is a header's name, in lower case, and its value.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Split is one destination of a route.
type Split struct {
	Cluster Cluster `json:"cluster"`
	// Weight is a percentage above 0.
	Weight uint32 `json:"weight"`
	// Set are headers that replace what the client sent.
	Set []Header `json:"set,omitempty"`
}

// Route sends the requests that match Path and Match to Splits. Of several
// matching routes the first one counts.
type Route struct {
	// Path is a prefix, or all of it if Exact.
	Path  string `json:"path"`
	Exact bool   `json:"exact,omitempty"`
	// Method is what a request must have; empty means any.
	Method string `json:"method,omitempty"`
	// Match are headers that a request must have. An empty value means any.
	Match       []Header `json:"match,omitempty"`
	RewriteHost string   `json:"rewriteHost,omitempty"`
	Splits      []Split  `json:"splits,omitempty"`
	// Redirect answers 301 to the same URL by HTTPS, in place of Splits.
	Redirect bool `json:"redirect,omitempty"`
	// Hash is what an answer carries in K-Network-Hash, where this is the probe's
	// route.
	Hash string `json:"hash,omitempty"`
}

// VirtualHost is a set of hosts, without ports, with the same routes.
type VirtualHost struct {
	Name   string   `json:"name"`
	Hosts  []string `json:"hosts"`
	Routes []Route  `json:"routes"`
}

// Certificate is what a TLS connection is served with, by the name that its
// client asks for.
type Certificate struct {
	Door   Door                 `json:"door"`
	Hosts  []string             `json:"hosts"`
	Secret types.NamespacedName `json:"secret"`
}

// Door is where a request comes in.
type Door string

// The doors of the gateway.
const (
	External Door = "external"
	Secure   Door = "external-tls"
	Internal Door = "internal"
	// InternalSecure takes cluster-local hosts by TLS.
	InternalSecure Door = "internal-tls"
)

// TLS reports whether connections at the door are encrypted.
func (d Door) TLS() bool { return d == Secure || d == InternalSecure }

// Probe is a request that a proxy answers with Ingress.Hash in K-Network-Hash
// once it has the KIngress.
type Probe struct {
	Door    Door     `json:"door"`
	Host    string   `json:"host"`
	Path    string   `json:"path"`
	Headers []Header `json:"headers,omitempty"`
	// Inner says that it goes on to the cluster-local listener, whose 404 means
	// that there is no such host yet.
	Inner bool `json:"inner,omitempty"`
}

// Ingress is a translated KIngress.
type Ingress struct {
	// Hash is Knative's hash of the KIngress (networking/pkg/ingress).
	Hash string `json:"hash"`
	// External, Secure and Internal are what comes in by each door. Hosts that
	// are reachable from outside are also reachable from inside, never the
	// reverse. Internal has all of them.
	External       []VirtualHost `json:"external,omitempty"`
	Secure         []VirtualHost `json:"secure,omitempty"`
	Internal       []VirtualHost `json:"internal,omitempty"`
	InternalSecure []VirtualHost `json:"internalSecure,omitempty"`
	// Certificates are those of the hosts of Secure and InternalSecure.
	Certificates []Certificate `json:"certificates,omitempty"`
	// Shared are its places on the shared host, where they are led by the routes of
	// External; SharedRefusal is why it has none, or nil.
	Shared        []Place  `json:"shared,omitempty"`
	SharedRefusal *Refusal `json:"sharedRefusal,omitempty"`
	// Probes prove the KIngress, one for each door that it has.
	Probes []Probe `json:"probes,omitempty"`
}

// Clusters returns the destinations of all routes, each once, sorted.
func (i Ingress) Clusters() []Cluster {
	seen := map[Cluster]bool{}
	for _, vh := range i.Internal { // which has every route
		for _, r := range vh.Routes {
			for _, s := range r.Splits {
				seen[s.Cluster] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(seen), compareClusters)
}

// World is what a translation looks up.
type World struct {
	Gateway Gateway
	// Backend returns what is known of a Service, or false where there is none.
	Backend func(service types.NamespacedName) (Backend, bool)
	// Certificate returns why a Secret is no certificate, or nil.
	Certificate func(secret types.NamespacedName) *Refusal
}

// Services returns the Services that ing's splits name, each once, sorted.
func Services(ing *v1alpha1.Ingress) []types.NamespacedName {
	seen := map[types.NamespacedName]bool{}
	for _, rule := range ing.Spec.Rules {
		if rule.HTTP == nil {
			continue
		}
		for _, p := range rule.HTTP.Paths {
			for _, s := range p.Splits {
				seen[service(s)] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(seen), compareKeys)
}

// Secrets returns the Secrets that ing's certificates are in, each once, sorted.
func Secrets(ing *v1alpha1.Ingress) []types.NamespacedName {
	seen := map[types.NamespacedName]bool{}
	for _, t := range ing.Spec.TLS {
		seen[secret(ing, t)] = true
	}
	return slices.SortedFunc(maps.Keys(seen), compareKeys)
}

// Translate translates ing, which it doesn't change. What can't be served as
// asked makes the whole KIngress a *Refusal: half of one would answer some
// requests wrongly.
func Translate(ing *v1alpha1.Ingress, w World) (Ingress, *Refusal) {
	ing = ing.DeepCopy()
	for i := range ing.Spec.Rules {
		if ing.Spec.Rules[i].HTTP == nil { // SetDefaults takes it for granted
			return Ingress{}, refuse(ReasonInvalid, "spec.rules[%d].http is missing", i)
		}
	}
	ing.SetDefaults(context.Background())
	for i, t := range ing.Spec.TLS { // Knative documents this default, and has it nowhere
		ing.Spec.TLS[i].SecretNamespace = cmp.Or(t.SecretNamespace, ing.Namespace)
	}
	if r := check(ing, w); r != nil {
		return Ingress{}, r
	}
	clusters, refusal := resolve(ing, w)
	if refusal != nil {
		return Ingress{}, refusal
	}
	certificates := certificates(ing, w.Gateway)
	probes := probes(ing, clusters, certificates)
	hash, err := ingress.InsertProbe(ing)
	if err != nil {
		return Ingress{}, refuse(ReasonInvalid, "%v", err)
	}
	out := Ingress{Hash: hash, Probes: probes, Certificates: certificates}
	out.Shared, out.SharedRefusal = shared(ing, w.Gateway)
	secured := doors(certificates)
	var external, secure, internal, internalSecure listener
	for i, rule := range ing.Spec.Rules {
		vh := VirtualHost{
			Name:   fmt.Sprintf("%s/%s/%d", ing.Namespace, ing.Name, i),
			Routes: routes(rule.HTTP.Paths, clusters, hash),
		}
		internal.add(vh, rule.Hosts)
		if secured[InternalSecure] {
			internalSecure.add(vh, rule.Hosts)
		}
		if rule.Visibility != v1alpha1.IngressVisibilityExternalIP {
			continue
		}
		if secured[Secure] {
			secure.add(vh, rule.Hosts)
		}
		if redirects(ing) {
			vh.Routes = redirected(vh.Routes)
		}
		external.add(vh, rule.Hosts)
	}
	out.External, out.Secure = external.vhosts, secure.vhosts
	out.Internal, out.InternalSecure = internal.vhosts, internalSecure.vhosts
	return out, nil
}

// listener collects the virtual hosts of one listener.
type listener struct {
	vhosts []VirtualHost
	taken  map[string]bool
}

// add appends vh for those of hosts that no earlier rule has: the first rule
// takes precedence (v1alpha1.IngressRule), and Envoy refuses a host that comes
// twice.
func (l *listener) add(vh VirtualHost, hosts []string) {
	if l.taken == nil {
		l.taken = map[string]bool{}
	}
	for _, h := range hosts {
		if h = strings.ToLower(h); !l.taken[h] {
			l.taken[h] = true
			vh.Hosts = append(vh.Hosts, h)
		}
	}
	if len(vh.Hosts) > 0 {
		l.vhosts = append(l.vhosts, vh)
	}
}

// routes returns the routes of a rule's paths in the order in which they are
// tried: probes first, then the longest path, then the most headers.
func routes(paths []v1alpha1.HTTPIngressPath, to destinations, hash string) []Route {
	sorted := slices.Clone(paths)
	slices.SortStableFunc(sorted, func(a, b v1alpha1.HTTPIngressPath) int {
		return cmp.Or(
			cmp.Compare(boolInt(isProbe(b)), boolInt(isProbe(a))),
			cmp.Compare(len(b.Path), len(a.Path)),
			cmp.Compare(len(b.Headers), len(a.Headers)),
		)
	})
	out := make([]Route, 0, len(sorted))
	for _, p := range sorted {
		r := route(p, to)
		if isProbe(p) {
			r.Hash = hash
		}
		out = append(out, r)
	}
	return out
}

func route(p v1alpha1.HTTPIngressPath, to destinations) Route {
	r := Route{Path: cmp.Or(p.Path, "/"), RewriteHost: p.RewriteHost}
	match := make(map[string]string, len(p.Headers))
	for name, m := range p.Headers {
		match[name] = m.Exact
	}
	r.Match = headers(match)
	for _, s := range p.Splits {
		if s.Percent == 0 {
			continue
		}
		r.Splits = append(r.Splits, Split{
			Cluster: to[backendOf(s)],
			Weight:  uint32(s.Percent),
			Set:     headers(p.AppendHeaders, s.AppendHeaders),
		})
	}
	return r
}

// acmePath is where a certificate authority looks for the answer to its
// challenge, by plain HTTP: before there is a certificate, nothing else works.
const acmePath = "/.well-known/acme-challenge/"

// redirected returns those of routes that must go on by plain HTTP, the probe's
// and the ACME challenges', and one that redirects all else.
func redirected(routes []Route) []Route {
	var out []Route
	for _, r := range routes {
		if r.Hash != "" || strings.HasPrefix(r.Path, acmePath) {
			out = append(out, r)
		}
	}
	return append(out, Route{Path: "/", Redirect: true})
}

// backend is a Service and one of its ports.
type backend struct {
	service types.NamespacedName
	port    intstr.IntOrString
}

func backendOf(s v1alpha1.IngressBackendSplit) backend { return backend{service(s), s.ServicePort} }

// destinations are the clusters of backends.
type destinations map[backend]Cluster

// resolve returns where ing's splits lead. One without a share of the traffic
// must be there as well: it is about to get one.
func resolve(ing *v1alpha1.Ingress, w World) (destinations, *Refusal) {
	out := destinations{}
	var missing []string
	for _, rule := range ing.Spec.Rules {
		for _, p := range rule.HTTP.Paths {
			for _, s := range p.Splits {
				to := backendOf(s)
				b, ok := w.Backend(to.service)
				if !ok {
					missing = append(missing, to.service.Name)
					continue
				}
				c, err := w.Gateway.cluster(to.service, b, to.port)
				if r := (*Refusal)(nil); errors.As(err, &r) {
					return nil, r
				}
				if err != nil {
					return nil, refuse(ReasonNoBackend, "%v", err)
				}
				out[to] = c
			}
		}
	}
	slices.Sort(missing)
	switch missing = slices.Compact(missing); len(missing) {
	case 0:
		return out, nil
	case 1:
		return nil, refuse(ReasonNoBackend, "there is no backend service %s", missing[0])
	default:
		return nil, refuse(ReasonNoBackend, "there are no backend services %s", strings.Join(missing, ", "))
	}
}

func service(s v1alpha1.IngressBackendSplit) types.NamespacedName {
	return types.NamespacedName{Namespace: s.ServiceNamespace, Name: s.ServiceName}
}

// headers returns the maps' entries sorted by name. Of one name the last map's
// value counts.
func headers(from ...map[string]string) []Header {
	all := map[string]string{}
	for _, m := range from {
		for _, name := range slices.Sorted(maps.Keys(m)) { // two may differ in case only
			all[strings.ToLower(name)] = m[name]
		}
	}
	var out []Header
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, Header{Name: name, Value: all[name]})
	}
	return out
}

func isProbe(p v1alpha1.HTTPIngressPath) bool {
	return p.Headers[header.HashKey].Exact == header.HashValueOverride
}

// probes returns one probe for each door of ing, by the most general path of the
// first rule there.
func probes(ing *v1alpha1.Ingress, to destinations, certificates []Certificate) []Probe {
	byDoor := map[Door]Probe{}
	first := func(d Door, p Probe) {
		if _, ok := byDoor[d]; !ok {
			p.Door = d
			byDoor[d] = p
		}
	}
	for _, rule := range ing.Spec.Rules {
		plain, secure := External, Secure
		if rule.Visibility != v1alpha1.IngressVisibilityExternalIP {
			plain, secure = Internal, InternalSecure
		}
		p := probe(rule, to)
		first(plain, p)
		// A name that has a certificate, which rule's first need not have.
		if host, ok := certified(certificates, secure, rule.Hosts); ok {
			p.Host = host
			first(secure, p)
		}
	}
	var out []Probe
	for _, d := range []Door{External, Secure, Internal, InternalSecure} {
		if p, ok := byDoor[d]; ok {
			out = append(out, p)
		}
	}
	return out
}

// certified returns the first of hosts for which there is a certificate at a door.
func certified(certificates []Certificate, d Door, hosts []string) (string, bool) {
	for _, h := range hosts {
		h = strings.ToLower(h)
		if slices.ContainsFunc(certificates, func(c Certificate) bool { return c.Door == d && slices.Contains(c.Hosts, h) }) {
			return h, true
		}
	}
	return "", false
}

func probe(rule v1alpha1.IngressRule, to destinations) Probe {
	general := slices.MinFunc(rule.HTTP.Paths, func(a, b v1alpha1.HTTPIngressPath) int {
		return cmp.Or(cmp.Compare(len(a.Headers), len(b.Headers)), cmp.Compare(len(a.Path), len(b.Path)))
	})
	match := make(map[string]string, len(general.Headers))
	for name, m := range general.Headers {
		match[name] = cmp.Or(m.Exact, "any")
	}
	return Probe{
		Host:    strings.ToLower(rule.Hosts[0]),
		Path:    path.Join("/", general.Path, "healthz"),
		Headers: headers(match),
		Inner: slices.ContainsFunc(general.Splits, func(s v1alpha1.IngressBackendSplit) bool {
			return to[backendOf(s)].Kind == Self
		}),
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func compareKeys(a, b types.NamespacedName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
