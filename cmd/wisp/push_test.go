package main

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"go.uber.org/zap"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/local"
	"github.com/wisp-serving/wisp/runtime"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/sandbox"
	"github.com/wisp-serving/wisp/test/guests"
)

// asWisp is the variable that makes the tests' binary the program itself.
const asWisp = "WISP_TEST_AS_WISP"

// TestMain lets the tests run the program as a process: it is this binary. The
// children in which it compiles have no variables.
func TestMain(m *testing.M) {
	if os.Getenv(asWisp) != "" || len(os.Args) > 1 && os.Args[1] == compileName {
		main()
	}
	os.Exit(m.Run())
}

// Modules in binary. The first imports env.f; the second is a component; the third
// has a function that leaves something on the stack.
const (
	importing = "\x00asm\x01\x00\x00\x00\x01\x04\x01\x60\x00\x00\x02\x09\x01\x03env\x01f\x00\x00\x03\x02\x01\x00\x07\x0a\x01\x06_start\x00\x01\x0a\x04\x01\x02\x00\x0b"
	component = "\x00asm\x0d\x00\x01\x00"
	broken    = "\x00asm\x01\x00\x00\x00\x01\x04\x01\x60\x00\x00\x03\x02\x01\x00\x07\x0a\x01\x06_start\x00\x00\x0a\x06\x01\x04\x00\x41\x00\x0b"
)

func newRegistry(t *testing.T) (host string) {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// wisp runs the program in this process.
func wisp(t *testing.T, args ...string) (stdout string) {
	t.Helper()
	var out, errs strings.Builder
	if status := run(t.Context(), args, &out, &errs); status != 0 {
		t.Fatalf("wisp %q: status %d, %s", args, status, errs.String())
	}
	return strings.TrimSpace(out.String())
}

func writeFile(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPushedRunsOnANode pushes in each form and runs what a node's runtime finds
// under the reference that push has printed.
func TestPushedRunsOnANode(t *testing.T) {
	puppet, err := guests.Program(t.Context(), "puppet")
	if err != nil {
		t.Fatal(err)
	}
	dir, host := t.TempDir(), newRegistry(t)
	writeFile(t, filepath.Join(dir, "site", "a", "page.txt"), "hello\n")
	writeFile(t, filepath.Join(dir, "motd"), "welcome\n")
	tests := map[string]struct {
		flags      []string
		body, want string
	}{
		"an image":       {nil, `{"args":["args"]}`, "\"puppet.wasm\"\n\"args\"\n"},
		"with arguments": {[]string{"--entrypoint", "/bin/tool.wasm", "--arg", "out", "--arg", "first"}, `{"args":["args"]}`, "first\n\"tool.wasm\"\n\"out\"\n\"first\"\n\"args\"\n"},
		"with files":     {[]string{"--file", dir + "/motd=/etc/motd", "--file", dir + "/site=/www"}, `{"args":["cat","/etc/motd","cat","/www/a/page.txt"]}`, "welcome\nhello\n"},
		"an artifact":    {[]string{"--artifact"}, `{"args":["args"]}`, "\"puppet.wasm\"\n\"args\"\n"},
	}
	node, err := runtime.New(runtime.Config{DataDir: t.TempDir(), ImageStore: 1 << 30, Guest: config.DefaultNode().Guest, Log: zap.NewNop().Sugar()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := node.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			reference := wisp(t, append([]string{"push", puppet, host + "/puppet:v1", "--abi", "argv"}, test.flags...)...)
			image, err := node.Pull(t.Context(), oci.Request{Reference: reference})
			if err != nil {
				t.Fatal(err)
			}
			fn, err := node.Start(t.Context(), sandbox.Spec{
				ID: name, Image: image.Digest, Module: image.ModuleDigest, Root: image.Root,
				Argv0: image.FileName(), Args: image.Args, ABI: image.Labels[config.ABIAnnotation],
			})
			if err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			fn.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(test.body)))
			if w.Code != http.StatusOK || w.Body.String() != test.want {
				t.Errorf("got %d %q, want %q", w.Code, w.Body.String(), test.want)
			}
		})
	}
}

// TestPushRefusesWhatANodeWould names what is wrong, and pushes nothing.
func TestPushRefusesWhatANodeWould(t *testing.T) {
	host, dir := newRegistry(t), t.TempDir()
	writeFile(t, filepath.Join(dir, "x"), "x")
	tests := map[string]struct {
		module string
		flags  []string
		want   []string
	}{
		"an unknown import": {importing, nil, []string{"a node would refuse it", "unknown imports: env.f"}},
		"a component":       {component, nil, []string{"WASI p2 component", "wasm32-wasip1"}},
		"invalid code":      {broken, nil, []string{"a node would refuse it"}},
		"a cut off module":  {broken[:len(broken)-1], nil, []string{"truncated wasm module"}},
		"an unknown ABI":    {broken, []string{"--abi", "http"}, []string{`abi = "http", must be one of`}},
		"a file that isn't": {broken, []string{"--file", "/nonexistent=/a"}, []string{"read files for /a", "no such file"}},
		"a file to nowhere": {broken, []string{"--file", "a"}, []string{`file = "a", must be here=/there`}},
		"artifact and file": {broken, []string{"--artifact", "--file", dir + "=/a"}, []string{"an artifact holds a module and nothing else"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			file := writeFile(t, filepath.Join(t.TempDir(), "fn.wasm"), test.module)
			reference := host + "/" + strings.ReplaceAll(strings.ToLower(name), " ", "-") + ":v1"
			var stdout, stderr strings.Builder
			if status := run(t.Context(), append([]string{"push", file, reference}, test.flags...), &stdout, &stderr); status != 1 || stdout.Len() > 0 {
				t.Errorf("got status %d, stdout %q; want 1 and nothing", status, stdout.String())
			}
			for _, want := range test.want {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("got %q, want an error with %q", stderr.String(), want)
				}
			}
			resp, err := http.Get("http://" + host + "/v2/" + strings.Split(reference[len(host)+1:], ":")[0] + "/manifests/v1")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusNotFound {
				t.Errorf("the registry has it: %s", resp.Status)
			}
		})
	}
}

func TestInspect(t *testing.T) {
	puppet, err := guests.Program(t.Context(), "puppet")
	if err != nil {
		t.Fatal(err)
	}
	reference := wisp(t, "push", puppet, newRegistry(t)+"/puppet:v1", "--abi", "argv", "--arg", "out")
	t.Run("an image, as JSON", func(t *testing.T) {
		var got local.Report
		if err := json.Unmarshal([]byte(wisp(t, "inspect", reference, "-o", "json")), &got); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(puppet)
		if err != nil {
			t.Fatal(err)
		}
		if got.Reference != reference || got.ABI != "argv" || got.ABIFrom != "label wisp.dev/abi" || got.ModuleSize != info.Size() || got.Refused != "" || len(got.Args) != 1 {
			t.Errorf("got %+v", got)
		}
		if got.Compile <= 0 || got.Outline.Memory == nil || len(got.Outline.Imports) == 0 || len(got.Outline.Exports) == 0 {
			t.Errorf("got %+v", got.Outline)
		}
	})
	t.Run("a file, for people", func(t *testing.T) {
		text := wisp(t, "inspect", puppet)
		for _, want := range []string{"puppet.wasm, ", "cgi (default)", "wasi_snapshot_preview1.fd_write (function)", "_start (function)", "Compiled in"} {
			if !strings.Contains(text, want) {
				t.Errorf("the report lacks %q:\n%s", want, text)
			}
		}
	})
	t.Run("what a node would refuse", func(t *testing.T) {
		file := writeFile(t, filepath.Join(t.TempDir(), "fn.wasm"), importing)
		var stdout, stderr strings.Builder
		if status := run(t.Context(), []string{"inspect", file}, &stdout, &stderr); status != 1 || !strings.Contains(stderr.String(), "a node would refuse") {
			t.Errorf("got %d, %q; want 1", status, stderr.String())
		}
		for _, want := range []string{"env.f (function)", "unknown imports: env.f"} {
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("the report lacks %q:\n%s", want, stdout.String())
			}
		}
	})
}
