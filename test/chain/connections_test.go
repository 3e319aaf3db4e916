package chain

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"github.com/wisp-serving/wisp/runtime/guest"
)

// once opens a connection to the node, and has one opened to the guest that is closed
// with the answer, and closes it.
func (f *function) once(t testing.TB) {
	t.Helper()
	const answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
	conn, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.(*net.TCPConn).SetLinger(0) // no port waits for what may still come
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprintf(conn, "%sContent-Length: %d\r\n\r\n%s", head(http.MethodPost, "/raw"), len(answer), answer)
	got, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	if text, err := io.ReadAll(got.Body); string(text) != "ok" || err != nil {
		t.Fatalf("got %d %q, %v", got.StatusCode, text, err)
	}
}

// holdings are what connections could leave behind.
type holdings struct {
	goroutines, files int
	heap              int64 // bytes
	guest             int64 // bytes of guests' memory
	open              string
}

func (f *function) holdings(t testing.TB) holdings {
	t.Helper()
	var now holdings
	_, now.open, _ = send(f.request(t, http.MethodGet, "/conns", nil))
	_, now.open, _ = strings.Cut(strings.TrimSpace(now.open), " ") // had, has
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	goruntime.GC()
	goruntime.GC() // pools are emptied by the second
	var heap goruntime.MemStats
	goruntime.ReadMemStats(&heap)
	now.goroutines, now.files, now.heap, now.guest = goruntime.NumGoroutine(), len(files), int64(heap.HeapAlloc), f.Usage().Memory
	return now
}

const (
	// few is what may come and go meanwhile, of goroutines and files, and grown by how
	// much a Go guest's memory may grow: it does so in steps.
	few   = 5
	grown = 4 << 20
)

// left waits until no more is held than before, but for some bytes of the heap, and
// returns the bytes.
func (f *function) left(t testing.TB, before holdings, bytes int64) int64 {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		now := f.holdings(t)
		if now.goroutines <= before.goroutines+few && now.files <= before.files+few && now.guest <= before.guest+grown &&
			now.open == before.open && now.heap-before.heap <= bytes {
			return now.heap - before.heap
		}
		if time.Now().After(until) {
			t.Errorf("before: %+v, and now: %+v", before, now)
			return now.heap - before.heap
		}
	}
}

// Connections that are opened and closed, from the client's to the guest's, leave
// nothing behind.
func TestConnectionsLeaveNothing(t *testing.T) {
	f := deploy(t, options{guest: "echo", abi: guest.ABIServer})
	const n = 500
	for range n { // until all has grown that grows with use
		f.once(t)
	}
	before := f.holdings(t)
	for range n {
		f.once(t)
	}
	f.left(t, before, 200*n)
}

// BenchmarkConnections is what a connection costs from the client's to the guest's;
// run it for a hundred thousand, as in -benchtime=100000x.
func BenchmarkConnections(b *testing.B) {
	f := deploy(b, options{guest: "echo", abi: guest.ABIServer})
	for range 1000 {
		f.once(b)
	}
	before := f.holdings(b)
	b.ResetTimer()
	for range b.N {
		f.once(b)
	}
	b.StopTimer()
	b.ReportMetric(float64(f.left(b, before, 1<<20))/float64(b.N), "left-B/op")
}
