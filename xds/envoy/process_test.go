package envoy

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pretend starts a process with the command line of an Envoy, which ends with the
// test.
func pretend(t *testing.T, bootstrap string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-s", "--", "-c", bootstrap)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	return cmd
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	second := pretend(t, bootstrapFile(dir, 2, "abc"))
	first := pretend(t, bootstrapFile(dir, 1, "def"))
	for _, other := range []string{
		bootstrapFile(filepath.Join(dir, "else"), 1, "abc"), filepath.Join(dir, "envoy.yaml"), filepath.Join(dir, "envoy-x-abc.yaml"), "echo",
	} {
		pretend(t, other)
	}
	found, err := find(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 2 || found[0].pid != first.Process.Pid || found[0].identity != "def" || found[1].pid != second.Process.Pid || found[1].number != 2 {
		t.Fatalf("found %+v, want %d and %d", found, first.Process.Pid, second.Process.Pid)
	}
	found[0].release() // it goes on
	found[1].end(time.Minute)
	found[1].forget()
	if left, err := find(dir); err != nil || len(left) != 1 || left[0].pid != first.Process.Pid {
		t.Errorf("after the end of one, found %+v, %v", left, err)
	} else {
		left[0].release()
	}
}

// TestEndByForce ends a process that doesn't listen to SIGTERM.
func TestEndByForce(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("sh", "-c", "trap '' TERM; echo; exec sleep 600")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := spawn(cmd, dir, 1, "abc")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p.end(time.Millisecond)
	p.forget()
	if p.err == nil || p.err.Error() != "signal: killed" {
		t.Errorf("it has ended with %v, want that it was killed", p.err)
	}
}
