// Package structure keeps the shape of the code: who may import whom, and that
// every package says what it is.
package structure

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/wisp-serving/wisp/"

// goPackage is what `go list -json` tells of a package.
type goPackage struct {
	ImportPath string
	Name       string
	Doc        string
	Imports    []string
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Name,Doc,Imports", "./...")
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []goPackage
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// TestImports holds the one direction in which packages know each other: cmd
// wires the roles, and each role knows its own parts, config, and nothing of
// the other roles. Only the provider and the users' tools know the runtime.
func TestImports(t *testing.T) {
	may := map[string][]string{
		"config":     {},
		"samples":    {},
		"gobuild":    {},
		"ranking":    {},
		"span":       {},
		"runtime":    {"config", "span"},
		"provider":   {"config", "runtime", "span"},
		"activator":  {"config", "ranking", "span"},
		"autoscaler": {"config"},
		"xds":        {"config", "ranking"},
		"local":      {"config", "runtime", "provider", "activator"},
		"cmd":        {"config", "runtime", "provider", "activator", "autoscaler", "xds", "gobuild", "local"},
	}
	for _, p := range packages(t) {
		top := topFolder(p.ImportPath)
		allowed, ruled := may[top]
		if !ruled {
			if top != "test" {
				t.Errorf("%s: no rule says what it may import", p.ImportPath)
			}
			continue
		}
		for _, imported := range p.Imports {
			if !strings.HasPrefix(imported, module) {
				continue
			}
			if other := topFolder(imported); other != top && !slices.Contains(allowed, other) {
				t.Errorf("%s imports %s: %s may import only %q", p.ImportPath, imported, top, allowed)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command "
		}
		if p.Doc != "" && !strings.HasPrefix(p.Doc, want) || p.Doc == "" && !isTestOnly(p) {
			t.Errorf("%s: got package doc %q, want one that starts with %q", p.ImportPath, p.Doc, want)
		}
	}
}

// isTestOnly is whether a package consists of tests: `go list` reads no docs
// there.
func isTestOnly(p goPackage) bool { return len(p.Imports) == 0 && topFolder(p.ImportPath) == "test" }

func topFolder(path string) string {
	top, _, _ := strings.Cut(strings.TrimPrefix(path, module), "/")
	return top
}

// TestArchitecturePointsAtCode holds the routes of ARCHITECTURE.md to the code:
// each file is there, and each function that is named after it is in it.
func TestArchitecturePointsAtCode(t *testing.T) {
	text, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	pointer := regexp.MustCompile("`([a-z0-9_/]+\\.go)`(?: `([A-Za-z]+)`)?")
	found := pointer.FindAllStringSubmatch(string(text), -1)
	if len(found) == 0 {
		t.Fatal("ARCHITECTURE.md names no file")
	}
	for _, m := range found {
		file, function := m[1], m[2]
		code, err := os.ReadFile("../../" + file)
		if err != nil {
			t.Error(err)
			continue
		}
		declared := regexp.MustCompile(`(?m)^func (\([^)]*\) )?` + function + `\(`)
		if function != "" && !declared.Match(code) {
			t.Errorf("%s declares no func %s", file, function)
		}
	}
}
