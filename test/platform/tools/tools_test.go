package tools

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestBuild_goes_on_where_it_was_interrupted(t *testing.T) {
	dir := t.TempDir()
	var made []string
	at := func(name string, err error) step {
		file := filepath.Join(dir, name)
		return step{name, file, func(context.Context) error {
			made = append(made, name)
			if err == nil {
				write(t, file, "")
			}
			return err
		}}
	}
	b := &Builder{Report: func(string) {}}
	interrupted := errors.New("interrupted")
	err := b.run(t.Context(), missing([]step{at("one", nil), at("two", interrupted), at("three", nil)}))
	if !errors.Is(err, interrupted) || !strings.Contains(err.Error(), "build two") {
		t.Errorf("run = %v, want an error that names two", err)
	}
	if err := b.run(t.Context(), missing([]step{at("one", nil), at("two", nil), at("three", nil)})); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"one", "two", "two", "three"}, made); diff != "" {
		t.Errorf("what was made (-want +got):\n%s", diff)
	}
}

func TestBuild_reports_each_step(t *testing.T) {
	var lines []string
	b := &Builder{Report: func(l string) { lines = append(lines, l) }}
	nothing := func(context.Context) error { return nil }
	if err := b.run(t.Context(), []step{{"etcd", "", nothing}, {"kn", "", nothing}}); err != nil {
		t.Fatal(err)
	}
	want := []string{"build 1/2 etcd", "build 1/2 etcd: done in", "build 2/2 kn", "build 2/2 kn: done in"}
	if len(lines) != len(want) {
		t.Fatalf("lines = %q, want %d", lines, len(want))
	}
	for i := range want {
		if !strings.HasPrefix(lines[i], want[i]) {
			t.Errorf("line %d = %q, want %q", i, lines[i], want[i])
		}
	}
}

func TestPatch(t *testing.T) {
	tests := map[string]struct {
		text, want, err string
	}{
		"once":  {"a := \":\" + port\n", "a := \"127.0.0.1:\" + port\n", ""},
		"never": {"a := port\n", "", `f.go: "\":\" + port" is there 0 times, must be there once`},
		"twice": {"\":\" + port \":\" + port", "", `f.go: "\":\" + port" is there 2 times, must be there once`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "f.go"), tt.text)
			err := patch{"f.go", `":" + port`, `"127.0.0.1:" + port`}.apply(dir)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("apply = %v, want %q", err, tt.err)
				}
				return
			}
			got, readErr := os.ReadFile(filepath.Join(dir, "f.go"))
			if err := errors.Join(err, readErr); err != nil || string(got) != tt.want {
				t.Errorf("apply = %v and %q, want %q", err, got, tt.want)
			}
		})
	}
}

// checkout writes a module of tools.
func checkout(t *testing.T, goMod string) *Builder {
	t.Helper()
	root := t.TempDir()
	write(t, filepath.Join(root, "test/platform/tools/kn/go.mod"), goMod)
	write(t, filepath.Join(root, "test/platform/tools/kn/go.sum"), "")
	return &Builder{Root: root, Cache: "/cache"}
}

const knMod = "module m\n\nrequire (\n\tknative.dev/client v0.41.0 // indirect\n\tknative.dev/client-pkg v0.0.0-1\n)\n"

func TestModule_stamps_the_version_that_it_requires(t *testing.T) {
	m, err := checkout(t, knMod).module("kn", "knative.dev/client", knFlags, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := "-s -w -X knative.dev/client/pkg/kn/commands/version.Version=v0.41.0"; m.ldflags != want {
		t.Errorf("ldflags = %q, want %q", m.ldflags, want)
	}
	if _, err := checkout(t, "module m\n").module("kn", "knative.dev/client", knFlags, nil); err == nil {
		t.Error("a module without that dependency gave no error")
	}
}

func TestModule_has_another_folder_after_each_change(t *testing.T) {
	out := func(goMod string, patches []patch) string {
		m, err := checkout(t, goMod).module("kn", "", nil, patches)
		if err != nil {
			t.Fatal(err)
		}
		return m.out
	}
	first := out(knMod, nil)
	if again := out(knMod, nil); again != first {
		t.Errorf("folder = %s, then %s for the same module", first, again)
	}
	if changed := out(strings.Replace(knMod, "v0.41.0", "v0.42.0", 1), nil); changed == first {
		t.Error("another version has the same folder")
	}
	if patched := out(knMod, []patch{{"f", "a", "b"}}); patched == first {
		t.Error("a patched module has the same folder")
	}
}

func TestKubernetesFlags(t *testing.T) {
	const pkg = "k8s.io/component-base/version"
	want := "-X " + pkg + ".gitVersion=v1.35.8 -X " + pkg + ".gitMajor=1 -X " + pkg + ".gitMinor=35"
	if got := kubernetesFlags("v1.35.8"); got != want {
		t.Errorf("flags = %q, want %q", got, want)
	}
}

func TestNeed_names_the_package(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := need("gcc"); err == nil || err.Error() != "gcc is missing: install the Debian package gcc" {
		t.Errorf("need = %v", err)
	}
}

func TestOutput_shows_what_a_failed_command_wrote(t *testing.T) {
	_, err := output(t.Context(), t.TempDir(), nil, "go", "list", "./nothing-here")
	if err == nil || !strings.Contains(err.Error(), "nothing-here") || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("output = %v, want the exit status and what go said", err)
	}
}

func TestFindRoot(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "go.mod"), "// A comment.\nmodule "+modulePath+"\n")
	write(t, filepath.Join(root, "test/tools/go.mod"), "module "+modulePath+"/test/tools\n")
	t.Chdir(filepath.Join(root, "test/tools"))
	got, err := FindRoot()
	if err != nil {
		t.Fatal(err)
	}
	if want, err := filepath.EvalSymlinks(root); err != nil || got != want {
		t.Errorf("FindRoot = %s, want %s", got, want)
	}
	t.Chdir(t.TempDir())
	if _, err := FindRoot(); err == nil {
		t.Error("FindRoot outside of a checkout gave no error")
	}
}

// TestGuest_of_a_relative_path runs the real compiler, which works in a folder
// of its own. The source's comment is new each time, so that no earlier module
// is found.
func TestGuest_of_a_relative_path(t *testing.T) {
	cache, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	source := "// " + dir + time.Now().String() + "\nint main(void) { return 0; }\n"
	if err := os.WriteFile(filepath.Join(dir, "nothing.c"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	b := &Builder{Cache: cache, Report: func(string) {}}
	module, err := b.Guest(t.Context(), "nothing.c")
	if err != nil {
		t.Fatalf("%v (`make tools` installs the compiler)", err)
	}
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(module)) })
	content, err := os.ReadFile(module)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(content), "\x00asm") {
		t.Errorf("%s is no wasm module", module)
	}
}
