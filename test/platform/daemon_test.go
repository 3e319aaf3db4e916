package platform_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/wisp-serving/wisp/test/platform/supervise"
)

// TestDaemon drives the command as a user does.
func TestDaemon(t *testing.T) {
	program := filepath.Join(t.TempDir(), "platform")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", program, "./cmd/platform").CombinedOutput(); err != nil {
		t.Fatalf("build platform: %v\n%s", err, out)
	}
	dir, err := os.MkdirTemp("", "wisp-test-")
	if err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "state")
	run := func(args ...string) (string, error) {
		var out bytes.Buffer
		cmd := exec.Command(program, append(args, "--state", state)...)
		cmd.Stdout, cmd.Stderr = &out, &out
		err := cmd.Run()
		return out.String(), err
	}
	must := func(want string, args ...string) {
		t.Helper()
		if out, err := run(args...); err != nil || !strings.Contains(out, want) {
			t.Fatalf("platform %s: %v, want %q in\n%s", strings.Join(args, " "), err, want, out)
		}
	}
	kubectl := func(args ...string) {
		t.Helper()
		cmd := exec.Command(filepath.Join(state, "bin/kubectl"), args...)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(state, "kubeconfig"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := run("down", "--wipe"); err != nil {
			t.Errorf("platform down: %v\n%s", err, out)
		}
		os.RemoveAll(dir)
	})

	taken := listen(t)
	out, err := run("up", "--without-wisp", "--ports", "free", "--port", fmt.Sprintf("registry=%d", taken))
	who, setting := fmt.Sprintf("port %d on 127.0.0.1 is taken by process %d (", taken, os.Getpid()), "--port registry=NUMBER"
	if err == nil || !strings.Contains(out, who) || !strings.Contains(out, setting) {
		t.Errorf("up with a taken port: %v, want %q and %q in\n%s", err, who, setting, out)
	}

	must("ready after", "up", "--without-wisp", "--ports", "free")
	must("runs in", "up", "--without-wisp", "--ports", "free") // once more
	must("kube-apiserver", "status")
	kubectl("create", "configmap", "kept")

	before, err := supervise.ReadSnapshot(filepath.Join(state, "status.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := before.Supervisor.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	must("in ", "down")
	for _, c := range before.Components {
		if c.Running() {
			t.Errorf("%s is left over", c.Name)
		}
	}
	if out, err := run("status"); err == nil {
		t.Errorf("status of what is down gave no error:\n%s", out)
	}

	must("ready after", "up", "--without-wisp", "--ports", "free")
	kubectl("get", "configmap", "kept")
	must("removed", "down", "--wipe")
	if _, err := os.Stat(state); !os.IsNotExist(err) {
		t.Errorf("after down --wipe: %v", err)
	}
}

// listen takes a port until the test ends.
func listen(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}
