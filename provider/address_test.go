package provider

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

// TestPodAnswersAtItsOwnAddress shows that requests to Knative's port of a pod's
// own address reach the node's request path, for as long as the pod is there.
func TestPodAnswersAtItsOwnAddress(t *testing.T) {
	s := newStandWith(t, withPodNetwork)
	node, err := net.Listen("tcp", "127.9.7.1:8012")
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		conn, err := node.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "the node"); err != nil {
			t.Error(err)
		}
	}()
	pod := s.pod("sort", "uid-1", s.push(t, "sort", emptyCommand))
	s.create(t, pod)
	s.awaitReady(t, "sort")
	at := net.JoinHostPort(s.podIP(t, "sort"), "8012")
	conn, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); string(got) != "the node" || err != nil {
		t.Errorf("got %q, %v at the pod's address", got, err)
	}
	conn.Close()
	<-answered
	node.Close()

	s.markDeleted(t, pod)
	s.awaitGone(t, "sort")
	if _, err := net.Dial("tcp", at); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v from the address of a pod that is gone, want that nobody listens", err)
	}
}
