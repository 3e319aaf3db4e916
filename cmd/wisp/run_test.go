package main

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// printing returns a WASI command that prints text, of at most 90 bytes.
func printing(text string) string { return printingThen(text, "") }

// printingThen is printing, and runs the instructions that follow.
func printingThen(text, instructions string) string {
	section := func(id byte, content string) string { return string(id) + string(rune(len(content))) + content }
	n := string(rune(len(text)))
	return "\x00asm\x01\x00\x00\x00" +
		section(1, "\x02\x60\x04\x7f\x7f\x7f\x7f\x01\x7f\x60\x00\x00") +
		section(2, "\x01\x16wasi_snapshot_preview1\x08fd_write\x00\x00") +
		section(3, "\x01\x01") +
		section(5, "\x01\x00\x01") +
		section(7, "\x02\x06_start\x00\x01\x06memory\x02\x00") +
		section(10, "\x01"+string(rune(13+len(instructions)))+"\x00\x41\x01\x41\x00\x41\x01\x41\x08\x10\x00\x1a"+instructions+"\x0b") +
		// An iovec at 0: 16, len(text); the text at 16.
		section(11, "\x01\x00\x41\x00\x0b"+string(rune(16+len(text)))+"\x10\x00\x00\x00"+n+"\x00\x00\x00"+"\x00\x00\x00\x00\x00\x00\x00\x00"+text)
}

// running is a `wisp run` in a process of its own.
type running struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string // of standard error
	url   string
}

// startRun starts `wisp run` and waits until it serves.
func startRun(t *testing.T, dir string, args ...string) *running {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	r := &running{t: t, cmd: exec.Command(self, append([]string{"run", "-p", "0"}, args...)...), lines: make(chan string, 100)}
	r.cmd.Dir = dir
	r.cmd.Env = append(os.Environ(), asWisp+"=1", "TMPDIR="+tmp)
	errs, err := r.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.cmd.Process.Kill() }) // of no effect once it has ended
	go func() {
		for s := bufio.NewScanner(errs); s.Scan(); {
			r.lines <- s.Text()
		}
		close(r.lines)
	}()
	r.url = regexp.MustCompile(`http://\S+/`).FindString(r.await("http://"))
	return r
}

// await returns the next line with what in it.
func (r *running) await(what string) string {
	r.t.Helper()
	timeout := time.After(2 * time.Minute)
	for {
		select {
		case line, ok := <-r.lines:
			if !ok {
				r.t.Fatalf("it ended without saying %q", what)
			}
			if strings.Contains(line, what) {
				return line
			}
		case <-timeout:
			r.t.Fatalf("it didn't say %q", what)
		}
	}
}

func (r *running) call() (int, string, error) {
	resp, err := http.Get(r.url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

func (r *running) expect(want string) {
	r.t.Helper()
	if status, got, err := r.call(); err != nil || status != http.StatusOK || got != want {
		r.t.Errorf("got %d %q, %v; want %q", status, got, err, want)
	}
}

// interrupt is Ctrl-C; it returns how the process has ended.
func (r *running) interrupt() error {
	r.t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGINT); err != nil {
		r.t.Fatal(err)
	}
	for range r.lines { // to its end: Wait closes the pipe
	}
	return r.cmd.Wait()
}

// TestRunReloads edits a function while it is called: no call fails.
func TestRunReloads(t *testing.T) {
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "fn.wasm"), printing("one\n"))
	r := startRun(t, dir, "fn.wasm")
	r.expect("one\n")

	stop, calls := make(chan struct{}), sync.WaitGroup{}
	calls.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if status, text, err := r.call(); err != nil || status != http.StatusOK {
				t.Errorf("while it was replaced: got %d %q, %v", status, text, err)
				return
			}
		}
	})
	replacement := writeFile(t, filepath.Join(dir, "new"), printing("two\n"))
	if err := os.Rename(replacement, file); err != nil { // as many compilers and editors do
		t.Fatal(err)
	}
	r.await("fn-00002 serves")
	r.expect("two\n")

	writeFile(t, file, importing)
	if line := r.await("the last one goes on"); !strings.Contains(line, "unknown imports: env.f") {
		t.Errorf("got %q, want what is wrong", line)
	}
	r.expect("two\n")

	writeFile(t, file, printing("three\n")) // in place, as others do
	r.await("fn-00004 serves")
	r.expect("three\n")
	close(stop)
	calls.Wait()

	if err := r.interrupt(); err != nil {
		t.Errorf("Ctrl-C: %v", err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
}

// TestRunOfAService changes a Service's file; its image is a file.
func TestRunOfAService(t *testing.T) {
	const service = `
apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: speaker
spec:
  template:
    spec:
      containers:
        - image: registry.example/speaker:v1
`
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "fn.wasm"), printing("hello\n"))
	file := writeFile(t, filepath.Join(dir, "service.yaml"), service)
	r := startRun(t, dir, "service.yaml", "--module", "fn.wasm")
	r.expect("hello\n")
	writeFile(t, file, strings.Replace(service, "  template:", "  template:\n    metadata:\n      annotations: {wisp.dev/abi: argv}", 1))
	r.await("speaker-00002 serves")
	if status, text, err := r.call(); err != nil || status != http.StatusMethodNotAllowed {
		t.Errorf("got %d %q, %v; want 405 of the argv ABI", status, text, err)
	}
	if err := r.interrupt(); err != nil {
		t.Errorf("Ctrl-C: %v", err)
	}
}

// TestRunOfACommand has the command's output and exit status.
func TestRunOfACommand(t *testing.T) {
	file := writeFile(t, filepath.Join(t.TempDir(), "fn.wasm"), printing("hello\n"))
	if got := wisp(t, "run", file, "--abi", "command"); got != "hello" {
		t.Errorf("got %q", got)
	}
	exits := strings.Replace(printing(""), "\x41\x01\x41\x00\x41\x01\x41\x08\x10\x00\x1a\x0b", "\x00\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x0b", 1)
	file = writeFile(t, filepath.Join(t.TempDir(), "trap.wasm"), exits)
	var stdout, stderr strings.Builder
	if status := run(t.Context(), []string{"run", file, "--abi", "command"}, &stdout, &stderr); status != 1 || !strings.Contains(stderr.String(), "unreachable") {
		t.Errorf("a trap: got %d, %q", status, stderr.String())
	}
}

func TestRunRefuses(t *testing.T) {
	dir := t.TempDir()
	fn := writeFile(t, filepath.Join(dir, "fn.wasm"), printing("x"))
	yaml := func(name, text string) string { return writeFile(t, filepath.Join(dir, name), text) }
	const head = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n"
	tests := map[string]struct {
		args []string
		want string
	}{
		"nothing":           {nil, "needs one"},
		"two things":        {[]string{fn, fn}, "needs one"},
		"no such file":      {[]string{"none.wasm"}, "no such file"},
		"an unknown import": {[]string{writeFile(t, filepath.Join(dir, "bad.wasm"), importing)}, "unknown imports: env.f"},
		"an unknown ABI":    {[]string{fn, "--abi", "http"}, `abi = "http", must be one of`},
		"a bad variable":    {[]string{fn, "-e", "A"}, `env = "A", must be NAME=value`},
		"a bad folder":      {[]string{fn, "--dir", "a:b"}, "must be HERE[:/THERE][:ro]"},
		"no such folder":    {[]string{fn, "--dir", "/nonexistent"}, "no such file"},
		"a file as folder":  {[]string{fn, "--dir", fn}, "is no folder"},
		"a bad port":        {[]string{fn, "-p", "x"}, "listen"},
		"no service":        {[]string{yaml("1.yaml", "# nothing\n")}, "no Service of serving.knative.dev/v1"},
		"a Deployment":      {[]string{yaml("2.yaml", "apiVersion: apps/v1\nkind: Deployment\n")}, "Deployment of apps/v1: only a Service"},
		"a misspelt field":  {[]string{yaml("3.yaml", head+"spec: {templat: {}}\n")}, `unknown field "templat"`},
		"two containers":    {[]string{yaml("4.yaml", head+"spec: {template: {spec: {containers: [{image: a}, {image: b}]}}}\n")}, "only a cluster runs more than one"},
		"what Knative has against it": {
			[]string{yaml("5.yaml", head+"spec: {template: {spec: {timeoutSeconds: -1, containers: [{image: a}]}}}\n")},
			"spec.template.spec.timeoutSeconds",
		},
		"what a wasm pod can't have": {
			[]string{yaml("6.yaml", head+"spec: {template: {spec: {containers: [{image: a, livenessProbe: {exec: {command: [ls]}}}]}}}\n")},
			"spec.containers[0].livenessProbe.exec",
		},
		"a ConfigMap that isn't there": {
			[]string{yaml("7.yaml", head+"spec: {template: {spec: {containers: [{image: a, envFrom: [{configMapRef: {name: settings}}]}]}}}\n")},
			`configmaps "settings" not found`,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr strings.Builder
			if status := run(t.Context(), append([]string{"run", "-p", "0"}, test.args...), &stdout, &stderr); status != 1 || !strings.Contains(stderr.String(), test.want) {
				t.Errorf("got %d, %q; want 1 with %q", status, stderr.String(), test.want)
			}
		})
	}
}

// TestCtrlCTwice interrupts while the function is in the middle of an answer, and
// again.
func TestCtrlCTwice(t *testing.T) {
	const endless = "\x03\x40\x0c\x00\x0b" // loop; br 0; end
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "fn.wasm"), printingThen("begun\n", endless))
	r := startRun(t, dir, "fn.wasm")
	resp, err := http.Get(r.url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, len("begun\n"))); err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	r.await("waiting up to 30s for 1 requests")
	if err := r.interrupt(); err == nil {
		t.Error("the second Ctrl-C: exit status 0, want a signal's end")
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the answer came to an end")
	}
}
