package provider

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	scaling "knative.dev/serving/pkg/autoscaler/metrics"

	"github.com/wisp-serving/wisp/config"
)

// withPodNetwork gives pods addresses of their own.
func withPodNetwork(c *config.Node) {
	c.Address = "127.9.7.1"
	c.PodCIDR = "127.9.8.0/24"
}

func (s *stand) podIP(t *testing.T, name string) string {
	t.Helper()
	pod, err := s.client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod.Status.PodIP
}

func TestPodsHaveAddressesOfTheirOwn(t *testing.T) {
	s := newStandWith(t, withPodNetwork)
	image := s.push(t, "sort", emptyCommand)
	first, second := s.pod("first", "uid-1", image), s.pod("second", "uid-2", image)
	for _, pod := range []*corev1.Pod{first, second} {
		s.create(t, pod)
		s.awaitReady(t, pod.Name)
	}
	one, two := s.podIP(t, "first"), s.podIP(t, "second")
	if one == two {
		t.Errorf("both pods have the address %s", one)
	}
	for _, ip := range []string{one, two} {
		addr, err := netip.ParseAddr(ip)
		if err != nil || !netip.MustParsePrefix("127.9.8.0/24").Contains(addr) {
			t.Errorf("got address %q, want one of podCIDR", ip)
		}
	}

	s.stop()
	s.start(t)
	for name, want := range map[string]string{"first": one, "second": two} {
		s.awaitReady(t, name)
		if got := s.podIP(t, name); got != want {
			t.Errorf("pod %s has the address %s after the node's restart, had %s", name, got, want)
		}
	}
}

// TestPodAnswersAtItsOwnAddress shows that a revision's pod answers on each port of
// Knative's proxy, for as long as it is there.
func TestPodAnswersAtItsOwnAddress(t *testing.T) {
	s := newStandWith(t, withPodNetwork)
	pod := s.pod("sort", "uid-1", s.push(t, "sort", emptyCommand))
	s.create(t, pod)
	s.awaitReady(t, "sort")
	ip := s.podIP(t, "sort")
	h2c := &http.Transport{Protocols: new(http.Protocols)}
	h2c.Protocols.SetUnencryptedHTTP2(true)
	ask := func(rt http.RoundTripper, method, at string, header ...string) (int, string, http.Header) {
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+ip+at, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		resp, err := rt.RoundTrip(r)
		if err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body), resp.Header
	}
	h1 := &http.Transport{DisableKeepAlives: true}
	for _, at := range []string{":8012/", ":8013/"} {
		for _, rt := range []http.RoundTripper{h1, h2c} {
			if status, body, _ := ask(rt, http.MethodPost, at); status != http.StatusOK {
				t.Errorf("%s: got %d %q, want 200", at, status, body)
			}
			if status, body, _ := ask(rt, http.MethodGet, at+"healthz", "K-Network-Probe", "queue"); status != http.StatusOK || body != "queue" {
				t.Errorf("a probe of %s: got %d %q, want queue", at, status, body)
			}
		}
	}
	h2c.CloseIdleConnections()
	_, scraped, header := ask(h1, http.MethodGet, ":9090/metrics")
	var stat scaling.Stat
	if err := stat.Unmarshal([]byte(scraped)); err != nil || stat.PodName != "sort" || header.Get("Content-Type") != "application/protobuf" {
		t.Errorf("port 9090: got %+v, %v, want the pod's stat", &stat, err)
	}
	if _, body, _ := ask(h1, http.MethodGet, ":9091/metrics"); body != "metrics" {
		t.Errorf("port 9091: got %q, want the pod's metrics", body)
	}
	// On a connection that has been answered before: one that isn't accepted yet
	// would be refused when the pod goes.
	conn, err := net.Dial("tcp", net.JoinHostPort(ip, "8022"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	status := func() int {
		t.Helper()
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	fmt.Fprintf(conn, "GET /none HTTP/1.1\r\nHost: pod\r\n\r\n")
	status()
	fmt.Fprintf(conn, "GET /wait-for-drain HTTP/1.1\r\nHost: pod\r\n\r\n")
	s.markDeleted(t, pod)
	if got := status(); got != http.StatusOK {
		t.Errorf("wait-for-drain: got %d, want 200", got)
	}
	conn.Close()
	s.awaitGone(t, "sort")
	for _, port := range []string{"8012", "8013", "8022", "9090", "9091"} {
		if _, err := net.Dial("tcp", net.JoinHostPort(ip, port)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("port %s: got %v from the address of a pod that is gone, want that nobody listens", port, err)
		}
	}
}
