package kubelet

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/virtual-kubelet/virtual-kubelet/node/nodeutil"
	"go.uber.org/zap/zaptest"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/wisp-serving/wisp/provider/podlog"
)

// node has one pod, of which it is asked for logs.
type node struct {
	asked podlog.Options
	logs  func(ctx context.Context, out io.Writer) error
}

func (n *node) Pods(context.Context) ([]*corev1.Pod, error) {
	return []*corev1.Pod{{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "sort"}}}, nil
}
func (n *node) Running(ctx context.Context) ([]*corev1.Pod, error) { return n.Pods(ctx) }

func (n *node) Logs(ctx context.Context, namespace, pod, container string, out io.Writer, o podlog.Options) error {
	n.asked = o
	if namespace+pod+container != "defaultsortmain" {
		return &Error{Status: http.StatusNotFound, Text: "no such container"}
	}
	return n.logs(ctx, out)
}

func (n *node) Dial(context.Context, string, string, int) (net.Conn, error) {
	return nil, fmt.Errorf("refused")
}

func (n *node) Summary(context.Context) (*stats.Summary, error) {
	return &stats.Summary{Node: stats.NodeStats{NodeName: "wisp-0"}}, nil
}
func (n *node) Metrics(context.Context) ([]*dto.MetricFamily, error) { return nil, nil }

// serve runs a server and returns how to call it.
func serve(t *testing.T, n Node, auth nodeutil.Auth) func(method, path string) *http.Response {
	t.Helper()
	certificate, err := NewCertificate(CertificateConfig{NodeName: "wisp-0", Address: "127.0.0.1", Dir: t.TempDir(), Client: fake.NewClientset()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Address: "127.0.0.1:0", Node: n, Auth: auth, Certificate: certificate.Get, Log: zaptest.NewLogger(t).Sugar()})
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	own, err := x509.ParseCertificate(certificate.own.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(own)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	client := &http.Client{Transport: transport}
	return func(method, path string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "https://"+l.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
}

func TestAnswers(t *testing.T) {
	n := &node{logs: func(_ context.Context, out io.Writer) error { _, err := io.WriteString(out, "a line\n"); return err }}
	call := serve(t, n, nodeutil.NoAuth())
	tests := []struct {
		name, method, path string
		status             int
		want               string
	}{
		{"health", http.MethodGet, "/healthz", http.StatusOK, "ok"},
		{"logs", http.MethodGet, "/containerLogs/default/sort/main", http.StatusOK, "a line\n"},
		{"logs of no container", http.MethodGet, "/containerLogs/default/sort/other", http.StatusNotFound, "no such container"},
		{"logs, asked badly", http.MethodGet, "/containerLogs/default/sort/main?tailLines=-1&follow=perhaps", http.StatusBadRequest, `follow = "perhaps", must be true or false`},
		{"exec", http.MethodPost, "/exec/default/sort/main?command=sh", http.StatusNotImplemented, "exec: a wasm container holds one module"},
		{"attach", http.MethodPost, "/attach/default/sort/main", http.StatusNotImplemented, "kubectl logs --follow"},
		{"pods", http.MethodGet, "/pods", http.StatusOK, `"name":"sort"`},
		{"running pods", http.MethodGet, "/runningpods/", http.StatusOK, `"name":"sort"`},
		{"usage", http.MethodGet, "/stats/summary", http.StatusOK, `"nodeName":"wisp-0"`},
		{"nothing", http.MethodGet, "/nothing", http.StatusNotFound, "not found"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			resp := call(test.method, test.path)
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != test.status || !strings.Contains(string(body), test.want) {
				t.Errorf("got %d %q, want %d with %q", resp.StatusCode, body, test.status, test.want)
			}
		})
	}
}

// TestFollowedLinesComeAtOnce holds that a follower waits for no buffer to fill,
// and that the node is told when it goes.
func TestFollowedLinesComeAtOnce(t *testing.T) {
	gone := make(chan struct{})
	n := &node{logs: func(ctx context.Context, out io.Writer) error {
		fmt.Fprintln(out, "first")
		<-ctx.Done()
		close(gone)
		return nil
	}}
	resp := serve(t, n, nodeutil.NoAuth())(http.MethodGet, "/containerLogs/default/sort/main?follow=true")
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); line != "first\n" {
		t.Errorf("got %q, %v", line, err)
	}
	resp.Body.Close()
	<-gone
}

func TestNobodyUnknownIsLetIn(t *testing.T) {
	// A fake API server reviews no token: nobody is known.
	auth, err := NewAuth(fake.NewClientset(), "wisp-0", "")
	if err != nil {
		t.Fatal(err)
	}
	call := serve(t, &node{}, auth)
	for _, path := range []string{"/containerLogs/default/sort/main", "/pods", "/healthz", "/exec/default/sort/main"} {
		if resp := call(http.MethodGet, path); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: got %d without credentials, want 401", path, resp.StatusCode)
		}
	}
}

func TestParseOptions(t *testing.T) {
	now := time.Unix(1000, 0).UTC()
	tests := []struct {
		query string
		want  podlog.Options
		err   string
	}{
		{"", podlog.Options{Tail: -1}, ""},
		{"follow=true&previous=1&timestamps=true", podlog.Options{Tail: -1, Follow: true, Previous: true, Timestamps: true}, ""},
		{"tailLines=0", podlog.Options{}, ""},
		{"tailLines=5&limitBytes=7", podlog.Options{Tail: 5, LimitBytes: 7}, ""},
		{"sinceSeconds=10", podlog.Options{Tail: -1, Since: time.Unix(990, 0).UTC()}, ""},
		{"sinceTime=1970-01-01T00:00:05Z", podlog.Options{Tail: -1, Since: time.Unix(5, 0).UTC()}, ""},
		{"sinceTime=1970-01-01T00:00:05Z&sinceSeconds=1", podlog.Options{}, "sinceTime"},
		{"sinceTime=now", podlog.Options{}, `sinceTime = "now"`},
		{"limitBytes=0", podlog.Options{}, `limitBytes = "0", must be a number of at least 1`},
		{"tailLines=some&timestamps=some", podlog.Options{}, "timestamps"},
	}
	for _, test := range tests {
		t.Run(test.query, func(t *testing.T) {
			q, err := url.ParseQuery(test.query)
			if err != nil {
				t.Fatal(err)
			}
			got, err := parseOptions(q, now)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, want an error with %s", err, test.err)
				}
				return
			}
			if diff := cmp.Diff(test.want, got); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}
