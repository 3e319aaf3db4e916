// Package probe asks containers how they are, as a kubelet does: by HTTP, TCP or
// gRPC, through connections inside the process.
//
// [Tally] decides, pure, what a series of answers says; [Run] asks in time. It
// blocks and starts no goroutine that outlives it.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/wisp-serving/wisp/provider/pause"
)

// UserAgent is a kubelet's of the Kubernetes that this node speaks.
const UserAgent = "kube-probe/1.35"

// Target is what is asked.
type Target struct {
	// Dial connects to a port of the container.
	Dial func(ctx context.Context, port int) (net.Conn, error)
	// Ports are the container's, for probes that name one.
	Ports []corev1.ContainerPort
	// Host is the pod's address, as which the container is asked by HTTP.
	Host string
	// DetectHTTP2 has probes by HTTP asked by HTTP/2 without TLS first, and by HTTP/1.1
	// only where that fails.
	DetectHTTP2 bool
}

// Check asks once, as p says, within p's timeout. nil means success.
func Check(ctx context.Context, p *corev1.Probe, t Target) error {
	ctx, cancel := context.WithTimeout(ctx, seconds(p.TimeoutSeconds, 1))
	defer cancel()
	switch {
	case p.HTTPGet != nil:
		return t.http(ctx, p.HTTPGet)
	case p.TCPSocket != nil:
		return t.tcp(ctx, p.TCPSocket.Port)
	case p.GRPC != nil:
		return t.grpc(ctx, p.GRPC)
	default:
		return errors.New("the probe names no action that a wasm container has")
	}
}

func (t Target) port(p intstr.IntOrString) (int, error) {
	if p.Type == intstr.Int {
		return p.IntValue(), nil
	}
	for _, known := range t.Ports {
		if known.Name == p.StrVal {
			return int(known.ContainerPort), nil
		}
	}
	return 0, fmt.Errorf("port = %q, must be a port of the container", p.StrVal)
}

func (t Target) tcp(ctx context.Context, at intstr.IntOrString) error {
	port, err := t.port(at)
	if err != nil {
		return err
	}
	conn, err := t.Dial(ctx, port)
	if err != nil {
		return err
	}
	return conn.Close()
}

// maxBody is how much of an answer is read; what it says is not looked at.
const maxBody = 10 << 10

func (t Target) http(ctx context.Context, get *corev1.HTTPGetAction) error {
	port, err := t.port(get.Port)
	if err != nil {
		return err
	}
	if t.DetectHTTP2 && get.Scheme != corev1.URISchemeHTTPS {
		protocols := new(http.Protocols)
		protocols.SetUnencryptedHTTP2(true)
		if t.get(ctx, get, port, protocols) == nil {
			return nil
		}
	}
	return t.get(ctx, get, port, nil)
}

// get asks by HTTP/1.1, or by the given protocols.
func (t Target) get(ctx context.Context, get *corev1.HTTPGetAction, port int, protocols *http.Protocols) error {
	request, err := t.request(ctx, get, port)
	if err != nil {
		return err
	}
	client := http.Client{
		Transport: &http.Transport{
			Protocols:         protocols,
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return t.Dial(ctx, port) },
			DisableKeepAlives: true,
			// A kubelet takes any certificate: it asks how the container is, not who.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		},
		CheckRedirect: sameHost,
	}
	resp, err := client.Do(request)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxBody)
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("HTTP probe failed with statuscode: %d", resp.StatusCode)
	}
	return nil
}

func (t Target) request(ctx context.Context, get *corev1.HTTPGetAction, port int) (*http.Request, error) {
	u, err := url.Parse(get.Path)
	if err != nil {
		return nil, fmt.Errorf("path = %q, must be the path of a URL", get.Path)
	}
	u.Scheme, u.Host = strings.ToLower(string(get.Scheme)), net.JoinHostPort(t.Host, strconv.Itoa(port))
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", UserAgent)
	r.Header.Set("Accept", "*/*")
	for _, h := range get.HTTPHeaders {
		switch http.CanonicalHeaderKey(h.Name) {
		case "Host":
			r.Host = h.Value
		case "User-Agent", "Accept":
			r.Header.Set(h.Name, h.Value)
		default:
			r.Header.Add(h.Name, h.Value)
		}
	}
	return r, nil
}

// sameHost follows redirects to the container itself; one to elsewhere is its
// answer.
func sameHost(r *http.Request, via []*http.Request) error {
	switch {
	case r.URL.Host != via[0].URL.Host:
		return http.ErrUseLastResponse
	case len(via) >= 10:
		return errors.New("stopped after 10 redirects")
	default:
		return nil
	}
}

func (t Target) grpc(ctx context.Context, action *corev1.GRPCAction) error {
	conn, err := grpc.NewClient("passthrough:///container",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent(UserAgent),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return t.Dial(ctx, int(action.Port)) }))
	if err != nil {
		return err
	}
	defer conn.Close()
	request := &grpc_health_v1.HealthCheckRequest{}
	if action.Service != nil {
		request.Service = *action.Service
	}
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, request)
	switch {
	case status.Code(err) == codes.Unimplemented:
		return errors.New("this container does not implement the grpc health v1 API")
	case err != nil:
		return err
	case answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
		return fmt.Errorf("service unhealthy (responded with %q)", answer.GetStatus())
	default:
		return nil
	}
}

// Tally counts a probe's answers. The zero value has none yet.
type Tally struct {
	last      bool
	row       int32 // answers like the last
	threshold int32 // reached by row
}

// Add counts an answer and returns whether it decides: whether as many in a row
// were like it as p asks for. Once that is so, each further one like it decides.
func (t Tally) Add(p *corev1.Probe, ok bool) (Tally, bool) {
	if ok == t.last {
		t.row++
	} else {
		t = Tally{last: ok, row: 1}
	}
	t.threshold = max(p.FailureThreshold, 1)
	if p.FailureThreshold == 0 {
		t.threshold = 3 // the API server's default
	}
	if ok {
		t.threshold = max(p.SuccessThreshold, 1)
	}
	return t, t.row >= t.threshold
}

// Run asks by check in the times that p gives, until ctx ends or decided returns
// false. It calls failed for each failure, and decided whenever as many answers
// in a row as p asks for agree, with what they say. until, unless 0, is how long
// after a failure it asks again before the first success; 0 is p's period.
func Run(ctx context.Context, p *corev1.Probe, until time.Duration, check func(context.Context) error, failed func(error), decided func(ok bool, err error) bool) {
	if !pause.For(ctx, time.Duration(p.InitialDelaySeconds)*time.Second) {
		return
	}
	var tally Tally
	period, succeeded := seconds(p.PeriodSeconds, 10), false
	for {
		err := check(ctx)
		if ctx.Err() != nil {
			return // whatever it was, the container ends
		}
		if err != nil && (until == 0 || succeeded) {
			failed(err)
		}
		var decides bool
		if tally, decides = tally.Add(p, err == nil); decides && !decided(err == nil, err) {
			return
		}
		succeeded = succeeded || err == nil
		wait := period
		if until > 0 && !succeeded {
			wait = until
		}
		if !pause.For(ctx, wait) {
			return
		}
	}
}

func seconds(n, unset int32) time.Duration {
	if n <= 0 {
		n = unset
	}
	return time.Duration(n) * time.Second
}
