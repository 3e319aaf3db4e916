package probe_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/wisp-serving/wisp/provider/probe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// to is a target whose port 8080 is the server at addr; there is no other.
func to(addr string) probe.Target {
	return probe.Target{
		Host:  "10.0.0.1",
		Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}},
		Dial: func(ctx context.Context, port int) (net.Conn, error) {
			if port != 8080 {
				return nil, errors.New("connection refused")
			}
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		},
	}
}

func TestHTTP(t *testing.T) {
	var got *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		switch r.URL.Path {
		case "/away":
			http.Redirect(w, r, "http://elsewhere.example/", http.StatusFound)
		case "/here":
			http.Redirect(w, r, "/bad", http.StatusFound)
		case "/bad":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/slow":
			<-r.Context().Done()
		}
	}))
	defer server.Close()
	target := to(server.Listener.Addr().String())
	tests := []struct {
		name string
		get  corev1.HTTPGetAction
		want string // of the error; empty for success
	}{
		{"success", corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromInt32(8080)}, ""},
		{"without a slash", corev1.HTTPGetAction{Path: "ok?x=1", Port: intstr.FromInt32(8080)}, ""},
		{"a named port", corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("web")}, ""},
		{"an unknown port", corev1.HTTPGetAction{Port: intstr.FromString("none")}, `port = "none"`},
		{"nobody listens", corev1.HTTPGetAction{Port: intstr.FromInt32(9090)}, "refused"},
		{"a bad answer", corev1.HTTPGetAction{Path: "/bad", Port: intstr.FromInt32(8080)}, "HTTP probe failed with statuscode: 503"},
		{"a redirect to elsewhere is an answer", corev1.HTTPGetAction{Path: "/away", Port: intstr.FromInt32(8080)}, ""},
		{"a redirect to itself is followed", corev1.HTTPGetAction{Path: "/here", Port: intstr.FromInt32(8080)}, "503"},
		{"no answer in time", corev1.HTTPGetAction{Path: "/slow", Port: intstr.FromInt32(8080)}, "deadline"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			expect(t, probe.Check(t.Context(), &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &test.get}}, target), test.want)
		})
	}

	get := &corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromInt32(8080), HTTPHeaders: []corev1.HTTPHeader{{Name: "host", Value: "named"}, {Name: "X-A", Value: "1"}}}
	expect(t, probe.Check(t.Context(), &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: get}}, target), "")
	if got.Host != "named" || got.Header.Get("X-A") != "1" || got.UserAgent() != "kube-probe/1.35" {
		t.Errorf("got host %s, headers %v", got.Host, got.Header)
	}
}

func expect(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tcp := func(port int32) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(port)}}}
	}
	expect(t, probe.Check(t.Context(), tcp(8080), to(l.Addr().String())), "")
	expect(t, probe.Check(t.Context(), tcp(9090), to(l.Addr().String())), "refused")
}

// A server that speaks nothing but HTTP/2, and one that doesn't speak it, are both
// ready where the protocol is to be found out; else only the latter is.
func TestHTTPOfEitherVersion(t *testing.T) {
	for _, h2c := range []bool{false, true} {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		server.Config.Protocols = new(http.Protocols)
		server.Config.Protocols.SetHTTP1(!h2c)
		server.Config.Protocols.SetUnencryptedHTTP2(h2c)
		server.Start()
		target := to(server.Listener.Addr().String())
		for _, detect := range []bool{false, true} {
			target.DetectHTTP2 = detect
			p := &corev1.Probe{TimeoutSeconds: 5, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)}}}
			if err := probe.Check(t.Context(), p, target); (err == nil) != (detect || !h2c) {
				t.Errorf("HTTP/2 alone %v, to be detected %v: got %v", h2c, detect, err)
			}
		}
		server.Close()
	}
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	state := health.NewServer()
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, state)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	defer func() {
		server.Stop()
		<-done
	}()
	check := func(service string) error {
		return probe.Check(t.Context(), &corev1.Probe{TimeoutSeconds: 5, ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 8080, Service: &service}}}, to(l.Addr().String()))
	}
	expect(t, check(""), "")
	state.SetServingStatus("sort", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	expect(t, check("sort"), "NOT_SERVING")
	expect(t, check("unknown"), "unknown service")
}

func TestTally(t *testing.T) {
	tests := []struct {
		name    string
		probe   corev1.Probe
		answers []bool
		want    []bool // which decide
	}{
		{"three failures by default", corev1.Probe{}, []bool{false, false, false, false}, []bool{false, false, true, true}},
		{"one success by default", corev1.Probe{}, []bool{true, false, true}, []bool{true, false, true}},
		{"a success begins anew", corev1.Probe{FailureThreshold: 2}, []bool{false, true, false, false}, []bool{false, true, false, true}},
		{"several successes", corev1.Probe{SuccessThreshold: 2}, []bool{true, true, false, true}, []bool{false, true, false, false}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var tally probe.Tally
			got := make([]bool, len(test.answers))
			for i, ok := range test.answers {
				tally, got[i] = tally.Add(&test.probe, ok)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		answers := []error{nil, errors.New("one"), nil, errors.New("two"), errors.New("three")}
		var at []time.Duration
		failures := 0
		p := &corev1.Probe{InitialDelaySeconds: 7, PeriodSeconds: 2, FailureThreshold: 2}
		var last error
		probe.Run(t.Context(), p, 0, func(context.Context) error {
			at = append(at, time.Since(began))
			err := answers[0]
			answers = answers[1:]
			return err
		}, func(error) { failures++ }, func(ok bool, err error) bool {
			last = err
			return ok
		})
		want := []time.Duration{7 * time.Second, 9 * time.Second, 11 * time.Second, 13 * time.Second, 15 * time.Second}
		if diff := cmp.Diff(want, at); diff != "" {
			t.Errorf("asked at (-want +got):\n%s", diff)
		}
		if failures != 3 || last == nil || last.Error() != "three" {
			t.Errorf("got %d failures, the last %v", failures, last)
		}
	})
}

// TestRunIsEagerUntilTheFirstSuccess is Knative's: a revision is ready when it
// is, not a period later.
func TestRunIsEagerUntilTheFirstSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		asked := 0
		probe.Run(t.Context(), &corev1.Probe{}, 10*time.Millisecond, func(context.Context) error {
			if asked++; asked < 5 {
				return errors.New("not yet")
			}
			return nil
		}, func(error) { t.Error("a failure before the first success was told") }, func(ok bool, _ error) bool { return !ok })
		if took := time.Since(began); took != 40*time.Millisecond {
			t.Errorf("took %s, want 40ms", took)
		}
	})
}
