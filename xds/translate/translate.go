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
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/networking/pkg/http/header"
	"knative.dev/networking/pkg/ingress"
)

// Protocol is what a revision speaks on its nodes' port.
type Protocol string

// The protocols of a revision.
const (
	HTTP1 Protocol = "http1"
	H2C   Protocol = "h2c"
)

// Cluster is one revision as a destination. It is comparable: two routes with
// equal Clusters share one.
type Cluster struct {
	Namespace string   `json:"namespace"`
	Revision  string   `json:"revision"`
	Protocol  Protocol `json:"protocol"`
}

// Key returns the revision's key.
func (c Cluster) Key() types.NamespacedName {
	return types.NamespacedName{Namespace: c.Namespace, Name: c.Revision}
}

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
	// Path is a prefix.
	Path string `json:"path"`
	// Match are headers that a request must have. An empty value means any.
	Match       []Header `json:"match,omitempty"`
	RewriteHost string   `json:"rewriteHost,omitempty"`
	Splits      []Split  `json:"splits"`
}

// VirtualHost is a set of hosts, without ports, with the same routes.
type VirtualHost struct {
	Name   string   `json:"name"`
	Hosts  []string `json:"hosts"`
	Routes []Route  `json:"routes"`
}

// Probe is a request that a proxy answers with Ingress.Hash in K-Network-Hash
// once it has the KIngress.
type Probe struct {
	// Internal says that the cluster-local listener is meant.
	Internal bool     `json:"internal,omitempty"`
	Host     string   `json:"host"`
	Path     string   `json:"path"`
	Headers  []Header `json:"headers,omitempty"`
}

// Ingress is a translated KIngress.
type Ingress struct {
	// Hash is Knative's hash of the KIngress (networking/pkg/ingress).
	Hash string `json:"hash"`
	// External and Internal are what the two listeners serve. Hosts that are
	// reachable from outside are also reachable from inside, never the reverse.
	External []VirtualHost `json:"external,omitempty"`
	Internal []VirtualHost `json:"internal,omitempty"`
	// Probes prove the KIngress, one for each listener that serves it.
	Probes []Probe `json:"probes,omitempty"`
}

// Clusters returns the destinations of all routes, each once, sorted.
func (i Ingress) Clusters() []Cluster {
	seen := map[Cluster]bool{}
	for _, vh := range slices.Concat(i.External, i.Internal) {
		for _, r := range vh.Routes {
			for _, s := range r.Splits {
				seen[s.Cluster] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(seen), func(a, b Cluster) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Revision, b.Revision))
	})
}

// Resolver returns the protocol of a revision of Wisp, or false where the
// Service isn't one.
type Resolver func(service types.NamespacedName) (Protocol, bool)

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

// Translate translates ing, which it doesn't change. What can't be served as
// asked makes the whole KIngress a *Refusal: half of one would answer some
// requests wrongly.
func Translate(ing *v1alpha1.Ingress, resolve Resolver) (Ingress, *Refusal) {
	ing = ing.DeepCopy()
	for i := range ing.Spec.Rules {
		if ing.Spec.Rules[i].HTTP == nil { // SetDefaults takes it for granted
			return Ingress{}, refuse(ReasonInvalid, "spec.rules[%d].http is missing", i)
		}
	}
	ing.SetDefaults(context.Background())
	if r := check(ing, resolve); r != nil {
		return Ingress{}, r
	}
	probes := probes(ing)
	hash, err := ingress.InsertProbe(ing)
	if err != nil {
		return Ingress{}, refuse(ReasonInvalid, "%v", err)
	}
	out := Ingress{Hash: hash, Probes: probes}
	var external, internal listener
	for i, rule := range ing.Spec.Rules {
		vh := VirtualHost{
			Name:   fmt.Sprintf("%s/%s/%d", ing.Namespace, ing.Name, i),
			Routes: routes(rule.HTTP.Paths, resolve),
		}
		internal.add(vh, rule.Hosts)
		if rule.Visibility == v1alpha1.IngressVisibilityExternalIP {
			external.add(vh, rule.Hosts)
		}
	}
	out.External, out.Internal = external.vhosts, internal.vhosts
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
func routes(paths []v1alpha1.HTTPIngressPath, resolve Resolver) []Route {
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
		out = append(out, route(p, resolve))
	}
	return out
}

func route(p v1alpha1.HTTPIngressPath, resolve Resolver) Route {
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
		key := service(s)
		protocol, _ := resolve(key)
		r.Splits = append(r.Splits, Split{
			Cluster: Cluster{Namespace: key.Namespace, Revision: key.Name, Protocol: protocol},
			Weight:  uint32(s.Percent),
			Set:     headers(p.AppendHeaders, s.AppendHeaders),
		})
	}
	return r
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

// probes returns one probe for each listener that serves ing, by the most
// general path of the first rule there.
func probes(ing *v1alpha1.Ingress) []Probe {
	var external, internal []Probe
	for _, rule := range ing.Spec.Rules {
		general := slices.MinFunc(rule.HTTP.Paths, func(a, b v1alpha1.HTTPIngressPath) int {
			return cmp.Or(cmp.Compare(len(a.Headers), len(b.Headers)), cmp.Compare(len(a.Path), len(b.Path)))
		})
		match := make(map[string]string, len(general.Headers))
		for name, m := range general.Headers {
			match[name] = cmp.Or(m.Exact, "any")
		}
		p := Probe{
			Host:    strings.ToLower(rule.Hosts[0]),
			Path:    path.Join("/", general.Path, "healthz"),
			Headers: headers(match),
		}
		if rule.Visibility == v1alpha1.IngressVisibilityExternalIP {
			external = append(external, p)
		} else {
			p.Internal = true
			internal = append(internal, p)
		}
	}
	return append(external[:min(1, len(external))], internal[:min(1, len(internal))]...)
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
