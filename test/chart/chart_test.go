// Package chart tests the Helm chart: what it renders, that the roles take the
// settings it gives them, and what it refuses.
package chart

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/platform/cluster"
	"github.com/wisp-serving/wisp/test/platform/tools"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const chart = "../../charts/wisp"

// helm runs helm, which comes from the platform's tools.
func helm(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	root, err := tools.FindRoot()
	if err != nil {
		t.Fatal(err)
	}
	cache, err := tools.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	b := &tools.Builder{Root: root, Cache: cache, Report: func(line string) { t.Log(line) }}
	programs, err := b.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), programs.Helm, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// render renders the chart with a file of values.
func render(t *testing.T, values string) string {
	t.Helper()
	out, errs, err := helm(t, "template", "wisp", chart, "--namespace", "wisp-system", "--kube-version", "1.35.0", "--values", values)
	if err != nil {
		t.Fatalf("helm template: %v\n%s", err, errs)
	}
	return out
}

func TestLint(t *testing.T) {
	if out, errs, err := helm(t, "lint", "--strict", "--kube-version", "1.35.0", chart); err != nil {
		t.Errorf("helm lint: %v\n%s%s", err, out, errs)
	}
}

func TestGolden(t *testing.T) {
	for _, values := range valueFiles(t) {
		t.Run(filepath.Base(values), func(t *testing.T) {
			got := withoutRoles(render(t, values))
			golden := strings.TrimSuffix(values, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("rendered (-want +got), `make golden` accepts it:\n%s", diff)
			}
		})
	}
}

// withoutRoles leaves out the lists of permissions: they are the same whatever the
// values, and a copy of each list would say nothing.
func withoutRoles(rendered string) string {
	var kept []string
	for doc := range strings.SplitSeq(rendered, "\n---\n") {
		if !strings.Contains(doc, "\nkind: ClusterRole\n") && !strings.Contains(doc, "\nkind: Role\n") {
			kept = append(kept, doc)
		}
	}
	return strings.Join(kept, "\n---\n")
}

// Each role takes the file that the chart gives it.
func TestSettings(t *testing.T) {
	load := map[string]func(path string) error{
		"node": func(path string) error {
			_, err := config.LoadNode(path, "name=wisp-node-0", "address=10.0.0.1") // as the StatefulSet's args say
			return err
		},
		"gateway":    func(path string) error { _, err := config.LoadGateway(path); return err },
		"autoscaler": func(path string) error { _, err := config.LoadAutoscaler(path); return err },
	}
	for _, values := range valueFiles(t) {
		objects, err := cluster.ParseObjects([]byte(render(t, values)))
		if err != nil {
			t.Fatal(err)
		}
		for role, load := range load {
			t.Run(filepath.Base(values)+"/"+role, func(t *testing.T) {
				if err := load(write(t, text(t, objects, "wisp-"+role, role+".yaml"))); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// text is one key of a ConfigMap.
func text(t *testing.T, objects []*cluster.Object, name, key string) string {
	t.Helper()
	for _, o := range objects {
		if o.GetKind() == "ConfigMap" && o.GetName() == name {
			return o.Object["data"].(map[string]any)[key].(string)
		}
	}
	t.Fatalf("no ConfigMap %s", name)
	return ""
}

func TestSchema_refuses(t *testing.T) {
	tests := map[string]struct{ values, want string }{
		"an unknown key":        {"nodes: {}", "'nodes' not allowed"},
		"a negative number":     {"node: {replicas: -1}", "'/node/replicas'"},
		"what is no quantity":   {"node: {capacity: {cpu: many, memory: 1Gi, pods: 1}}", "'/node/capacity/cpu'"},
		"a mode that isn't one": {"knative: {mode: sometimes}", "'/knative/mode'"},
		"no image":              {"image: {repository: ''}", "'/image/repository'"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, errs, err := helm(t, "template", "wisp", chart, "--kube-version", "1.35.0", "--values", write(t, tt.values))
			if err == nil || !strings.Contains(errs, tt.want) {
				t.Errorf("got %v, want it refused for %s:\n%s", err, tt.want, errs)
			}
		})
	}
}

func valueFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no values in testdata: %v", err)
	}
	return files
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
