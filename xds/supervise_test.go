package xds

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

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
// both. The program is b.program or, where that is empty, Envoy's own.
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
		Path: cmp.Or(b.program, envoyBinary(b.t)), Dir: dir, Bootstrap: text, Admin: b.cfg.Envoy.AdminAddress, Concurrency: 1,
		DrainTimeout: cmp.Or(b.drain, deadline), Stdout: log, Stderr: log, Log: zap.NewNop().Sugar(),
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
	first, _, _ := strings.Cut(string(text), " ")
	pid, _ := strconv.Atoi(first)
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
// the Envoy that is there, while requests pass.
func TestSupervisorReplacesEnvoy(t *testing.T) {
	b := newServingBed(t, "127.105.0")
	dir := t.TempDir()
	b.drain = 2 * time.Second
	first := b.leaveEnvoy(dir)
	b.waitReady("sort")
	l := startLoad(b.cfg.Envoy.HTTPAddress, "sort.example.com", 2)
	stop := b.supervise(dir, true)
	b.until("another Envoy", func() bool { return pidOf(dir) != first })
	b.until("the end of the first one", func() bool { return syscall.Kill(first, 0) != nil })
	l.end(t)
	stop()
	expectNothingLeft(t, dir)
}

// expectNothingLeft fails the test where an Envoy of a folder has left its memory, or
// its sockets.
func expectNothingLeft(t *testing.T, dir string) {
	t.Helper()
	base, err := os.ReadFile(filepath.Join(dir, "envoy.base"))
	if err != nil {
		t.Fatal(err)
	}
	memory, _ := filepath.Glob("/dev/shm/envoy_shared_memory_" + strings.TrimSpace(string(base)) + "*")
	sockets, _ := filepath.Glob(filepath.Join(dir, "hot*"))
	if len(memory)+len(sockets) > 0 {
		t.Errorf("%v and %v are left", memory, sockets)
	}
}

// TestSupervisorUpgradesEnvoy puts another program in Envoy's place while it runs: one
// that doesn't start, one that does, and one that can't take over.
func TestSupervisorUpgradesEnvoy(t *testing.T) {
	b := newServingBed(t, "127.110.0")
	b.drain, b.program = 2*time.Second, filepath.Join(t.TempDir(), "envoy")
	install := func(script string) {
		t.Helper()
		fresh := b.program + ".new"
		if err := os.WriteFile(fresh, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(fresh, b.program); err != nil {
			t.Fatal(err)
		}
	}
	tried := filepath.Join(t.TempDir(), "tried")
	install("exec " + envoyBinary(t) + ` "$@"`)
	dir := t.TempDir()
	stop := b.supervise(dir, false)
	b.waitReady("sort")
	first := pidOf(dir)

	l := startLoad(b.cfg.Envoy.HTTPAddress, "sort.example.com", 2)
	install("touch " + tried + "; exit 1")
	b.until("the broken one", func() bool { _, err := os.Stat(tried); return err == nil && pidOf(dir) == first })
	install("sleep 0.1; exec " + envoyBinary(t) + ` "$@"`)
	b.until("another Envoy", func() bool { return pidOf(dir) != first })
	b.until("the end of the first one", func() bool { return syscall.Kill(first, 0) != nil })
	b.addIngress("more", rule("External", "more.example.com", path(to("sort-1"))))
	b.waitReady("more")
	l.end(t)

	// One that can't take over from this one.
	second := pidOf(dir)
	install(`if [ "$1" = --hot-restart-version ]; then echo 0; exit; fi; exec ` + envoyBinary(t) + ` "$@"`)
	b.until("a third one", func() bool { pid := pidOf(dir); return pid != 0 && pid != second && b.answers() })
	stop()
	expectNothingLeft(t, dir)
}

// hotVersion is what Envoy says of how it hands over.
func hotVersion(t testing.TB) string {
	t.Helper()
	out, err := exec.Command(envoyBinary(t), "--hot-restart-version").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
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
	base := filepath.Join(dir, "envoy.base")
	left := exec.Command(envoyBinary(b.t), "-c", file, "--concurrency", "1", "-l", "warning",
		"--use-dynamic-base-id", "--base-id-path", base, "--socket-path", filepath.Join(dir, "hot"))
	if err := left.Start(); err != nil {
		b.t.Fatal(err)
	}
	var id []byte
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = left.Wait()
	}()
	b.t.Cleanup(func() {
		_ = left.Process.Kill()
		<-ended
		_ = os.Remove("/dev/shm/envoy_shared_memory_" + strings.TrimSpace(string(id)) + "0")
	})
	b.until("base id", func() bool {
		id, _ = os.ReadFile(base)
		return len(id) > 0
	})
	if err := os.WriteFile(filepath.Join(dir, "envoy.pid"), fmt.Appendln(nil, left.Process.Pid, strings.TrimSpace(string(id)), 0, hotVersion(b.t)), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return left.Process.Pid
}
