package xds

import (
	"context"
	"time"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/wisp-serving/wisp/xds/snapshot"
	"k8s.io/apimachinery/pkg/types"
)

// advance goes as far towards desired as Envoys' answers allow.
func (g *gateway) advance(ctx context.Context) error {
	if fresh, changed := g.published.Refresh(g.desired.Endpoints); changed {
		if err := g.publish(ctx, fresh); err != nil {
			return err
		}
	}
	g.target, _ = g.target.Refresh(g.desired.Endpoints)
	for g.begin() {
		next, step := snapshot.Next(g.published, g.target, g.acked)
		switch step {
		case snapshot.Publish:
			if err := g.publish(ctx, next); err != nil {
				return err
			}
			g.since = time.Now()
		case snapshot.Wait:
			if g.lack.rejection == "" {
				return nil
			}
			if err := g.turnBack(ctx); err != nil || g.moving {
				return err
			}
		case snapshot.Done:
			g.moving = false
			if !g.settle(ctx) {
				return nil
			}
			if err := g.retry(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// turnBack gives a transition that Envoy has refused up for what comes after it,
// if anything does.
func (g *gateway) turnBack(ctx context.Context) error {
	if err := g.isolate(ctx, g.lack.rejection); err != nil {
		return err
	}
	if g.target.Equal(g.desired) {
		return nil
	}
	g.moving = false
	return g.publish(ctx, snapshot.Back(g.published, g.settled, g.desired))
}

// begin starts a transition to desired, unless one is under way, and reports
// whether there is one.
func (g *gateway) begin() bool {
	if g.moving {
		return true
	}
	if len(g.waiting) == 0 && len(g.inFlight) == 0 && g.published.Equal(g.desired) {
		return false
	}
	for key := range g.waiting {
		g.inFlight[key] = g.table.form(key)
	}
	clear(g.waiting)
	g.target, g.moving, g.since = g.desired, true, time.Now()
	return true
}

func (g *gateway) publish(ctx context.Context, s snapshot.State) error {
	snap, err := s.Snapshot()
	if err != nil {
		return err
	}
	if err := g.server.Publish(ctx, snap); err != nil {
		return err
	}
	g.published = s
	g.metrics.published(ctx, s)
	return nil
}

// acked implements snapshot.Acked by what Envoys have answered.
func (g *gateway) acked(typeURL string, want map[string]string) bool {
	e := g.server.Envoys(typeURL, want)
	if e.Rejected+e.Pending == 0 {
		return true
	}
	g.lack = lack{typeURL: typeURL, want: want, rejection: e.Rejection}
	return false
}

// settle tells the KIngresses in flight that Envoys have them, and reports
// whether there was an Envoy to say so.
func (g *gateway) settle(ctx context.Context) bool {
	if g.server.Envoys(resourcev3.RouteType, g.published.Routes.Versions()).Acked == 0 {
		return false
	}
	settled := map[types.NamespacedName]bool{}
	for key, f := range g.inFlight {
		if g.table.prove(key, f) {
			settled[key] = true
		}
	}
	g.board.settle(settled)
	g.notify(ctx, settled)
	clear(g.inFlight)
	g.settled = g.published
	return true
}

// silence stops waiting for Envoys that have sent nothing for too long.
func (g *gateway) silence(ctx context.Context) {
	for _, node := range g.server.Silence(g.lack.typeURL, g.lack.want, time.Now().Add(-g.patience)) {
		g.log.Warnw("envoy does not answer and is not waited for", "node", node, "type", g.lack.typeURL, "patience", g.patience)
	}
	g.since = time.Now()
	g.countEnvoys(ctx)
}

// countEnvoys notes how many Envoys there are. All KIngresses are told when the
// first comes, the last goes, or the last falls silent.
func (g *gateway) countEnvoys(ctx context.Context) {
	e := g.server.Envoys(resourcev3.RouteType, nil)
	g.metrics.connected(ctx, e.Connected(), e.Silent)
	if g.board.count(e.Connected(), e.Silent) {
		g.notify(ctx, g.board.keys())
	}
}
