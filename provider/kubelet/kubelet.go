// Package kubelet serves the API by which the API server reaches a node's pods:
// their logs, their ports, what they use. It is what `kubectl logs`,
// `port-forward` and `top` end at.
//
// Every request is authenticated, by a client certificate or a token that the API
// server reviews, and authorised by it as access to this node (kubernetes
// pkg/kubelet/server/auth.go). What it serves is its [Node]'s to know.
//
// Goroutines, joined by Run but for those of client-go's certificate manager,
// which end with it: one that serves, one that stops serving.
package kubelet

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/gorilla/mux"
	dto "github.com/prometheus/client_model/go"
	"github.com/virtual-kubelet/virtual-kubelet/node/api"
	"github.com/virtual-kubelet/virtual-kubelet/node/nodeutil"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/wisp-serving/wisp/provider/podlog"
)

// Node is what the API is about.
type Node interface {
	// Pods returns the pods that are bound to the node, Running those that run.
	Pods(context.Context) ([]*corev1.Pod, error)
	Running(context.Context) ([]*corev1.Pod, error)
	// Logs writes a container's log to out. What keeps it from it before the
	// first byte is an *Error.
	Logs(ctx context.Context, namespace, pod, container string, out io.Writer, o podlog.Options) error
	// Dial connects to a port of a pod.
	Dial(ctx context.Context, namespace, pod string, port int) (net.Conn, error)
	Summary(context.Context) (*stats.Summary, error)
	Metrics(context.Context) ([]*dto.MetricFamily, error)
}

// Error is one that a client is told, with an HTTP status.
type Error struct {
	Status int
	Text   string
}

func (e *Error) Error() string { return e.Text }

// Config is what New needs; all fields are required.
type Config struct {
	// Address is where the API is served, host:port.
	Address string
	Node    Node
	Auth    nodeutil.Auth
	// Certificate returns the serving certificate for a connection.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Log         *zap.SugaredLogger
}

// Server serves the API.
type Server struct{ cfg Config }

// New returns a Server. It starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Node == nil || cfg.Auth == nil || cfg.Certificate == nil || cfg.Log == nil {
		return nil, errors.New("kubelet API: Node, Auth, Certificate and Log must be set")
	}
	return &Server{cfg: cfg}, nil
}

// Listen binds the address, so that a taken one is known at once.
func (s *Server) Listen() (net.Listener, error) {
	l, err := net.Listen("tcp", s.cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("kubelet API: %w", err)
	}
	return tls.NewListener(l, &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: s.cfg.Certificate,
		// Whose certificate it is, the authenticator finds out; none is needed
		// where there is a token.
		ClientAuth: tls.RequestClientCert,
		// Connections are taken over for streams, which HTTP/2 can't.
		NextProtos: []string{"http/1.1"},
	}), nil
}

// Serve serves on l until ctx ends. It closes l, and cuts off streams that are
// still open.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           nodeutil.WithAuth(s.cfg.Auth, s.routes()),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          zap.NewStdLog(s.cfg.Log.Desugar().WithOptions(zap.IncreaseLevel(zap.ErrorLevel))),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("kubelet API: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return server.Close()
	})
	return g.Wait()
}

func (s *Server) routes() http.Handler {
	node := s.cfg.Node
	r := mux.NewRouter()
	r.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	r.HandleFunc("/containerLogs/{namespace}/{pod}/{container}", s.logs).Methods(http.MethodGet)
	for path, what := range map[string]string{"exec": "exec", "run": "exec", "attach": "attach"} {
		refuse := refusal(what)
		r.HandleFunc("/"+path+"/{namespace}/{pod}/{container}", refuse)
		r.HandleFunc("/"+path+"/{namespace}/{pod}/{uid}/{container}", refuse)
	}
	// virtual-kubelet's own for the rest.
	r.PathPrefix("/").Handler(api.PodHandler(api.PodHandlerConfig{
		PortForward:           s.forward,
		GetPods:               node.Running,
		GetPodsFromKubernetes: node.Pods,
		GetStatsSummary:       node.Summary,
		GetMetricsResource:    node.Metrics,
		StreamIdleTimeout:     streamIdle,
		StreamCreationTimeout: streamCreation,
	}, true))
	return r
}

// A kubelet's own (kubernetes pkg/kubelet/server).
const (
	streamIdle     = 4 * time.Hour
	streamCreation = 30 * time.Second
)

// refusal answers what there is no way to do in a wasm container.
func refusal(what string) http.HandlerFunc {
	text := map[string]string{
		"exec":   "exec: a wasm container holds one module and no other program that could be run in it",
		"attach": "attach: a wasm container's standard input is empty; its output is what `kubectl logs --follow` shows",
	}[what]
	// As an API object: who upgrades connections takes plain text for YAML.
	status, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Message: text, Code: http.StatusNotImplemented,
	})
	if err != nil {
		panic(err) // it is made of strings
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotImplemented)
		_, _ = w.Write(status)
	}
}

// forward joins a stream to a port of a pod until either ends.
func (s *Server) forward(ctx context.Context, namespace, pod string, port int32, stream io.ReadWriteCloser) error {
	conn, err := s.cfg.Node.Dial(ctx, namespace, pod, int(port))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var g errgroup.Group
	g.Go(func() error {
		_, err := io.Copy(conn, stream)
		if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			return half.CloseWrite()
		}
		conn.Close()
		return nil // the client has gone
	})
	g.Go(func() error {
		_, _ = io.Copy(stream, conn) // ends with either
		return stream.Close()
	})
	return g.Wait()
}
