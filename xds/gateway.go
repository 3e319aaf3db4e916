package xds

import (
	"context"
	"maps"
	"time"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds/build"
	"github.com/wisp-serving/wisp/xds/server"
	"github.com/wisp-serving/wisp/xds/snapshot"
	"github.com/wisp-serving/wisp/xds/translate"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"
)

// defaultPatience is how long a publish waits for an Envoy that sends nothing.
const defaultPatience = 10 * time.Second

// gateway turns changes of the cluster into ordered publishes, and Envoys'
// answers into outcomes. One goroutine, that of run, uses everything in it but
// inbox, server and board, which others share.
type gateway struct {
	source clusterSource
	server *server.Server
	inbox  *inbox
	board  *board
	// notify is told which KIngresses have another outcome. It may block until
	// ctx ends.
	notify func(ctx context.Context, keys map[types.NamespacedName]bool)
	log    *zap.SugaredLogger
	// patience is defaultPatience outside tests.
	patience time.Duration

	table *table
	// published is what Envoys get, target what the transition under way leads
	// to, and desired what the cluster says. Changes that come during a
	// transition wait for its end and make the next one together.
	published, target, desired snapshot.State
	moving                     bool
	// since is when the current wait began, and lack what it is for. Endpoints
	// that overtake a transition don't prolong it.
	since time.Time
	lack  lack
	// waiting are the KIngresses that changed since the transition began,
	// inFlight those that changed with it and all before it that no Envoy has
	// acknowledged.
	waiting, inFlight map[types.NamespacedName]bool
	// rejection is Envoy's text for the transition under way, or empty.
	rejection string
}

// lack is what a transition waits for.
type lack struct {
	typeURL string
	want    map[string]string
	// rejection is the text of an Envoy that refused it, or empty.
	rejection string
}

func newGateway(cfg config.Envoy, src clusterSource, srv *server.Server, notify func(context.Context, map[types.NamespacedName]bool), log *zap.SugaredLogger) (*gateway, error) {
	listeners := snapshot.Set{}
	for name, address := range map[string]string{build.External: cfg.HTTPAddress, build.Internal: cfg.InternalAddress} {
		l, err := build.Listener(name, address)
		if err != nil {
			return nil, err
		}
		if listeners[name], err = snapshot.NewResource(l); err != nil {
			return nil, err
		}
	}
	return &gateway{
		source:   src,
		server:   srv,
		inbox:    newInbox(),
		board:    newBoard(),
		notify:   notify,
		log:      log,
		patience: defaultPatience,
		table:    newTable(listeners),
		waiting:  map[types.NamespacedName]bool{},
		inFlight: map[types.NamespacedName]bool{},
	}, nil
}

// seed reads everything and publishes it, before any Envoy can ask: one that
// runs keeps what it has.
func (g *gateway) seed(ctx context.Context) error {
	all, err := g.source.everything(ctx)
	if err != nil {
		return err
	}
	if err := g.absorb(ctx, all); err != nil {
		return err
	}
	g.log.Infow("configuration seeded", "ingresses", len(g.table.parts), "clusters", len(g.desired.Clusters))
	return g.publish(ctx, g.desired)
}

// run handles changes and answers until ctx ends.
func (g *gateway) run(ctx context.Context) error {
	for {
		if err := g.advance(ctx); err != nil {
			if ctx.Err() != nil {
				return nil // the stop came in the middle of a publish
			}
			return err
		}
		var overdue <-chan time.Time
		if g.moving {
			overdue = time.After(time.Until(g.since.Add(g.patience)))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-g.inbox.wake:
			if err := g.absorb(ctx, g.inbox.take()); err != nil {
				return err
			}
		case <-g.server.Progress():
			g.countEnvoys(ctx)
		case <-overdue:
			g.silence(ctx)
		}
	}
}

// absorb reads what changed and makes desired follow. Backends come first, since
// KIngresses resolve to them.
func (g *gateway) absorb(ctx context.Context, c changes) error {
	redo := map[types.NamespacedName]bool{}
	for revision := range c.revisions {
		p, ok, err := g.source.protocol(ctx, revision)
		if err != nil {
			return err
		}
		for _, key := range g.table.setBackend(revision, p, ok) {
			redo[key] = true
		}
	}
	touched, err := g.absorbIngresses(ctx, c.ingresses, redo)
	if err != nil {
		return err
	}
	moved, added, err := g.table.refresh()
	if err != nil {
		return err
	}
	for _, key := range moved {
		touched[key] = true
	}
	if err := g.absorbEndpoints(ctx, c, added); err != nil {
		return err
	}
	g.desired = g.table.state()
	g.post(ctx, touched)
	return nil
}

// absorbIngresses sets those KIngresses that have changed, and all of redo, and
// returns which.
func (g *gateway) absorbIngresses(ctx context.Context, maybe, redo map[types.NamespacedName]bool) (map[types.NamespacedName]bool, error) {
	touched := map[types.NamespacedName]bool{}
	maps.Copy(maybe, redo)
	for key := range maybe {
		ing, err := g.source.ingress(ctx, key)
		if err != nil {
			return nil, err
		}
		if redo[key] || !g.table.current(key, ing) {
			g.table.setIngress(key, ing)
			touched[key] = true
		}
	}
	return touched, nil
}

// absorbEndpoints places the pods of changed revisions and new clusters, or of
// all where a node has changed.
func (g *gateway) absorbEndpoints(ctx context.Context, c changes, added []translate.Cluster) error {
	if c.nodes {
		nodes, err := g.source.nodes(ctx)
		if err != nil {
			return err
		}
		if g.table.setNodes(nodes) {
			if err := g.table.placeAll(); err != nil {
				return err
			}
		}
	}
	clusters := added
	for revision := range c.revisions {
		clusters = append(clusters, g.table.clustersOf(revision)...)
	}
	for _, cluster := range clusters {
		pods, err := g.source.pods(ctx, cluster.Key())
		if err != nil {
			return err
		}
		if err := g.table.setPods(cluster, pods); err != nil {
			return err
		}
	}
	return nil
}

// post puts the outcomes of changed KIngresses on the board. Those that Envoy's
// answer changes nothing for are told at once, the others when it comes.
func (g *gateway) post(ctx context.Context, touched map[types.NamespacedName]bool) {
	alone := g.board.alone() // by its count, since all are told when that turns
	told := map[types.NamespacedName]bool{}
	for key := range touched {
		p, ok := g.table.parts[key]
		if !ok {
			g.board.drop(key)
			continue
		}
		o := outcome{uid: p.uid, generation: p.generation, refusal: p.whyNot()}
		if alone || o.refusal != nil {
			told[key] = true
		}
		if o.refusal != nil {
			g.log.Warnw("ingress refused", "key", key, "reason", o.refusal.Reason, "message", o.refusal.Message)
		} else {
			o.hash, o.probes = p.good.Hash, p.good.Probes
		}
		g.board.set(key, o)
		g.waiting[key] = true
	}
	g.notify(ctx, told)
}
