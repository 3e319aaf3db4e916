package tools

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// patch changes one piece of text in one file of a dependency.
type patch struct {
	file, old, new string
}

// patchedModule is the module that patches apply to.
const patchedModule = "knative.dev/pkg"

// listenOnLoopback keeps Knative's servers off other interfaces, and moves the
// probe port, which is a constant.
// See RATIONALE.md "Why are three lines of Knative changed?".
var listenOnLoopback = []patch{
	{"injection/health_check.go", `Addr: ":" + strconv.Itoa(port)`, `Addr: "127.0.0.1:" + cmp.Or(os.Getenv("HEALTH_PORT"), strconv.Itoa(port))`},
	{"injection/health_check.go", "import (\n", "import (\n\t\"cmp\"\n\t\"os\"\n"},
	{"observability/runtime/pprof.go", `Addr:    ":" + port`, `Addr:    "127.0.0.1:" + port`},
	{"webhook/webhook.go", `fmt.Sprint(":", wh.Options.Port)`, `fmt.Sprint("127.0.0.1:", wh.Options.Port)`},
}

// patchedModfile makes a copy of the patched module, and a go.mod like m's that
// points at it. Both go beside the programs; the module cache and the checkout
// stay as they are.
func (m *module) patchedModfile(ctx context.Context) (string, error) {
	source := filepath.Join(m.out, "src")
	modfile := filepath.Join(m.out, "go.mod")
	if exists(modfile) {
		return modfile, nil
	}
	dirs, err := m.dirs(ctx, patchedModule)
	if err != nil {
		return "", err
	}
	if err := os.RemoveAll(source); err != nil { // of a build that was interrupted
		return "", err
	}
	if err := os.CopyFS(source, os.DirFS(dirs[0])); err != nil {
		return "", fmt.Errorf("copy %s: %w", patchedModule, err)
	}
	for _, p := range m.patches {
		if err := p.apply(source); err != nil {
			return "", fmt.Errorf("patch %s: %w", patchedModule, err)
		}
	}
	goMod, err := os.ReadFile(filepath.Join(m.dir, "go.mod"))
	if err != nil {
		return "", err
	}
	goSum, err := os.ReadFile(filepath.Join(m.dir, "go.sum"))
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(m.out, "go.sum"), goSum, 0o600); err != nil {
		return "", err
	}
	text := fmt.Sprintf("%s\nreplace %s => %s\n", goMod, patchedModule, source)
	tmp := modfile + ".tmp"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return "", err
	}
	return modfile, os.Rename(tmp, modfile)
}

func (p patch) apply(dir string) error {
	path := filepath.Join(dir, p.file)
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if n := strings.Count(string(text), p.old); n != 1 {
		return fmt.Errorf("%s: %q is there %d times, must be there once", p.file, p.old, n)
	}
	return os.WriteFile(path, []byte(strings.Replace(string(text), p.old, p.new, 1)), 0o600)
}
