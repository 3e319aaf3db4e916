package activator

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/zap"
	"knative.dev/serving/pkg/autoscaler/metrics"
)

// pushBacklog is how many batches may wait for the connection. Older ones are
// worth less than newer ones: past it, a batch is dropped.
const pushBacklog = 64

// maxStats bounds a message: the autoscaler takes 1 MiB, and a stat is at most
// about 600 bytes (two names of 253 and the node's).
const maxStats = 1000

const (
	// dialTimeout bounds one attempt to connect, reconnectAfter is the pause
	// before the next.
	dialTimeout    = 3 * time.Second
	reconnectAfter = 250 * time.Millisecond
	// writeTimeout bounds one message.
	writeTimeout = 5 * time.Second
	// aliveWithin is how long an autoscaler may leave pings unanswered.
	aliveWithin = 10 * time.Second
)

// Pusher sends stats to the autoscaler over a websocket that it keeps open, in
// the format of Knative's activator (WireStatMessages, serving
// pkg/autoscaler/metrics/stat.proto).
type Pusher struct {
	target  string
	log     *zap.SugaredLogger
	batches chan []metrics.StatMessage
	// lost is whether stats are being lost, so that a lasting outage is one line
	// in the log.
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

// Run keeps a connection and sends until ctx ends.
//
// See RATIONALE.md "Why a websocket of our own?"
func (p *Pusher) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := p.connect(ctx)
		if ctx.Err() == nil {
			p.note(err)
			p.pause(ctx)
		}
	}
	return nil
}

// connect connects once and sends until the connection, or ctx, ends.
func (p *Pusher) connect(ctx context.Context) error {
	dialer := websocket.Dialer{HandshakeTimeout: dialTimeout}
	conn, _, err := dialer.DialContext(ctx, p.target, nil) //nolint:bodyclose // gorilla: it needs no closing
	if err != nil {
		return fmt.Errorf("connect to the autoscaler: %w", err)
	}
	p.log.Infow("connected to the autoscaler", "target", p.target)
	p.lost.Store(false)

	// Closing frees a write that blocks, and ends listen.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	gone := make(chan error, 1)
	var listening sync.WaitGroup
	listening.Go(func() { gone <- listen(conn) })
	defer listening.Wait()
	defer func() { _ = conn.Close() }()
	return p.serve(ctx, conn, gone)
}

// serve sends stats and pings until the connection, or ctx, ends.
func (p *Pusher) serve(ctx context.Context, conn *websocket.Conn, gone <-chan error) error {
	ping := time.NewTicker(aliveWithin / 3)
	defer ping.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case err = <-gone:
		case <-ping.C:
			err = conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeTimeout))
		case stats := <-p.batches:
			err = send(conn, stats)
		}
		if err != nil {
			return err
		}
	}
}

// listen answers pings and takes pongs until the connection ends or is silent
// for too long. An autoscaler says nothing else.
func listen(conn *websocket.Conn) error {
	alive := func(string) error { return conn.SetReadDeadline(time.Now().Add(aliveWithin)) }
	conn.SetPongHandler(alive)
	err := alive("")
	for err == nil {
		_, _, err = conn.NextReader()
	}
	return err
}

// pause waits before the next attempt to connect; stats that come meanwhile are
// dropped.
func (p *Pusher) pause(ctx context.Context) {
	timer := time.NewTimer(reconnectAfter)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-p.batches:
		}
	}
}

// send sends the stats in messages of at most maxStats.
func send(conn *websocket.Conn, stats []metrics.StatMessage) error {
	for part := range slices.Chunk(stats, maxStats) {
		messages := metrics.ToWireStatMessages(part)
		b, err := messages.Marshal()
		if err != nil {
			return fmt.Errorf("marshal stats: %w", err)
		}
		if err := conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		if err := conn.WriteMessage(websocket.BinaryMessage, b); err != nil {
			return err
		}
	}
	return nil
}

// note logs the first of a run of losses.
func (p *Pusher) note(err error) {
	if !p.lost.Swap(true) {
		p.log.Warnw("stats do not reach the autoscaler: nothing scales until they do", "target", p.target, "error", err)
	}
}
