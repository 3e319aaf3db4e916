package chain

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wisp-serving/wisp/runtime/guest"
)

// listening returns the inodes of the sockets on which this process listens.
func listening(t *testing.T) map[string]bool {
	t.Helper()
	own := map[string]bool{}
	files, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if target, err := os.Readlink(file); err == nil && strings.HasPrefix(target, "socket:[") {
			own[strings.Trim(target, "socket:[]")] = true
		}
	}
	found := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile("/proc/self/net/" + table)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			const listens = "0A"
			if f := strings.Fields(line); len(f) > 9 && f[3] == listens && own[f[9]] {
				found[f[9]] = true
			}
		}
	}
	return found
}

// A guest that listens is no port of the machine's: nobody but the node can
// connect to it.
func TestGuestsListenOnNoPortOfTheMachine(t *testing.T) {
	f := deploy(t, options{guest: "echo", abi: guest.ABIServer})
	before := listening(t)
	if len(before) == 0 {
		t.Fatal("the node itself listens nowhere")
	}
	s := startSandbox(t, options{guest: "echo", abi: guest.ABIServer})
	for {
		conn, err := s.Dial(t.Context(), 8080)
		if err == nil {
			conn.Close()
			break
		}
		time.Sleep(time.Millisecond) // it says nothing when it begins to listen
	}
	for inode := range listening(t) {
		if !before[inode] {
			t.Errorf("a guest that listens has made socket %s listen", inode)
		}
	}
	f.expect(t, http.MethodGet, "/hello", "", http.StatusOK, "hello\n")
}

// BenchmarkIdle is what Go servers that nobody asks take of the machine: CPU time
// of the process in ten seconds, with twenty of them and without any.
func BenchmarkIdle(b *testing.B) {
	const servers, idle = 20, 10 * time.Second
	none := used(b, idle)
	for range servers {
		s := startSandbox(b, options{guest: "echo", abi: guest.ABIServer})
		for {
			conn, err := s.Dial(b.Context(), 8080)
			if err == nil {
				conn.Close()
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	time.Sleep(time.Second) // what began with them ends
	b.ResetTimer()
	var all time.Duration
	for b.Loop() {
		all += used(b, idle)
	}
	b.ReportMetric(float64((all / time.Duration(b.N)).Microseconds()), "CPU-µs-with")
	b.ReportMetric(float64(none.Microseconds()), "CPU-µs-without")
}

// used returns the CPU time that the process takes in d.
func used(tb testing.TB, d time.Duration) time.Duration {
	tb.Helper()
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			tb.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := cpu()
	time.Sleep(d)
	return cpu() - before
}
