package gobuild

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for args, want := range map[string]string{
		"./cmd/app -o app.wasm":          "-o app.wasm -ldflags=-s -w ./cmd/app",
		"./cmd/app":                      "-o app.wasm -ldflags=-s -w ./cmd/app",
		"-tags a,b -race ./app -v":       "-tags a,b -race -v -o app.wasm -ldflags=-s -w ./app",
		"--tags=x -ldflags=-X=y main.go": "--tags=x -ldflags=-X=y -o main.wasm main.go",
		"":                               "-o gobuild.wasm -ldflags=-s -w",
		"example.com/x/cmd/tool@v1.2.3":  "-o tool.wasm -ldflags=-s -w example.com/x/cmd/tool@v1.2.3",
	} {
		got, err := parse(strings.Fields(args))
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%q: got %q, %v, want %q", args, got, err, want)
		}
	}
	for args, want := range map[string]string{
		"-overlay x.json .": "-overlay",
		"./a ./b":           "packages = ./a ./b, must be one",
		". -tags":           "flag -tags needs a value",
	} {
		if _, err := parse(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", args, err, want)
		}
	}
}

// module writes a module with one main.go and returns its folder.
func module(t *testing.T, main string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module app\n\ngo 1.21\n", "main.go": main} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestBuild(t *testing.T) {
	dir := module(t, `package main

import "net"

func main() { _, _ = net.Listen("tcp", ":8080") }
`)
	err := Build(t.Context(), Config{Args: []string{".", "-o", "out.wasm"}, Dir: dir, Env: []string{"GOFLAGS=-mod=mod"}})
	if err != nil {
		t.Fatal(err)
	}
	wasm, err := os.ReadFile(filepath.Join(dir, "out.wasm"))
	if err != nil || !strings.Contains(string(wasm), "WISP_LISTENERS") {
		t.Errorf("%d bytes, %v, or the overlay isn't in them", len(wasm), err)
	}
}

func TestBuildSaysWhatIsWrong(t *testing.T) {
	for name, tc := range map[string]struct{ main, want string }{
		"syntax":       {"package main\n\nfunc main() {", "syntax error"},
		"system calls": {"package main\n\nimport \"syscall\"\n\nfunc main() { syscall.Fork() }", "no system calls but WASI's"},
		"cgo":          {"package main\n\n// int x;\nimport \"C\"\n\nfunc main() { _ = C.x }", "made for other systems only"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Build(t.Context(), Config{Args: []string{"."}, Dir: module(t, tc.main)})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestBuildEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Build(ctx, Config{Args: []string{"."}}); err == nil {
		t.Error("it succeeded")
	}
}

// A Go whose files don't look as expected is refused, by name.
func TestUnknownGo(t *testing.T) {
	root := t.TempDir()
	if _, err := overlay(root); err == nil || !strings.Contains(err.Error(), "net_fake.go") {
		t.Errorf("got %v", err)
	}
	if err := os.MkdirAll(filepath.Join(root, "src/net"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "src/net/net_fake.go"), []byte("package net\n\nfunc socket() {\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := overlay(root); err == nil || !strings.Contains(err.Error(), "has 0 places of the form") {
		t.Errorf("got %v", err)
	}
}

// The parser in the overlay, which runs in guests, tested here.
func TestListenersParser(t *testing.T) {
	source := string(listen)
	parser := source[strings.Index(source, "func wispDescriptor"):]
	dir := module(t, `package main

func main() {
	for _, list := range []string{"8080=4", "1=3,8080=4,80=5", "", "8080", "80=4", "8080=12,"} {
		d, ok := wispDescriptor(list, 8080)
		println(d, ok)
	}
}

`+parser)
	cmd := command(t.Context(), Config{Dir: dir}, "run", ".")
	out, err := cmd.CombinedOutput()
	if diff := cmp.Diff(string(out), "4 true\n4 true\n0 false\n0 false\n0 false\n12 true\n"); err != nil || diff != "" {
		t.Errorf("%v, got -, want +:\n%s", err, diff)
	}
}

// Each edit is where it belongs in the Go that runs this test.
func TestOverlay(t *testing.T) {
	out, err := command(t.Context(), Config{}, "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	goroot := strings.TrimSpace(string(out))
	files, err := overlay(goroot)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"net/net_fake.go":           `func socket\(.*\{\n\tif raddr == nil \{\n\t\tif fd, err := wispListener`,
		"os/signal/signal_unix.go":  `watchSignalLoop = loop\n\twatchSignalLoop = nil\n`,
		"syscall/syscall_wasip1.go": `func Sysctl\(.*\{\n\tif name, ok := Getenv`,
		"net/wisp_listen_wasip1.go": `^package net`,
	} {
		if content := files[filepath.Join(goroot, "src", path)]; !regexp.MustCompile(want).Match(content) {
			t.Errorf("%s isn't changed", path)
		}
	}
}
