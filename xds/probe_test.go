package xds

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds/translate"
	"knative.dev/networking/pkg/http/header"
)

func TestProve(t *testing.T) {
	probes := []translate.Probe{
		{Door: translate.External, Host: "a.example.com", Path: "/healthz"},
		{Door: translate.Internal, Inner: true, Host: "a.default", Path: "/x/healthz", Headers: []translate.Header{{Name: "tag", Value: "v"}}},
	}
	tests := []struct {
		name string
		// answer gets the number of the request, from 1.
		answer func(w http.ResponseWriter, n int64)
		want   string
		asked  int64
	}{{
		name:   "at once",
		answer: func(w http.ResponseWriter, _ int64) { w.Header().Set(header.HashKey, "hash") },
		asked:  2,
	}, {
		name: "after a worker has caught up",
		answer: func(w http.ResponseWriter, n int64) {
			if n == 1 {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			w.Header().Set(header.HashKey, "hash")
		},
		asked: 3,
	}, {
		name:   "another version",
		answer: func(w http.ResponseWriter, _ int64) { w.Header().Set(header.HashKey, "old") },
		want:   `probe a.example.com/healthz at the external listener: answer is 200 with K-Network-Hash "old", must be with "hash"`,
		asked:  probeAttempts,
	}, {
		name:   "a redirect is no proof",
		answer: func(w http.ResponseWriter, _ int64) { w.Header().Set("Location", "/"); w.WriteHeader(http.StatusFound) },
		want:   `probe a.example.com/healthz at the external listener: answer is 302 with K-Network-Hash "", must be with "hash"`,
		asked:  probeAttempts,
	}, {
		name: "a backend has its own opinion of probes",
		answer: func(w http.ResponseWriter, n int64) {
			w.Header().Set(header.HashKey, "hash")
			if n == 1 {
				w.WriteHeader(http.StatusNotFound)
			}
		},
		asked: 2,
	}, {
		name: "nobody to ask",
		answer: func(w http.ResponseWriter, _ int64) {
			w.Header().Set(header.HashKey, "hash")
			w.WriteHeader(http.StatusServiceUnavailable)
		},
		want:  "probe a.example.com/healthz at the external listener: answer is 503",
		asked: probeAttempts,
	}, {
		name: "the inner host is not there",
		answer: func(w http.ResponseWriter, n int64) {
			w.Header().Set(header.HashKey, "hash")
			if n%2 == 0 {
				w.WriteHeader(http.StatusNotFound)
			}
		},
		want:  "probe a.default/x/healthz at the internal listener: answer is 404",
		asked: 2 * probeAttempts,
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var asked atomic.Int64
			serve := func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get(header.ProbeKey) != header.ProbeValue || r.Header.Get(header.HashKey) != header.HashValueOverride ||
					r.Header.Get("User-Agent") != header.IngressReadinessUserAgent || r.Method != http.MethodGet {
					t.Errorf("probe is %s with %v", r.Method, r.Header)
				}
				tt.answer(w, asked.Add(1))
			}
			external := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Host != "a.example.com" || r.URL.Path != "/healthz" {
					t.Errorf("external listener asked for %s%s", r.Host, r.URL)
				}
				serve(w, r)
			}))
			defer external.Close()
			internal := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Host != "a.default" || r.URL.Path != "/x/healthz" || r.Header.Get("Tag") != "v" {
					t.Errorf("internal listener asked for %s%s with %v", r.Host, r.URL, r.Header)
				}
				serve(w, r)
			}))
			defer internal.Close()
			p := newProber(config.Envoy{HTTPAddress: external.Listener.Addr().String(), InternalAddress: internal.Listener.Addr().String()})
			err := p.prove(context.Background(), "", "hash", probes)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("error is %v, want %q", err, tt.want)
			}
			if got := asked.Load(); got != tt.asked {
				t.Errorf("%d requests, want %d", got, tt.asked)
			}
		})
	}
}

// TestProveSaysTheSameAgain resets each connection, in whose error net names both
// ends.
func TestProveSaysTheSameAgain(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}))
	defer srv.Close()
	address := srv.Listener.Addr().String()
	err := newProber(config.Envoy{HTTPAddress: address}).one(t.Context(), "", "hash", translate.Probe{Door: translate.External, Host: "a.example.com", Path: "/healthz"})
	if want := "read " + address + ": read: connection reset by peer"; err == nil || err.Error() != want {
		t.Errorf("error is %v, want %s", err, want)
	}
}

func TestReach(t *testing.T) {
	for _, tt := range []struct{ host, address, want string }{
		{"", "10.0.0.1:80", "10.0.0.1:80"},
		{"10.0.0.2", "10.0.0.1:80", "10.0.0.1:80"},
		{"", "0.0.0.0:8080", "127.0.0.1:8080"},
		{"", "[::]:8080", "[::1]:8080"},
		{"10.0.0.2", "0.0.0.0:8080", "10.0.0.2:8080"},
		{"fd00::2", "[::]:8080", "[fd00::2]:8080"},
	} {
		if got := reach(tt.host, tt.address); got != tt.want {
			t.Errorf("%s of host %q is reached at %s, want %s", tt.address, tt.host, got, tt.want)
		}
	}
}

// TestEveryEnvoyIsProved has two Envoys, one of which hasn't the KIngress yet.
func TestEveryEnvoyIsProved(t *testing.T) {
	ready := atomic.Bool{}
	serve := func(has func() bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if has() {
				w.Header().Set(header.HashKey, "hash")
			}
		}
	}
	first, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(first.Addr().String())
	second, err := net.Listen("tcp", "127.0.0.2:"+port)
	if err != nil {
		t.Fatal(err)
	}
	for ln, has := range map[net.Listener]func() bool{first: func() bool { return true }, second: ready.Load} {
		srv := &httptest.Server{Listener: ln, Config: &http.Server{Handler: serve(has)}}
		srv.Start()
		defer srv.Close()
	}
	r := &reconciler{
		prober: newProber(config.Envoy{HTTPAddress: "0.0.0.0:" + port}),
		envoys: func(context.Context) ([]string, error) { return []string{"127.0.0.1", "127.0.0.2"}, nil },
	}
	o := outcome{hash: "hash", probes: []translate.Probe{{Door: translate.External, Host: "a.example.com", Path: "/healthz"}}}
	if err := r.prove(t.Context(), o); err == nil {
		t.Error("proved, though the second Envoy has it not")
	}
	ready.Store(true)
	if err := r.prove(t.Context(), o); err != nil {
		t.Error(err)
	}
}
