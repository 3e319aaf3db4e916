package xds

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds/server"
	"github.com/wisp-serving/wisp/xds/snapshot"
	"github.com/wisp-serving/wisp/xds/translate"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
)

// defaultPatience is how long a publish waits for an Envoy that sends nothing.
const defaultPatience = 10 * time.Second

// gateway turns changes of the cluster into ordered publishes, and Envoys'
// answers into outcomes. One goroutine, that of run, uses everything in it but
// inbox, server and board, which others share.
type gateway struct {
	source clusterSource
	server *server.Server
	// settings are those that come while it runs.
	settings <-chan config.Gateway
	inbox    *inbox
	board    *board
	// notify is told which KIngresses have another outcome. It may block until
	// ctx ends.
	notify  func(ctx context.Context, keys map[types.NamespacedName]bool)
	metrics *metrics
	log     *zap.SugaredLogger
	// patience is defaultPatience outside tests.
	patience time.Duration

	table *table
	// published is what Envoys get, target what the transition under way leads
	// to, and desired what the cluster says. Changes that come during a
	// transition wait for its end and make the next one together.
	published, target, desired snapshot.State
	moving                     bool
	// settled is what Envoys have acknowledged last, as a whole; nothing before the
	// first time.
	settled snapshot.State
	// since is when the current wait began, and lack what it is for. Endpoints
	// that overtake a transition don't prolong it.
	since time.Time
	lack  lack
	// waiting are the KIngresses that changed since the transition began,
	// inFlight those that changed with it and all before it that no Envoy has
	// acknowledged, in the form that they have in it; nil is for one that isn't in
	// it.
	waiting  map[types.NamespacedName]bool
	inFlight map[types.NamespacedName]*form
	// held are the KIngresses that wait for others to be acknowledged first, since
	// Envoy has refused them all together.
	held map[types.NamespacedName]bool
	// awaiting is until when KIngresses may await addresses.
	awaiting map[types.NamespacedName]time.Time
}

// lack is what a transition waits for.
type lack struct {
	typeURL string
	want    map[string]string
	// rejection is the text of an Envoy that refused it, or empty.
	rejection string
}

// deps are what a gateway needs of others. All are required but settings.
type deps struct {
	source   clusterSource
	server   *server.Server
	settings <-chan config.Gateway
	notify   func(ctx context.Context, keys map[types.NamespacedName]bool)
	metrics  *metrics
	log      *zap.SugaredLogger
}

func newGateway(cfg config.Gateway, d deps) (*gateway, error) {
	t, err := newTable(cfg)
	if err != nil {
		return nil, err
	}
	return &gateway{
		source:   d.source,
		server:   d.server,
		settings: d.settings,
		inbox:    newInbox(),
		board:    newBoard(),
		notify:   d.notify,
		metrics:  d.metrics,
		log:      d.log,
		patience: defaultPatience,
		table:    t,
		waiting:  map[types.NamespacedName]bool{},
		inFlight: map[types.NamespacedName]*form{},
		held:     map[types.NamespacedName]bool{},
		awaiting: map[types.NamespacedName]time.Time{},
	}, nil
}

// seed reads everything and publishes it, before any Envoy can ask: one that
// runs keeps what it has.
func (g *gateway) seed(ctx context.Context) error {
	all, err := g.source.everything(ctx)
	if err != nil {
		return err
	}
	rejections, err := g.rejections(ctx, all.ingresses)
	if err != nil {
		return err
	}
	if err := g.absorb(ctx, all); err != nil {
		return err
	}
	if err := g.distrust(ctx, rejections); err != nil {
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
		var overdue, alone <-chan time.Time
		if g.moving {
			overdue = time.After(time.Until(g.since.Add(g.patience)))
		}
		if len(g.awaiting) > 0 {
			alone = time.After(time.Until(slices.MinFunc(slices.Collect(maps.Values(g.awaiting)), time.Time.Compare)))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-g.inbox.wake:
			if err := g.absorb(ctx, g.inbox.take()); err != nil {
				return err
			}
		case cfg := <-g.settings:
			if err := g.configure(ctx, cfg); err != nil {
				return err
			}
		case <-g.server.Progress():
			g.countEnvoys(ctx)
		case <-overdue:
			g.silence(ctx)
		case <-alone:
			if err := g.proceed(ctx); err != nil {
				return err
			}
		}
	}
}

// configure makes desired follow from other settings: all KIngresses are translated
// again.
func (g *gateway) configure(ctx context.Context, cfg config.Gateway) error {
	if err := g.table.configure(cfg); err != nil {
		return err
	}
	all := map[types.NamespacedName]bool{}
	for key := range g.table.parts {
		all[key] = true
	}
	touched, err := g.absorbIngresses(ctx, map[types.NamespacedName]bool{}, all)
	if err != nil {
		return err
	}
	g.log.Infow("settings taken over", "ingresses", len(touched))
	return g.rebuild(ctx, noChanges(), touched)
}

// absorb reads what changed and makes desired follow. Backends come first, since
// KIngresses resolve to them.
func (g *gateway) absorb(ctx context.Context, c changes) error {
	redo, err := g.absorbNamed(ctx, c)
	if err != nil {
		return err
	}
	touched, err := g.absorbIngresses(ctx, c.ingresses, redo)
	if err != nil {
		return err
	}
	return g.rebuild(ctx, c, touched)
}

// rebuild makes desired follow from the table and from what c says of addresses,
// and posts the outcomes of touched.
func (g *gateway) rebuild(ctx context.Context, c changes, touched map[types.NamespacedName]bool) error {
	if err := g.refresh(ctx, c, touched); err != nil {
		return err
	}
	if arrived := g.table.arrived(); len(arrived) > 0 {
		for _, key := range arrived {
			touched[key] = true
		}
		if err := g.refresh(ctx, noChanges(), touched); err != nil {
			return err
		}
	}
	g.desired = g.table.state()
	g.metrics.serving(ctx, g.table.census())
	g.await()
	g.post(ctx, touched)
	return nil
}

func (g *gateway) refresh(ctx context.Context, c changes, touched map[types.NamespacedName]bool) error {
	moved, added, err := g.table.refresh()
	if err != nil {
		return err
	}
	for _, key := range moved {
		touched[key] = true
	}
	return g.absorbEndpoints(ctx, c, added)
}

// await notes until when KIngresses await addresses.
func (g *gateway) await() {
	maps.DeleteFunc(g.awaiting, func(key types.NamespacedName, _ time.Time) bool { return !g.table.awaiting[key] })
	for key := range g.table.awaiting {
		if _, ok := g.awaiting[key]; !ok {
			g.awaiting[key] = time.Now().Add(g.patience)
		}
	}
}

// proceed lets those KIngresses lead to nobody that have awaited addresses for
// too long.
func (g *gateway) proceed(ctx context.Context) error {
	touched := map[types.NamespacedName]bool{}
	for key, until := range g.awaiting {
		if time.Now().Before(until) {
			continue
		}
		g.log.Warnw("ingress leads to a service without endpoints", "key", key, "patience", g.patience)
		g.table.proceed(key)
		touched[key] = true
	}
	return g.rebuild(ctx, noChanges(), touched)
}

// absorbNamed reads those Services and Secrets again that KIngresses name, and
// returns which KIngresses must be set again for it.
func (g *gateway) absorbNamed(ctx context.Context, c changes) (map[types.NamespacedName]bool, error) {
	redo := map[types.NamespacedName]bool{}
	for service := range c.services {
		if g.table.naming[service] == nil {
			continue
		}
		if err := g.readBackend(ctx, service, redo); err != nil {
			return nil, err
		}
	}
	for secret := range c.secrets {
		if g.table.trusting[secret] == nil {
			continue
		}
		if err := g.readCertificate(ctx, secret, redo); err != nil {
			return nil, err
		}
	}
	return redo, nil
}

func (g *gateway) readBackend(ctx context.Context, service types.NamespacedName, redo map[types.NamespacedName]bool) error {
	b, ok, err := g.source.backend(ctx, service)
	if err != nil {
		return err
	}
	for _, key := range g.table.setBackend(service, b, ok) {
		redo[key] = true
	}
	return nil
}

func (g *gateway) readCertificate(ctx context.Context, secret types.NamespacedName, redo map[types.NamespacedName]bool) error {
	chain, private, ok, err := g.source.certificate(ctx, secret)
	if err != nil {
		return err
	}
	for _, key := range g.table.setCertificate(secret, chain, private, ok) {
		redo[key] = true
	}
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
		if !redo[key] && g.table.current(key, ing) {
			continue
		}
		if err := g.readNamed(ctx, ing); err != nil {
			return nil, err
		}
		g.table.setIngress(key, ing)
		touched[key] = true
	}
	return touched, nil
}

// readNamed reads what ing is the first to name.
func (g *gateway) readNamed(ctx context.Context, ing *v1alpha1.Ingress) error {
	if ing == nil {
		return nil
	}
	nobody := map[types.NamespacedName]bool{} // must be set again: none has named it
	for _, service := range translate.Services(ing) {
		if _, ok := g.table.backends[service]; ok {
			continue
		}
		if err := g.readBackend(ctx, service, nobody); err != nil {
			return err
		}
	}
	for _, secret := range translate.Secrets(ing) {
		if _, ok := g.table.certificates[secret]; ok {
			continue
		}
		if err := g.readCertificate(ctx, secret, nobody); err != nil {
			return err
		}
	}
	return nil
}

// absorbEndpoints places what stands behind changed Services and new clusters,
// and all revisions where a node has changed.
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
	for service := range c.services {
		clusters = append(clusters, g.table.places[service]...)
	}
	for _, cluster := range clusters {
		if err := g.locate(ctx, cluster); err != nil {
			return err
		}
	}
	return nil
}

// locate reads and places what stands behind a cluster.
func (g *gateway) locate(ctx context.Context, c translate.Cluster) error {
	if c.Kind == translate.Service {
		addresses, err := g.source.addresses(ctx, c.Key(), c.Port)
		if err != nil {
			return err
		}
		return g.table.setAddresses(c, addresses)
	}
	pods, err := g.source.pods(ctx, c.Key())
	if err != nil {
		return err
	}
	return g.table.setPods(c, pods)
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
			delete(g.held, key)
			continue
		}
		if !p.held {
			delete(g.held, key)
		}
		o := outcome{uid: p.uid, generation: p.generation, domains: g.table.domains, refusal: p.whyNot(), awaits: p.awaits, since: time.Now()}
		if alone || o.refusal != nil || o.awaits {
			told[key] = true
		}
		if o.refusal != nil {
			g.log.Warnw("ingress refused", "key", key, "reason", o.refusal.Reason, "message", o.refusal.Message)
		} else {
			o.hash, o.probes = p.good.ingress.Hash, p.good.ingress.Probes
		}
		g.board.set(key, o)
		g.waiting[key] = true
	}
	g.notify(ctx, told)
}
