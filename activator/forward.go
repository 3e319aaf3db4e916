package activator

import (
	"context"
	"errors"
	"io"
	stdlog "log" //nolint:depguard // httputil.ReverseProxy asks for it
	"net"
	"net/http"
	"net/http/httputil"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapio"
	"k8s.io/apimachinery/pkg/types"
	netheader "knative.dev/networking/pkg/http/header"
	"knative.dev/serving/pkg/activator"

	"github.com/wisp-serving/wisp/span"
)

const (
	// dialNode bounds connecting to another node: it is near, or it is gone.
	dialNode = time.Second
	// idleNode is how long a connection to another node is kept for the next
	// request. That node closes it later, so no request meets a closed one.
	idleNode = time.Minute
	// connectionsPerNode is how many HTTP/1.1 connections are kept so.
	connectionsPerNode = 512
	// avoidFor is how long a node that could not be reached gets no request. Its
	// pods leave the watch once Kubernetes has noticed, which takes longer.
	avoidFor = 2 * time.Second
)

// forwarder sends requests on to other nodes, each over the protocol by which it
// came: a gRPC call needs HTTP/2, an upgrade HTTP/1.1.
type forwarder struct {
	log        *zap.SugaredLogger
	proxy      httputil.ReverseProxy
	http1, h2c *http.Transport
}

// hop is one attempt to send a request on.
type hop struct {
	revision types.NamespacedName
	address  string
	err      error
}

type hopKey struct{}

func newForwarder(log *zap.SugaredLogger) *forwarder {
	f := &forwarder{log: log, http1: nodeTransport(), h2c: nodeTransport()}
	f.http1.MaxIdleConnsPerHost = connectionsPerNode
	f.h2c.Protocols = new(http.Protocols)
	f.h2c.Protocols.SetUnencryptedHTTP2(true)
	f.h2c.HTTP2 = &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second}
	f.proxy = httputil.ReverseProxy{
		Rewrite:       rewrite,
		Transport:     f,
		FlushInterval: -1, // what a function says now, the client hears now
		ErrorHandler:  func(_ http.ResponseWriter, r *http.Request, err error) { hopOf(r).err = err },
		ErrorLog:      stdlog.New(&zapio.Writer{Log: log.Desugar(), Level: zap.DebugLevel}, "", 0),
	}
	return f
}

func nodeTransport() *http.Transport {
	return &http.Transport{
		DialContext:        (&net.Dialer{Timeout: dialNode}).DialContext,
		DisableCompression: true, // the body is the client's and the function's
		IdleConnTimeout:    idleNode,
	}
}

// RoundTrip implements http.RoundTripper.
func (f *forwarder) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.ProtoMajor == 2 {
		return f.h2c.RoundTrip(r)
	}
	return f.http1.RoundTrip(r)
}

func (f *forwarder) close() {
	f.http1.CloseIdleConnections()
	f.h2c.CloseIdleConnections()
}

// rewrite addresses a request to the node and says whom it is for. All else is
// as it came: Envoy has set X-Forwarded-For, and a query need not parse.
func rewrite(p *httputil.ProxyRequest) {
	h := hopOf(p.In)
	p.Out.URL.Scheme, p.Out.URL.Host = "http", h.address
	p.Out.URL.RawQuery = p.In.URL.RawQuery
	p.Out.Host = p.In.Host
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := p.In.Header[name]; ok {
			p.Out.Header[name] = v
		}
	}
	p.Out.Header.Set(activator.RevisionHeaderNamespace, h.revision.Namespace)
	p.Out.Header.Set(activator.RevisionHeaderName, h.revision.Name)
	p.Out.Header.Set(netheader.ProxyKey, activator.Name)
	span.Pass(p.In.Context(), p.Out.Header)
}

func hopOf(r *http.Request) *hop { return r.Context().Value(hopKey{}).(*hop) }

// forward sends r to the node at address and passes the answer on. It returns
// false if nothing of the request has left: then it may go elsewhere.
func (f *forwarder) forward(w http.ResponseWriter, r *http.Request, revision types.NamespacedName, address string) bool {
	h := &hop{revision: revision, address: address}
	in := r.WithContext(context.WithValue(r.Context(), hopKey{}, h))
	body := &untouched{Reader: r.Body}
	if r.Body != nil && r.Body != http.NoBody {
		in.Body = body
	}
	f.proxy.ServeHTTP(w, in)
	switch {
	case h.err == nil:
		return true
	case r.Context().Err() == nil && neverConnected(h.err) && !body.read:
		return false
	case errors.Is(context.Cause(r.Context()), context.DeadlineExceeded):
		http.Error(w, "request timeout", http.StatusGatewayTimeout)
	case r.Context().Err() != nil: // the client has gone: nobody reads an answer
	default:
		f.log.Infow("a node gave no answer", "key", revision.String(), "address", address, "request", span.RequestID(r), "error", h.err)
		http.Error(w, "the node that ran revision "+revision.String()+" did not answer", http.StatusBadGateway)
	}
	return true
}

// neverConnected is whether err is of a connection that did not come about.
func neverConnected(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// untouched is a request's body that notes whether it has been read. It is not
// closed by those it is lent to: the next node may need it, and the server
// closes it in the end.
type untouched struct {
	io.Reader
	read bool
}

func (u *untouched) Read(p []byte) (int, error) {
	u.read = true
	return u.Reader.Read(p)
}

func (u *untouched) Close() error { return nil }
