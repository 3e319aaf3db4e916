// Package sink takes the stats that nodes push: Knative's WireStatMessages
// over websockets, one binary message for a batch.
//
// It decides nothing and keeps nothing: each stat that makes sense goes to one
// function. It is not Knative's statserver, whose wire format it shares; see
// RATIONALE.md "Why not Knative's stat server?".
//
// Peers are not trusted: the size of a message, the number of connections and
// the silence on one are bounded, and numbers that aren't finite or are below
// zero are dropped. Who may connect at all is for the network to say.
package sink

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/autoscaler/metrics"
)

const (
	// MaxMessage is the largest message that is read, in bytes: some 10,000
	// stats. A sender with more splits them.
	MaxMessage = 1 << 20
	// MaxConnections bounds the open connections; a node needs one.
	MaxConnections = 1024
	// idle is how long a connection may carry neither message nor ping.
	// Knative's sender pings every few seconds.
	idle = time.Minute
	// maxName is the longest name of a Kubernetes object.
	maxName = 253
	// maxValue bounds concurrency and requests of one stat: beyond it, sums
	// over a window would leave the range of exact numbers.
	maxValue = 1e9
	// farewell bounds the wait for a peer to take the close message.
	farewell = time.Second
)

// Server passes stats on. Serve may be called once.
type Server struct {
	record   func(types.NamespacedName, metrics.Stat)
	log      *zap.SugaredLogger
	upgrader websocket.Upgrader

	mu          sync.Mutex
	closed      bool
	open        int
	connections sync.WaitGroup
}

// New returns a server that calls record for each stat, from one goroutine for
// each connection. Record must not block.
func New(record func(revision types.NamespacedName, s metrics.Stat), log *zap.SugaredLogger) *Server {
	return &Server{
		record:   record,
		log:      log,
		upgrader: websocket.Upgrader{HandshakeTimeout: 10 * time.Second},
	}
}

// Serve accepts connections on ln, on any path, until ctx ends; it then tells
// each peer to come back (close code 1012), and returns nil after all of them
// are closed. It closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	srv := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.serve(ctx, w, r) }),
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          zap.NewStdLog(s.log.Desugar()),
	}
	// What isn't a websocket gets its answer and no more: it would stay for ever.
	srv.SetKeepAlivesEnabled(false)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		<-ctx.Done()
		_ = srv.Close()
	}()
	err := srv.Serve(ln)
	cancel()
	<-closed
	s.leave()
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve stats on %s: %w", ln.Addr(), err)
	}
	return nil
}

// enter counts a connection in, unless there are too many or Serve is ending:
// http.Server.Close doesn't wait for handlers, so one may still begin then.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.open >= MaxConnections {
		return false
	}
	s.open++
	s.connections.Add(1)
	return true
}

func (s *Server) exit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	s.connections.Done()
}

// leave lets nobody in any more and waits for those inside.
func (s *Server) leave() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.connections.Wait()
}

func (s *Server) serve(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	if !s.enter() {
		http.Error(w, "too many connections", http.StatusServiceUnavailable)
		return
	}
	defer s.exit()
	conn, err := s.upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered.
	}
	defer func() { _ = conn.Close() }()
	gone := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(gone)
		s.sayClose(conn, websocket.CloseServiceRestart, "restarting")
		_ = conn.Close()
	})
	defer func() {
		if !stop() {
			<-gone
		}
	}()
	if err := s.read(conn); ctx.Err() == nil {
		s.log.Infow("stat connection ended", "peer", r.RemoteAddr, "reason", err)
	}
}

// read passes stats on until the connection ends, and returns why it did.
func (s *Server) read(conn *websocket.Conn) error {
	conn.SetReadLimit(MaxMessage)
	answer := conn.PingHandler()
	conn.SetPingHandler(func(data string) error {
		return errors.Join(conn.SetReadDeadline(time.Now().Add(idle)), answer(data))
	})
	for {
		if err := conn.SetReadDeadline(time.Now().Add(idle)); err != nil {
			return err
		}
		kind, msg, err := conn.ReadMessage()
		if err != nil {
			return err
		}
		if kind != websocket.BinaryMessage {
			s.sayClose(conn, websocket.CloseUnsupportedData, "stats are binary messages")
			return errors.New("read stats: a text message")
		}
		if err := s.pass(msg); err != nil {
			s.sayClose(conn, websocket.CloseInvalidFramePayloadData, "not a WireStatMessages")
			return err
		}
	}
}

func (s *Server) sayClose(conn *websocket.Conn, code int, reason string) {
	_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(code, reason), time.Now().Add(farewell))
}

func (s *Server) pass(msg []byte) error {
	var batch metrics.WireStatMessages
	if err := batch.Unmarshal(msg); err != nil {
		return fmt.Errorf("read stats: %w", err)
	}
	for _, m := range batch.Messages {
		if m == nil || m.Stat == nil || !sensible(m.Stat) {
			continue
		}
		s.record(types.NamespacedName{Namespace: m.Namespace, Name: m.Name}, *m.Stat)
	}
	return nil
}

// sensible keeps out what would spoil a window for its whole length: one NaN
// makes a sum NaN for good.
func sensible(s *metrics.Stat) bool {
	for _, v := range []float64{
		s.AverageConcurrentRequests, s.AverageProxiedConcurrentRequests, s.RequestCount, s.ProxiedRequestCount,
	} {
		if math.IsNaN(v) || v < 0 || v > maxValue {
			return false
		}
	}
	return s.PodName != "" && len(s.PodName) <= maxName
}
