package translate

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"

	"github.com/wisp-serving/wisp/config"
)

// Place is where on the gateway's shared host a KIngress asks to be served too.
type Place struct {
	// Method is the one that a request must have; empty means any.
	Method string `json:"method,omitempty"`
	// Path is the whole path of a request, or what it begins with if Prefix.
	Path   string `json:"path"`
	Prefix bool   `json:"prefix,omitempty"`
}

// String returns the place as config.RoutesAnnotation has it.
func (p Place) String() string {
	s := p.Path
	if p.Prefix {
		s += "*"
	}
	return strings.TrimPrefix(p.Method+" "+s, " ")
}

// overlaps reports whether there is a request that both places want.
func (p Place) overlaps(q Place) bool {
	if p.Method != "" && q.Method != "" && p.Method != q.Method {
		return false
	}
	return p.Prefix && strings.HasPrefix(q.Path, p.Path) || q.Prefix && strings.HasPrefix(p.Path, q.Path) || p.Path == q.Path
}

// maxPlaces bounds those of one KIngress. Each is compared with all others.
const maxPlaces = 32

// parsePlaces reads what config.RoutesAnnotation says: places separated by commas
// or line breaks, each "METHOD /path", "/path" or, for all below it, "/path/*".
func parsePlaces(text string) ([]Place, error) {
	var out []Place
	for _, entry := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '\n' }) {
		if entry = strings.TrimSpace(entry); entry == "" {
			continue
		}
		p, err := parsePlace(entry)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	switch n := len(out); {
	case n == 0:
		return nil, fmt.Errorf("%s names no route", config.RoutesAnnotation)
	case n > maxPlaces:
		return nil, fmt.Errorf("%s has %d routes, must have at most %d", config.RoutesAnnotation, n, maxPlaces)
	}
	return out, nil
}

func parsePlace(entry string) (Place, error) {
	var p Place
	fields := strings.Fields(entry)
	if len(fields) == 2 {
		p.Method, fields = fields[0], fields[1:]
	}
	wrong := func(rule string) (Place, error) {
		return Place{}, fmt.Errorf("%s has %q, must be %s", config.RoutesAnnotation, entry, rule)
	}
	if len(fields) != 1 || strings.Trim(p.Method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return wrong("METHOD /path or /path")
	}
	p.Path, p.Prefix = strings.CutSuffix(fields[0], "*")
	switch {
	case p.Prefix && !strings.HasSuffix(p.Path, "/"):
		return wrong("/path/* to mean all below /path")
	case !strings.HasPrefix(p.Path, "/"), strings.ContainsAny(p.Path, "?#*%\\"), strings.ContainsFunc(p.Path, func(r rune) bool { return r <= ' ' || r > '~' }):
		return wrong("a path that begins with /, as a request has it before its ?, in letters that need no escaping")
	case cleaned(p.Path) != p.Path:
		return wrong("the path " + cleaned(p.Path) + ", which is the same")
	}
	return p, nil
}

// cleaned is path.Clean, but for a slash at the end.
func cleaned(p string) string {
	c := path.Clean(p)
	if strings.HasSuffix(p, "/") && c != "/" {
		c += "/"
	}
	return c
}

// shared returns where ing asks to be served on the shared host, nil for nowhere,
// or why it can't be.
func shared(ing *v1alpha1.Ingress, g Gateway) ([]Place, *Refusal) {
	text, ok := ing.Annotations[config.RoutesAnnotation]
	if !ok {
		return nil, nil
	}
	if g.SharedHost == "" || !slices.Contains(g.SharedNamespaces, ing.Namespace) && !slices.Contains(g.SharedNamespaces, "*") {
		return nil, refuse(ReasonNotSupported, "%s: the gateway's settings (sharedHost) don't allow it in namespace %s", config.RoutesAnnotation, ing.Namespace)
	}
	places, err := parsePlaces(text)
	if err != nil {
		return nil, refuse(ReasonInvalid, "%v", err)
	}
	if redirects(ing) {
		return nil, refuse(ReasonNotSupported, "%s: the shared host has no TLS, to which this ingress redirects", config.RoutesAnnotation)
	}
	if !slices.ContainsFunc(ing.Spec.Rules, isExternal) {
		return nil, refuse(ReasonNotSupported, "%s: the ingress is cluster-local", config.RoutesAnnotation)
	}
	return places, nil
}

func isExternal(r v1alpha1.IngressRule) bool {
	return r.Visibility == v1alpha1.IngressVisibilityExternalIP
}

// at returns the routes that lead at p to where a host's own routes do. Those of a
// part of the host, and the probe's, stay the host's.
func at(p Place, host []Route) []Route {
	var out []Route
	for _, r := range host {
		if r.Path == "/" && r.Hash == "" {
			r.Path, r.Exact, r.Method = p.Path, !p.Prefix, p.Method
			out = append(out, r)
		}
	}
	return out
}

// Share returns the routes of the shared host, in the order in which they are
// tried, given the admitted claims, oldest first, and a refusal for each claim
// that wants a place which an older one has a part in. Such a claim has none of
// its places, and keeps its own hosts.
func Share(claims []Claim) ([]Route, map[types.NamespacedName]*Refusal) {
	type taken struct {
		Place
		by     types.NamespacedName
		routes []Route
	}
	var all []taken
	refused := map[types.NamespacedName]*Refusal{}
	for _, c := range claims {
		conflict := func(p Place) bool {
			i := slices.IndexFunc(all, func(t taken) bool { return t.overlaps(p) })
			if i >= 0 {
				refused[c.Key] = refuse(ReasonRouteConflict, "route %s overlaps with %s of the older ingress %s", p, all[i], all[i].by)
			}
			return i >= 0
		}
		if slices.ContainsFunc(c.Ingress.Shared, conflict) {
			continue
		}
		for _, p := range c.Ingress.Shared {
			all = append(all, taken{p, c.Key, at(p, c.Ingress.ofShared())})
		}
	}
	slices.SortStableFunc(all, func(a, b taken) int {
		return cmp.Or(
			cmp.Compare(boolInt(a.Prefix), boolInt(b.Prefix)),
			cmp.Compare(len(b.Path), len(a.Path)),
			cmp.Compare(boolInt(a.Method == ""), boolInt(b.Method == "")),
			cmp.Compare(a.Place.String(), b.Place.String()),
		)
	})
	var out []Route
	for _, t := range all {
		out = append(out, t.routes...)
	}
	return out, refused
}

// ofShared returns the routes that the shared host takes up: those of the first
// host that is reachable from outside, which is the Service's own, without a tag.
func (i Ingress) ofShared() []Route {
	if len(i.External) == 0 {
		return nil
	}
	return i.External[0].Routes
}
