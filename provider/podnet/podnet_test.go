package podnet_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/wisp-serving/wisp/provider/podnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addresses(t *testing.T, network string) *podnet.Addresses {
	t.Helper()
	a, err := podnet.NewAddresses(netip.MustParsePrefix(network))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func take(t *testing.T, a *podnet.Addresses, had string) string {
	t.Helper()
	addr := a.TryTake(had)
	if !addr.IsValid() {
		t.Fatal("no address is free")
	}
	return addr.String()
}

func TestTake_goes_round(t *testing.T) {
	a := addresses(t, "127.9.9.0/29") // .1 to .6
	for _, want := range []string{"127.9.9.1", "127.9.9.2"} {
		if got := take(t, a, ""); got != want {
			t.Errorf("Take = %s, want %s", got, want)
		}
	}
	a.Give(netip.MustParseAddr("127.9.9.1"))
	for _, want := range []string{"127.9.9.3", "127.9.9.4", "127.9.9.5", "127.9.9.6", "127.9.9.1"} {
		if got := take(t, a, ""); got != want {
			t.Errorf("Take = %s, want %s: one that was given back comes last", got, want)
		}
	}
}

func TestTake_gives_a_pod_the_address_that_it_had(t *testing.T) {
	a := addresses(t, "127.9.9.0/29")
	if got := take(t, a, "127.9.9.5"); got != "127.9.9.5" {
		t.Errorf("Take = %s, want the one that it had", got)
	}
	for had, why := range map[string]string{
		"127.9.9.5": "it is another pod's now",
		"127.9.9.0": "it stands for the network",
		"127.9.9.7": "it stands for broadcasts",
		"127.8.8.1": "it is of another network",
		"nonsense":  "it is none",
	} {
		got := take(t, a, had)
		if got == had {
			t.Errorf("Take(%s) gave it again: %s", had, why)
		}
		a.Give(netip.MustParseAddr(got))
	}
}

func TestTake_waits_while_there_is_none(t *testing.T) {
	a := addresses(t, "127.9.9.0/30") // .1 and .2
	take(t, a, "")
	second := take(t, a, "")
	gone, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the pod was deleted")
	cancel(cause)
	if _, err := a.Take(gone); !errors.Is(err, cause) {
		t.Errorf("Take = %v, want the cause of the context's end", err)
	}
	got := make(chan string)
	go func() {
		addr, err := a.Take(context.Background())
		if err != nil {
			t.Error(err)
		}
		got <- addr.String()
	}()
	a.Give(netip.MustParseAddr(second))
	if addr := <-got; addr != second {
		t.Errorf("Take = %s, want %s, which was given back", addr, second)
	}
}

func TestNewAddresses_refuses_what_no_pod_can_have(t *testing.T) {
	for network, want := range map[string]string{
		"127.9.9.1/32":   "no address for a pod",
		"203.0.113.0/24": "ip route add local 203.0.113.0/24 dev lo",
	} {
		_, err := podnet.NewAddresses(netip.MustParsePrefix(network))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("NewAddresses(%s) = %v, want %q in it", network, err, want)
		}
	}
}

// echo is a guest that sends back what it gets, and ends when its peer has.
func echo(t *testing.T) podnet.Dial {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	t.Cleanup(func() { l.Close() })
	return func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}
}

// listen returns a port, and what connects to it.
func listen(t *testing.T, dial podnet.Dial) (*podnet.Port, func() (net.Conn, error)) {
	t.Helper()
	addr, err := podnet.NewAddresses(netip.MustParsePrefix("127.9.9.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	pod := addr.TryTake("")
	at := netip.AddrPortFrom(pod, freePort(t, pod))
	port, err := podnet.Listen(at, dial)
	if err != nil {
		t.Fatal(err)
	}
	return port, func() (net.Conn, error) { return net.Dial("tcp", at.String()) }
}

func connect(t *testing.T, dial func() (net.Conn, error)) net.Conn {
	t.Helper()
	conn, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func freePort(t *testing.T, at netip.Addr) uint16 {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func TestPort_passes_both_ways_and_their_ends(t *testing.T) {
	port, dial := listen(t, echo(t))
	defer port.Close(t.Context())
	conn := connect(t, dial)
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	// The guest's answer comes after our end, and ends with its own.
	if got, err := io.ReadAll(conn); string(got) != "hello" || err != nil {
		t.Errorf("got %q, %v, want what was sent, to its end", got, err)
	}
}

func TestPort_resets_what_no_guest_takes(t *testing.T) {
	port, dial := listen(t, func(context.Context) (net.Conn, error) { return nil, errors.New("refused") })
	defer port.Close(t.Context())
	conn, err := dial()
	if err == nil {
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset: an end would be an answer", err)
	}
}

func TestClose_lets_connections_end_and_cuts_the_rest(t *testing.T) {
	port, dial := listen(t, echo(t))
	patient, stubborn := connect(t, dial), connect(t, dial)
	for _, conn := range []net.Conn{patient, stubborn} {
		if _, err := io.WriteString(conn, "a"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	grace, over := context.WithCancel(t.Context())
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		port.Close(grace)
	}()
	// What is there goes on during the grace period.
	if _, err := io.WriteString(patient, "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(patient, make([]byte, 1)); err != nil {
		t.Errorf("a connection was cut off before its time: %v", err)
	}
	patient.Close()
	over()
	<-closed
	if _, err := io.ReadFull(stubborn, make([]byte, 1)); err == nil {
		t.Error("a connection outlived Close")
	}
}

// A server that is closed lets its requests end, and cuts off those that don't.
func TestServe(t *testing.T) {
	pod := addresses(t, "127.9.9.0/24").TryTake("")
	at := netip.AddrPortFrom(pod, freePort(t, pod))
	arrived := make(chan string)
	release := make(chan struct{})
	server, err := podnet.Serve(at, &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		arrived <- r.URL.Path
		if r.URL.Path == "/patient" {
			<-release
			return
		}
		<-r.Context().Done()
	})})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := podnet.Serve(at, &http.Server{ReadHeaderTimeout: time.Minute}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second server: got %v, want that the address is taken", err)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	ask := func(path string) <-chan error {
		done := make(chan error, 1)
		go func() {
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+at.String()+path, nil)
			resp, err := transport.RoundTrip(r)
			if err == nil {
				resp.Body.Close()
			}
			done <- err
		}()
		<-arrived
		return done
	}
	patient, stubborn := ask("/patient"), ask("/stubborn")
	ctx, cut := context.WithCancel(t.Context())
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		server.Close(ctx)
	}()
	close(release)
	if err := <-patient; err != nil {
		t.Errorf("a request that ended in time: %v", err)
	}
	cut()
	<-closed
	if err := <-stubborn; err == nil {
		t.Error("a request that didn't end was answered")
	}
	if conn, err := net.Dial("tcp", at.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v after Close, want that nobody listens", err)
		conn.Close()
	}
}
