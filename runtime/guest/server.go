package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/wisp-serving/wisp/runtime/wasi"
	"github.com/wisp-serving/wisp/span"
)

// ServerConfig says how requests reach a guest that listens.
type ServerConfig struct {
	// Dial connects to the guest's port, waiting until it listens.
	Dial func(context.Context) (*wasi.Conn, error)
	// H2C says that the guest speaks HTTP/2 without TLS. Otherwise it is asked by
	// HTTP/1.1, but for gRPC.
	H2C bool
	// Report takes what requests have failed by, and Log, the node's own, too.
	Report Report
	Log    *zap.SugaredLogger
}

const (
	// maxGuestConns bounds the connections to a guest; requests beyond wait for
	// one. All of them fit into its backlog.
	maxGuestConns = 1000
	// keptConns bounds those that wait for a next request, and keepConns for how
	// long: each has a goroutine in a guest.
	keptConns = 256
	keepConns = 30 * time.Second
	// maxGuestHeaders bounds a guest's response headers in bytes.
	maxGuestHeaders = 256 << 10
)

// Server is the handler that sends requests on to a guest that listens, over
// connections that are kept: HTTP/1.1, HTTP/2, gRPC, upgrades, streams both ways.
type Server struct {
	proxy *httputil.ReverseProxy
	http1 *client
	http2 *http.Transport
}

// NewServer returns a Server. Its owner calls CloseIdle at the end.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{
		http1: newClient(cfg.Dial),
		http2: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				conn, err := cfg.Dial(ctx)
				if err != nil {
					return nil, err
				}
				return conn, nil
			},
			DisableCompression:     true,
			IdleConnTimeout:        keepConns,
			MaxResponseHeaderBytes: maxGuestHeaders,
			Protocols:              new(http.Protocols),
		},
	}
	s.http2.Protocols.SetUnencryptedHTTP2(true)
	s.proxy = &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      &choice{s.http1, s.http2, cfg.H2C},
		FlushInterval:  -1, // at once
		BufferPool:     &copyBuffers,
		ModifyResponse: checkResponse,
		ErrorHandler:   func(w http.ResponseWriter, r *http.Request, err error) { serverError(cfg, w, r, err) },
		ErrorLog:       zap.NewStdLog(cfg.Log.Desugar()),
	}
	return s
}

// ServeHTTP sends r on. A guest may answer before it has read all of the body:
// net/http would take that from it over HTTP/1. ReverseProxy closes the body, so
// that nothing is left to be read after it.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 is anyway
	s.proxy.ServeHTTP(w, r)
}

// CloseIdle closes the connections that no request uses.
func (s *Server) CloseIdle() {
	s.http1.closeIdle(time.Now())
	s.http2.CloseIdleConnections()
}

// rewrite leaves a request as it came: the contract's headers are set before it
// gets here.
func rewrite(r *httputil.ProxyRequest) {
	r.Out.URL.Scheme, r.Out.URL.Host = "http", "guest"
	r.Out.Host = r.In.Host
	// ReverseProxy takes these off, for whoever isn't behind a proxy of its own.
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values, ok := r.In.Header[name]; ok {
			r.Out.Header[name] = values
		}
	}
	r.Out.URL.RawQuery = r.In.URL.RawQuery // as it is, also if it can't be parsed
	if _, ok := r.Out.Header["User-Agent"]; !ok {
		r.Out.Header["User-Agent"] = nil // none, not Go's
	}
}

// choice is the transport of each request.
type choice struct {
	http1 *client
	http2 *http.Transport
	h2c   bool
}

func (c *choice) RoundTrip(r *http.Request) (*http.Response, error) {
	upgrade := r.Header.Get("Upgrade") != ""
	if !upgrade && (c.h2c || isGRPC(r.Header.Get("Content-Type"))) {
		return c.http2.RoundTrip(r)
	}
	return c.http1.RoundTrip(r)
}

func isGRPC(contentType string) bool {
	rest, ok := strings.CutPrefix(contentType, "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

// errResponse says that what a guest answered can't be passed on.
type errResponse struct{ text string }

func (e *errResponse) Error() string { return "bad answer of the guest: " + e.text }

func checkResponse(r *http.Response) error {
	if r.StatusCode < 100 || r.StatusCode > 599 {
		return &errResponse{"status " + strconv.Itoa(r.StatusCode)}
	}
	return nil
}

// serverError answers a request that the guest hasn't.
func serverError(cfg ServerConfig, w http.ResponseWriter, r *http.Request, err error) {
	if cause := context.Cause(r.Context()); cause != nil {
		err = cause
	}
	cfg.Report.failed(r, err)
	var status int
	var text string
	switch {
	case errors.Is(err, ErrClosed), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		status, text = verdict(err)
	default:
		status, text = http.StatusBadGateway, "bad gateway"
		cfg.Log.Infow("guest gave no answer", "request", span.RequestID(r), "method", r.Method, "path", r.URL.Path, "error", err)
	}
	h := w.Header()
	h.Set("Content-Type", plainText)
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = fmt.Fprintln(w, text)
}

var copyBuffers buffers

// buffers is a httputil.BufferPool.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if buf, ok := b.pool.Get().(*[32 << 10]byte); ok {
		return buf[:]
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(buf []byte) { b.pool.Put((*[32 << 10]byte)(buf)) }
