package activator

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync/atomic"

	"github.com/gorilla/websocket"
	"go.uber.org/zap"
	pkgwebsocket "knative.dev/pkg/websocket"
	"knative.dev/serving/pkg/autoscaler/metrics"
)

// pushBacklog is how many batches may wait for the connection. Older ones are
// worth less than newer ones: past it, a batch is dropped.
const pushBacklog = 64

// maxStats bounds a message: the autoscaler takes 1 MiB, and a stat is at most
// about 600 bytes (two names of 253 and the node's).
const maxStats = 1000

// Pusher sends stats to the autoscaler over a websocket that it keeps open, in
// the format of Knative's activator (WireStatMessages, serving
// pkg/autoscaler/metrics/stat.proto).
type Pusher struct {
	target  string
	log     *zap.SugaredLogger
	batches chan []metrics.StatMessage
	// lost is whether the last batch was lost, so that a lasting outage is one
	// line in the log.
	lost atomic.Bool
}

// NewPusher returns a pusher to the ws:// URL target. It connects in Run.
func NewPusher(target string, log *zap.SugaredLogger) (*Pusher, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("parse the autoscaler's URL: %w", err)
	}
	if u.Scheme != "ws" || u.Host == "" {
		return nil, fmt.Errorf("autoscaler = %s, must be a ws://host:port URL", target)
	}
	return &Pusher{target: target, log: log, batches: make(chan []metrics.StatMessage, pushBacklog)}, nil
}

// Report sends stats soon, in order. It never blocks: without a connection
// they are dropped, since a stat is only worth something now.
func (p *Pusher) Report(stats []metrics.StatMessage) {
	select {
	case p.batches <- stats:
	default:
		p.note(errors.New("the backlog is full"))
	}
}

// Run keeps the connection and sends until ctx ends.
func (p *Pusher) Run(ctx context.Context) error {
	// The connection logs each of its attempts, many a second: its transitions
	// are logged here instead.
	conn := pkgwebsocket.NewDurableSendingConnection(p.target, zap.NewNop().Sugar(),
		pkgwebsocket.WithOnConnect(func() { p.log.Infow("connected to the autoscaler", "target", p.target) }),
		pkgwebsocket.WithOnDisconnect(func(err error) {
			if ctx.Err() == nil {
				p.log.Warnw("connection to the autoscaler lost, connecting again", "target", p.target, "error", err)
			}
		}))
	defer func() { _ = conn.Shutdown() }() // its error is of the last close
	for {
		select {
		case <-ctx.Done():
			return nil
		case stats := <-p.batches:
			p.note(send(conn, stats))
		}
	}
}

// send sends the stats in messages of at most maxStats.
func send(conn *pkgwebsocket.ManagedConnection, stats []metrics.StatMessage) error {
	for part := range slices.Chunk(stats, maxStats) {
		messages := metrics.ToWireStatMessages(part)
		b, err := messages.Marshal()
		if err != nil {
			return fmt.Errorf("marshal stats: %w", err)
		}
		if err := conn.SendRaw(websocket.BinaryMessage, b); err != nil {
			return err
		}
	}
	return nil
}

// note logs the first of a run of lost batches.
func (p *Pusher) note(err error) {
	if lost := err != nil; p.lost.Swap(lost) != lost && lost {
		p.log.Warnw("stats do not reach the autoscaler: nothing scales until they do", "target", p.target, "error", err)
	}
}
