package xds

import (
	"fmt"
	"reflect"
	"slices"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds/build"
	"github.com/wisp-serving/wisp/xds/snapshot"
	"github.com/wisp-serving/wisp/xds/translate"
	"k8s.io/apimachinery/pkg/types"
)

// part is one KIngress.
type part struct {
	uid        types.UID
	generation int64
	// places is its annotation about the shared host, which has no generation.
	places  string
	created time.Time
	// services and secrets are what it names.
	services, secrets []types.NamespacedName
	// good is the last translation that succeeded, or nil. It stays in use while
	// a newer one is refused.
	// See RATIONALE.md "Why does a refused KIngress keep its last routes?".
	good *form
	// proved is the last form that every Envoy has acknowledged, or nil.
	proved *form
	// held says that proved is served in good's place, for Envoy's sake, and awaits
	// that it is so because good leads to nobody yet.
	held, awaits bool
	// rejection is Envoy's word on good, where that is what it refused, or nil.
	rejection *translate.Refusal
	// refusal is why the KIngress as it is now isn't served, or nil.
	refusal *translate.Refusal
	// conflict is why another KIngress is served in its place, or nil, and crowded
	// why others have its places on the shared host.
	conflict, crowded *translate.Refusal
}

// form is a translated KIngress with its messages, which are built once. It is
// never changed.
type form struct {
	ingress translate.Ingress
	vhosts  map[translate.Door][][]byte // as build.Encode has them
	chains  map[translate.Door][]*listenerv3.FilterChain
	secrets []snapshot.Resource
	// httpsPort and accessLog are the settings that messages depend on.
	httpsPort uint16
	accessLog bool
}

// newForm builds ing's messages. It finds what Envoy would refuse, such as a
// header name with a space, while it is still known whose it is.
func newForm(ing translate.Ingress, e config.Envoy, secure map[translate.Door][]*listenerv3.Filter, secrets []snapshot.Resource) (*form, error) {
	f := &form{
		ingress: ing, vhosts: map[translate.Door][][]byte{}, secrets: secrets,
		httpsPort: e.HTTPSPort, accessLog: e.AccessLog,
		chains: map[translate.Door][]*listenerv3.FilterChain{},
	}
	known := map[string][]byte{} // most hosts are alike at several doors
	for door, vhosts := range map[translate.Door][]translate.VirtualHost{
		translate.External:       ing.External,
		translate.Secure:         ing.Secure,
		translate.Internal:       ing.Internal,
		translate.InternalSecure: ing.InternalSecure,
	} {
		for _, vh := range vhosts {
			built, err := build.Encode(build.VirtualHost(vh, uint32(e.HTTPSPort)))
			if err != nil {
				return nil, err
			}
			if same, ok := known[string(built)]; ok {
				built = same
			}
			known[string(built)] = built
			f.vhosts[door] = append(f.vhosts[door], built)
		}
	}
	// Built for all together later, when it is nobody's in particular.
	if routes, _ := translate.Share([]translate.Claim{{Ingress: ing}}); len(routes) > 0 {
		if err := sharedHost("shared.invalid", routes).ValidateAll(); err != nil {
			return nil, fmt.Errorf("routes on the shared host: %w", err)
		}
	}
	for _, c := range ing.Certificates {
		f.chains[c.Door] = append(f.chains[c.Door], build.Chain(c, secure[c.Door]))
	}
	return f, nil
}

// sharedHost returns the shared host's messages. No place on it redirects.
func sharedHost(host string, routes []translate.Route) *routev3.VirtualHost {
	return build.VirtualHost(translate.VirtualHost{Name: "shared", Hosts: []string{host}, Routes: routes}, 0)
}

// served returns what is to be published of the KIngress, or nil.
func (p *part) served() *form {
	if p.held || p.awaits {
		return p.proved
	}
	return p.good
}

// leads returns the clusters that must be there for the KIngress.
func (p *part) leads() []translate.Cluster {
	clusters := p.served().ingress.Clusters()
	if p.awaits && !p.held {
		clusters = append(clusters, p.good.ingress.Clusters()...)
	}
	return clusters
}

// whyNot returns why a KIngress isn't served as it is now, or nil.
func (p *part) whyNot() *translate.Refusal {
	for _, r := range []*translate.Refusal{p.refusal, p.rejection, p.conflict, p.crowded} {
		if r != nil {
			return r
		}
	}
	if p.good != nil {
		return p.good.ingress.SharedRefusal
	}
	return nil
}

// equal reports whether both make the same messages.
func (f *form) equal(other *form) bool {
	if f == nil || other == nil {
		return f == other
	}
	sameSecret := func(a, b snapshot.Resource) bool { return a.Name == b.Name && a.Version == b.Version }
	return f.httpsPort == other.httpsPort && f.accessLog == other.accessLog &&
		reflect.DeepEqual(f.ingress, other.ingress) && slices.EqualFunc(f.secrets, other.secrets, sameSecret)
}

// index tells which KIngresses name a thing.
type index map[types.NamespacedName]map[types.NamespacedName]bool

func (i index) add(things []types.NamespacedName, by types.NamespacedName) {
	for _, thing := range things {
		if i[thing] == nil {
			i[thing] = map[types.NamespacedName]bool{}
		}
		i[thing][by] = true
	}
}

func (i index) remove(things []types.NamespacedName, by types.NamespacedName) {
	for _, thing := range things {
		if delete(i[thing], by); len(i[thing]) == 0 {
			delete(i, thing)
		}
	}
}
