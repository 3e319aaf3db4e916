package xds

import (
	"context"
	"slices"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds/server"
	"github.com/wisp-serving/wisp/xds/translate"
)

// places are where Envoys are reached: host:port by door, each once, sorted.
type places map[translate.Door][]string

func (p places) add(d translate.Door, address string) {
	if i, found := slices.BinarySearch(p[d], address); !found {
		p[d] = slices.Insert(p[d], i, address)
	}
}

// locator finds Envoys: those that are connected here, and those of other gateways,
// which stand behind the same two Services.
// See RATIONALE.md "Why are Envoys probed when they have acknowledged?".
type locator struct {
	server *server.Server
	source clusterSource
	envoy  config.Envoy
	// alone says that there are no other gateways.
	alone bool
}

// find returns where Envoys are, and whether there are others than those that are
// connected here.
func (l locator) find(ctx context.Context, d domains) (all places, others bool, err error) {
	all = places{}
	for _, host := range l.server.Hosts() {
		for door, address := range addresses(l.envoy) {
			all.add(door, reach(host, address))
		}
	}
	if l.alone {
		return all, false, nil
	}
	for _, of := range []struct {
		domain        string
		plain, secure translate.Door
	}{{d.external, translate.External, translate.Secure}, {d.internal, translate.Internal, translate.InternalSecure}} {
		peers, err := l.source.peers(ctx, of.domain)
		if err != nil {
			return nil, false, err
		}
		for _, p := range peers {
			others = true
			switch p.port {
			case "http":
				all.add(of.plain, p.address)
			case "https":
				all.add(of.secure, p.address)
			}
		}
	}
	return all, others, nil
}
