package e2e

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/docs"
	"github.com/wisp-serving/wisp/test/platform"
)

// TestDocs types what the documents say, one document after the other, each in a
// namespace of its own. What it leaves out is in docs.Elsewhere, with the reason.
func TestDocs(t *testing.T) {
	const root = "../.."
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatal("the documents' commands take curl")
	}
	build := exec.CommandContext(t.Context(), "make", "samples")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make samples: %v\n%s", err, out)
	}
	files, err := docs.Files(root)
	if err != nil {
		t.Fatal(err)
	}
	p := platform.Start(t, platform.Options{})
	// What a document takes for granted.
	sort := []string{
		"wisp push build/sort.wasm localhost:5000/sort:v1",
		"kn service create sort --image localhost:5000/sort:v1 --annotation " + config.ABIAnnotation + "=argv",
	}
	before := map[string][]string{"docs/functions.md": sort}
	for _, file := range files {
		commands, err := docs.Commands(root, file)
		if err != nil {
			t.Fatal(err)
		}
		var run []docs.Command
		for _, c := range commands {
			if _, elsewhere := docs.Where(c); !elsewhere {
				run = append(run, c)
			}
		}
		if len(run) == 0 {
			continue
		}
		t.Run(file, func(t *testing.T) {
			r := newReader(t, p, root)
			if file == "docs/functions.md" {
				r.root = sources(t, root)
			}
			for _, command := range before[file] {
				r.run(docs.Command{File: file, Text: command})
			}
			for _, c := range run {
				if strings.HasPrefix(c.Text, "cargo ") {
					t.Run("cargo", func(t *testing.T) { r.rust(t, c) })
					continue
				}
				r.run(c)
			}
		})
	}
}

// sources returns a folder with the programs that docs/functions.md compiles: C, Zig,
// Rust, and Go as a command and as a server.
func sources(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{
		"go.mod":     "module example.com/app\n\ngo 1.26\n",
		"Cargo.toml": "[package]\nname = \"words\"\nversion = \"0.1.0\"\nedition = \"2021\"\n",
		"hello.zig":  "const std = @import(\"std\");\n\npub fn main() !void {\n    try std.fs.File.stdout().writeAll(\"hello\\n\");\n}\n",
	}
	for to, from := range map[string]string{
		"sort.c": "samples/sort/sort.c", "main.go": "samples/greet/main.go", "cmd/app/main.go": "samples/notes/main.go",
		"build/sort.wasm": "build/sort.wasm", "src/main.rs": "samples/words/words.rs",
	} {
		text, err := os.ReadFile(filepath.Join(root, from))
		if err != nil {
			t.Fatal(err)
		}
		files[to] = string(text)
	}
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// reader types commands as one would who has read a document, on one platform and
// in one namespace.
type reader struct {
	t         *testing.T
	root      string
	env       []string
	translate *strings.Replacer
}

func newReader(t *testing.T, p *platform.Platform, root string) *reader {
	t.Helper()
	namespace := p.Namespace(t)
	gateway, err := url.Parse(p.Gateway)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	text, err := os.ReadFile(p.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kubeconfig, text, 0o600); err != nil {
		t.Fatal(err)
	}
	p.Kubectl(t, "config", "set-context", "--current", "--kubeconfig", kubeconfig, "--namespace", namespace)
	bin := filepath.Dir(p.Command(t.Context(), "kubectl").Path)
	replace := []string{
		"localhost:5000", p.Registry,
		".default.localhost:8080", "." + namespace + ".localhost:" + gateway.Port(),
		"-n team ", "-n " + namespace + " ",
	}
	manifests, err := filepath.Glob(filepath.Join(root, "samples", "*", "service.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range manifests {
		text, err := os.ReadFile(m)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(filepath.Dir(m))
		here := filepath.Join(dir, name+".yaml")
		if err := os.WriteFile(here, []byte(strings.ReplaceAll(string(text), "localhost:5000", p.Registry)), 0o600); err != nil {
			t.Fatal(err)
		}
		replace = append(replace, "samples/"+name+"/service.yaml", here)
	}
	return &reader{
		t: t, root: root, translate: strings.NewReplacer(replace...),
		env: append(os.Environ(), "KUBECONFIG="+kubeconfig, "REGISTRY="+p.Registry, "GATEWAY="+p.Gateway, "PATH="+bin+":"+os.Getenv("PATH")),
	}
}

// run types a command, and holds what a call prints against the document.
func (r *reader) run(c docs.Command) {
	r.t.Helper()
	line := withoutComment(r.translate.Replace(c.Text))
	if strings.HasPrefix(c.Text, "curl ") { // an error is an answer, to curl
		line += " --fail-with-body"
	}
	if strings.HasPrefix(c.Text, "kubectl apply ") { // as long as a reader takes to the next line
		line = fmt.Sprintf("%s\nkubectl wait ksvc --all --for condition=Ready --timeout 2m", line)
	}
	cmd := exec.CommandContext(r.t.Context(), "bash", "-euo", "pipefail", "-c", line)
	cmd.Dir, cmd.Env = r.root, r.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", c, err, out)
	}
	if !strings.HasPrefix(c.Text, "curl ") {
		return
	}
	for _, want := range c.Output {
		if !strings.Contains(string(out), want) {
			r.t.Errorf("%s: got %q, the document says %q", c, out, want)
		}
	}
}

// rust types a command of Rust's, with the target's name in the release at hand.
func (r *reader) rust(t *testing.T, c docs.Command) {
	target := rustTarget()
	if target == "" {
		withoutRust(t)
	}
	c.Text = strings.ReplaceAll(c.Text, "wasm32-wasip1", target)
	own := *r
	own.t = t
	own.run(c)
}

// withoutComment cuts what a shell would pass over.
func withoutComment(line string) string {
	line, _, _ = strings.Cut(line, " #")
	return line
}
