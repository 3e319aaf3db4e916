package xds

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wisp-serving/wisp/test/envoytest"
	"github.com/wisp-serving/wisp/xds/bootstrap"
	"github.com/wisp-serving/wisp/xds/envoy"
	"go.uber.org/zap"
)

// newServingBed returns a bed whose gateway serves one KIngress, and no Envoy yet.
func newServingBed(t *testing.T, subnet string) *bed {
	t.Helper()
	b := newBed(t, subnet)
	b.addNode("node-a")
	b.addRevision("sort-1", translateHTTP1)
	b.addIngress("sort", rule("External", "sort.example.com", path(to("sort-1"))))
	b.startGateway()
	return b
}

// supervise runs a supervisor with an Envoy of b's settings, and returns how to stop
// both.
func (b *bed) supervise(dir string, changed bool) (stop func()) {
	b.t.Helper()
	text, err := bootstrap.Render(b.cfg, "")
	if err != nil {
		b.t.Fatal(err)
	}
	if changed {
		text = append(text, "# other settings\n"...)
	}
	log, err := os.Create(filepath.Join(b.t.TempDir(), "log"))
	if err != nil {
		b.t.Fatal(err)
	}
	s := envoy.New(envoy.Config{
		Path: envoytest.Binary(b.t), Dir: dir, Bootstrap: text, Admin: b.cfg.Envoy.AdminAddress, Concurrency: 1,
		DrainTimeout: deadline, Stdout: log, Stderr: log, Log: zap.NewNop().Sugar(),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("supervisor: %v", err)
		}
		_ = log.Close()
	}
	b.t.Cleanup(stop)
	return stop
}

// pidOf reads a supervisor's pid file, or 0.
func pidOf(dir string) int {
	text, err := os.ReadFile(filepath.Join(dir, "envoy.pid"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

func (b *bed) answers() bool {
	a, err := request(context.Background(), http.DefaultClient, b.cfg.Envoy.HTTPAddress, "sort.example.com", "/")
	return err == nil && a.status == http.StatusOK
}

func TestSupervisedEnvoy(t *testing.T) {
	b := newServingBed(t, "127.102.0")
	dir := t.TempDir()
	stop := b.supervise(dir, false)
	b.waitReady("sort")

	first := pidOf(dir)
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.until("another Envoy", func() bool { return pidOf(dir) != first && b.answers() })

	// What is under way when it is stopped is finished.
	hold := make(chan struct{})
	b.nodes["node-a"].hold.Store(&hold)
	got := make(chan answer, 1)
	go func() { got <- ask(t, b.cfg.Envoy.HTTPAddress, "sort.example.com", "/") }()
	<-b.nodes["node-a"].arrived
	time.AfterFunc(300*time.Millisecond, func() { close(hold) })
	stop()
	if a := <-got; a.status != http.StatusOK {
		t.Errorf("the request under way ended with %d, want 200", a.status)
	}
	if b.answers() || pidOf(dir) != 0 {
		t.Error("Envoy outlives the stop")
	}
}

// TestSupervisorAdoptsEnvoy starts a supervisor where an earlier one was killed.
func TestSupervisorAdoptsEnvoy(t *testing.T) {
	b := newServingBed(t, "127.103.0")
	dir := t.TempDir()
	left := b.leaveEnvoy(dir)
	b.waitReady("sort")

	l := startLoad(b.cfg.Envoy.HTTPAddress, "sort.example.com", 1)
	stop := b.supervise(dir, false)
	b.addIngress("more", rule("External", "more.example.com", path(to("sort-1"))))
	b.waitReady("more")
	if got := pidOf(dir); got != left {
		t.Errorf("pid is %d, want that of the Envoy that was there, %d", got, left)
	}
	l.end(t)
	if err := syscall.Kill(left, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.until("another Envoy", func() bool { return pidOf(dir) != left && b.answers() })
	stop()
}

// TestSupervisorReplacesEnvoy starts a supervisor with other settings than those of
// the Envoy that is there.
func TestSupervisorReplacesEnvoy(t *testing.T) {
	b := newServingBed(t, "127.105.0")
	dir := t.TempDir()
	first := b.leaveEnvoy(dir)
	b.waitReady("sort")
	stop := b.supervise(dir, true)
	b.until("another Envoy", func() bool {
		pid := pidOf(dir)
		return pid != 0 && pid != first && b.answers()
	})
	stop()
}

// leaveEnvoy starts an Envoy as a supervisor that was killed leaves it, and returns
// its pid.
func (b *bed) leaveEnvoy(dir string) int {
	b.t.Helper()
	text, err := bootstrap.Render(b.cfg, "")
	if err != nil {
		b.t.Fatal(err)
	}
	file := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		b.t.Fatal(err)
	}
	left := exec.Command(envoytest.Binary(b.t), "-c", file, "--disable-hot-restart", "--concurrency", "1", "-l", "warning")
	if err := left.Start(); err != nil {
		b.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = left.Wait()
	}()
	b.t.Cleanup(func() {
		_ = left.Process.Kill()
		<-ended
	})
	if err := os.WriteFile(filepath.Join(dir, "envoy.pid"), []byte(strconv.Itoa(left.Process.Pid)), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return left.Process.Pid
}
