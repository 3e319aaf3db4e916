// Package server speaks delta ADS with Envoys, over a Unix socket or over TCP with
// mutual TLS, and knows what each of them has acknowledged.
//
// It publishes one configuration to all who connect; what it should be, and in
// which order it changes, is decided elsewhere (package snapshot). Package xds
// owns a Server: it publishes once, so that no Envoy ever sees an empty
// configuration, and then calls Run.
package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/log"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	xdsconfig "github.com/envoyproxy/go-control-plane/pkg/server/config"
	deltav3 "github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
)

const (
	// group is the cache key of every Envoy: all get the same configuration.
	group = "envoy"
	// maxRequest bounds a request. A reconnecting Envoy lists what it holds,
	// about 100 bytes for each resource.
	maxRequest = 32 << 20
	// handshakeTimeout bounds how long a peer may take to become one that asks.
	handshakeTimeout = 10 * time.Second
	// maxStreams bounds the streams of one connection; an Envoy needs one.
	maxStreams = 16
)

// Server serves one configuration to any number of Envoys.
type Server struct {
	cfg      Config
	log      *zap.SugaredLogger
	watches  *watches
	tracker  *tracker
	progress chan struct{}
	watch    Observer
	rejected atomic.Uint64
	serving  atomic.Bool
}

// Config says where Envoys connect.
type Config struct {
	// Socket is the path of a Unix socket.
	Socket string
	// Address is host:port for Envoys on other machines, or empty.
	Address string
	// Certificate, Key and Authority are paths of PEM files, for Address: its own
	// certificate, and who signs those of clients. They are read for each connection.
	Certificate, Key, Authority string
	// ClientName is the DNS name that a client's certificate must have.
	ClientName string
}

// Observer is told what goes on. Its methods are called by streams' goroutines and
// must not wait.
type Observer interface {
	// Sent gets the type and the bytes of a response.
	Sent(typeURL string, bytes int)
	// Rejected gets a response that an Envoy has rejected.
	Rejected(r Rejection)
}

// New returns a Server. It opens nothing.
func New(cfg Config, o Observer, log *zap.SugaredLogger) *Server {
	s := &Server{
		cfg:      cfg,
		watch:    o,
		log:      log,
		watches:  newWatches(cachev3.NewSnapshotCache(true, constantHash{}, quiet(log))),
		progress: make(chan struct{}, 1),
	}
	s.tracker = newTracker(s.signal, s.reject)
	return s
}

// Publish makes snap what every Envoy gets. It doesn't wait for them.
func (s *Server) Publish(ctx context.Context, snap *cachev3.Snapshot) error {
	if err := s.watches.publish(ctx, snap); err != nil {
		return fmt.Errorf("publish snapshot: %w", err)
	}
	s.tracker.published(snap.GetVersion)
	return nil
}

// Progress receives after an Envoy has connected, answered or gone. Several such
// events may be one receipt.
func (s *Server) Progress() <-chan struct{} { return s.progress }

// Envoys says how the connected Envoys stand towards the wanted resources of a
// type, given as versions by name; an empty version stands for any,
// snapshot.Absent for none.
func (s *Server) Envoys(typeURL string, want map[string]string) Envoys {
	return s.tracker.envoys(typeURL, want)
}

// Silence stops waiting for the Envoys that lack what is wanted, haven't refused
// it and have sent nothing since the given time, and returns their node ids.
// Whatever they send next makes them count again.
func (s *Server) Silence(typeURL string, want map[string]string, since time.Time) []string {
	return s.tracker.silence(typeURL, want, since)
}

// Hosts returns where the Envoys that answer are, by their connections' addresses;
// empty means this machine.
func (s *Server) Hosts() []string { return s.tracker.hosts() }

// Rejections returns how many responses Envoys have rejected so far.
func (s *Server) Rejections() uint64 { return s.rejected.Load() }

// Serving returns an error unless Envoys can connect.
func (s *Server) Serving() error {
	if !s.serving.Load() {
		return fmt.Errorf("xDS socket %s is not open", s.cfg.Socket)
	}
	return nil
}

// Run opens the socket, and the address if there is one, and serves until ctx ends.
// Something must be published before. The socket's file is gone when it returns.
func (s *Server) Run(ctx context.Context) error {
	listeners, err := s.listen()
	if err != nil {
		return err
	}
	srv := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.WaitForHandlers(true), // so that none outlives Run
		// An Envoy that hangs is gone after 15 s, and no publish waits for it.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		// Envoys ping too; by default gRPC would hang up on them for it.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)
	ads := serverv3.NewServer(ctx, s.watches, s.callbacks(),
		xdsconfig.DeactivateLegacyWildcardForTypes([]string{resourcev3.EndpointType, resourcev3.RouteType}))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, deltaOnly{delta: ads})

	g, ctx := errgroup.WithContext(ctx)
	for _, ln := range listeners {
		g.Go(func() error {
			if err := srv.Serve(ln); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				return fmt.Errorf("serve xDS on %s: %w", ln.Addr(), err)
			}
			return nil
		})
	}
	g.Go(func() error {
		<-ctx.Done()
		srv.Stop() // not GracefulStop: an ADS stream never ends by itself
		return nil
	})
	s.serving.Store(true)
	defer s.serving.Store(false)
	s.log.Infow("serving xDS", "socket", s.cfg.Socket, "address", s.cfg.Address)
	return g.Wait()
}

// deltaOnly offers delta ADS. Envoys that ask for state of the world are told
// that it is unimplemented.
type deltaOnly struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	delta deltav3.Server
}

func (d deltaOnly) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return d.delta.DeltaStreamHandler(stream, resourcev3.AnyType)
}

func (s *Server) callbacks() serverv3.CallbackFuncs {
	return serverv3.CallbackFuncs{
		DeltaStreamOpenFunc: func(ctx context.Context, id int64, _ string) error {
			s.tracker.opened(id, hostOf(ctx))
			return nil
		},
		DeltaStreamClosedFunc: func(id int64, node *corev3.Node) {
			s.log.Infow("envoy disconnected", "node", node.GetId())
			s.tracker.closed(id)
		},
		StreamDeltaRequestFunc: func(id int64, req *discoveryv3.DeltaDiscoveryRequest) error {
			if names, info := s.tracker.requested(id, req); len(names) > 0 {
				s.watches.refused(req, names, info)
			}
			return nil
		},
		StreamDeltaResponseFunc: func(id int64, _ *discoveryv3.DeltaDiscoveryRequest, resp *discoveryv3.DeltaDiscoveryResponse) {
			s.tracker.responded(id, resp)
			s.watch.Sent(resp.GetTypeUrl(), proto.Size(resp))
		},
	}
}

// hostOf returns the address of a stream's other end, or nothing where that is on
// this machine.
func hostOf(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	if addr, ok := p.Addr.(*net.TCPAddr); ok {
		return addr.IP.String()
	}
	return ""
}

func (s *Server) signal() {
	select {
	case s.progress <- struct{}{}:
	default: // one receipt is waiting already
	}
}

func (s *Server) reject(r Rejection) {
	s.watch.Rejected(r)
	s.log.Errorw("envoy rejected its configuration and keeps the old one",
		"node", r.Node, "type", r.TypeURL, "resources", r.Resources, "reason", r.Message, "rejections", s.rejected.Add(1))
}

type constantHash struct{}

func (constantHash) ID(*corev3.Node) string { return group }

// quiet passes on what go-control-plane warns of. Its info is per request.
func quiet(l *zap.SugaredLogger) log.Logger {
	return log.LoggerFuncs{WarnFunc: l.Warnf, ErrorFunc: l.Errorf}
}

// listen opens what the settings name.
func (s *Server) listen() ([]net.Listener, error) {
	socket, err := listenUnix(s.cfg.Socket)
	if err != nil || s.cfg.Address == "" {
		return []net.Listener{socket}, err
	}
	remote, err := listenTLS(s.cfg)
	if err != nil {
		_ = socket.Close()
		return nil, err
	}
	return []net.Listener{socket, remote}, nil
}

// listenUnix opens the socket, in place of one that nobody serves any more.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make folder of xDS socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on xDS socket: %w", err)
	}
	return ln, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at xDS socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("xDS socket %s: the file exists and is no socket: remove it or set xdsSocket", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("xDS socket %s: another process serves it: stop it or set xdsSocket", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("xDS socket %s: who serves it is unknown: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove stale xDS socket: %w", err)
	}
	return nil
}
