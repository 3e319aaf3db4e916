package xds

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/wisp-serving/wisp/xds/translate"
	discoveryv1 "k8s.io/api/discovery/v1"
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
		want:   `: answer is 200 with K-Network-Hash "old", must be with "hash"`,
		asked:  probeAttempts,
	}, {
		name:   "a redirect is no proof",
		answer: func(w http.ResponseWriter, _ int64) { w.Header().Set("Location", "/"); w.WriteHeader(http.StatusFound) },
		want:   `: answer is 302 with K-Network-Hash "", must be with "hash"`,
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
		want:  ": answer is 503",
		asked: probeAttempts,
	}, {
		name: "the inner host is not there",
		answer: func(w http.ResponseWriter, n int64) {
			w.Header().Set(header.HashKey, "hash")
			if n > 1 {
				w.WriteHeader(http.StatusNotFound)
			}
		},
		want:  ": answer is 404",
		asked: 1 + probeAttempts,
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
			all := places{translate.External: {external.Listener.Addr().String()}, translate.Internal: {internal.Listener.Addr().String()}}
			err := newProber().proveAll(context.Background(), all, outcome{hash: "hash", probes: probes})
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
	err := newProber().one(t.Context(), address, "hash", translate.Probe{Door: translate.External, Host: "a.example.com", Path: "/healthz"})
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
	all := places{}
	for _, has := range []func() bool{func() bool { return true }, ready.Load} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if has() {
				w.Header().Set(header.HashKey, "hash")
			}
		}))
		defer srv.Close()
		all.add(translate.External, srv.Listener.Addr().String())
	}
	o := outcome{hash: "hash", probes: []translate.Probe{{Door: translate.External, Host: "a.example.com", Path: "/healthz"}}}
	if err := newProber().proveAll(t.Context(), all, o); err == nil {
		t.Error("proved, though the second Envoy has it not")
	}
	ready.Store(true)
	if err := newProber().proveAll(t.Context(), all, o); err != nil {
		t.Error(err)
	}
	o.probes[0].Door = translate.Secure
	if err := newProber().proveAll(t.Context(), all, o); err == nil || err.Error() != "no Envoy with the external-tls listener answers" {
		t.Errorf("error without an Envoy at the door is %v", err)
	}
}

// TestEnvoysAreFound has the Envoys of other gateways behind the gateway's Services.
func TestEnvoysAreFound(t *testing.T) {
	b := newBed(t, "127.109.0")
	b.stillGateway(nil)
	yes, no := true, false
	for name, ports := range map[string]map[string]int32{
		"wisp-gateway":          {"http": 8080, "https": 8443, "other": 1},
		"wisp-gateway-internal": {"http": 8081},
	} {
		s := &discoveryv1.EndpointSlice{ObjectMeta: meta(name), AddressType: discoveryv1.AddressTypeIPv4}
		s.Namespace = "wisp-system"
		s.Labels = map[string]string{discoveryv1.LabelServiceName: name}
		for name, number := range ports {
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Port: &number})
		}
		s.Endpoints = []discoveryv1.Endpoint{
			{Addresses: []string{"10.0.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}},
			{Addresses: []string{"10.0.0.1"}},
			{Addresses: []string{"10.0.0.3"}, Conditions: discoveryv1.EndpointConditions{Ready: &no}},
		}
		b.save(s)
	}
	l := locator{server: b.srv, source: clusterSource{b.client}, envoy: b.cfg.Envoy}
	d := domains{external: b.cfg.ExternalDomain, internal: b.cfg.InternalDomain}
	got, others, err := l.find(t.Context(), d)
	want := places{
		translate.External: {"10.0.0.1:8080", "10.0.0.2:8080"},
		translate.Secure:   {"10.0.0.1:8443", "10.0.0.2:8443"},
		translate.Internal: {"10.0.0.1:8081", "10.0.0.2:8081"},
	}
	if diff := cmp.Diff(want, got); diff != "" || !others || err != nil {
		t.Errorf("others is %v, error %v; places (-want +got):\n%s", others, err, diff)
	}
	l.alone = true
	if got, others, err := l.find(t.Context(), d); len(got) > 0 || others || err != nil {
		t.Errorf("alone: %v, %v, %v, want nothing", got, others, err)
	}
}
