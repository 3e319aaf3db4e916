package e2e

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/wisp-serving/wisp/test/platform"
)

// ask is one request to a sample, and what its answer should be.
type ask struct {
	method, path, body string
	status             int
	want               string
}

// TestSamples does for each sample what its README says. Those in Go take minutes
// to compile with the race detector.
func TestSamples(t *testing.T) {
	const root = "../.."
	samples := map[string][]ask{
		"sort": {
			{"POST", "/", numbers, http.StatusOK, sorted},
			{"POST", "/", `{"args":["eight"]}`, http.StatusInternalServerError, "exit status 1"},
		},
		"hello": {{"GET", "/?you", "", http.StatusOK, "ello"}},
		"greet": {
			{"GET", "/?name=Ada", "", http.StatusOK, "Hello Ada, you asked greet."},
			{"GET", "/", "", http.StatusBadRequest, "who is it?"},
		},
		"notes": {
			{"POST", "/notes", "buy milk", http.StatusCreated, "note 1\n"},
			{"POST", "/notes", "drink it", http.StatusCreated, "note 2\n"},
			{"GET", "/notes", "", http.StatusOK, "1 buy milk\n2 drink it\n"},
			{"GET", "/other", "", http.StatusNotFound, "404 page not found"},
		},
		"words": {{"POST", "/", "the quick brown fox", http.StatusOK, "1 4 19\n"}},
		"jq": {
			{"POST", "/", `{"name":"wisp","stars":[1,2],"x":0}`, http.StatusOK, `{"name":"wisp","stars":3}`},
			{"POST", "/", `no json`, http.StatusInternalServerError, ""},
		},
	}
	build := exec.CommandContext(t.Context(), "make", "samples")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make samples: %v\n%s", err, out)
	}
	p := platform.Start(t, platform.Options{WithoutRace: true})
	for name, asks := range samples {
		t.Run(name, func(t *testing.T) {
			module := filepath.Join(root, "build", name+".wasm")
			if _, err := os.Stat(module); errors.Is(err, fs.ErrNotExist) {
				withoutRust(t)
			}
			p.Wisp(t, "push", module, p.Registry+"/"+name+":v1")
			service := applySample(t, p, filepath.Join(root, "samples", name, "service.yaml"), name)
			for _, a := range asks {
				status, answer := callPath(t, p, a.method, service.Status.URL.Host, a.path, a.body)
				if status != a.status || !strings.Contains(answer, a.want) {
					t.Errorf("%s %s %q: got %d %q, want %d with %q", a.method, a.path, a.body, status, answer, a.status, a.want)
				}
			}
		})
	}
}

// rustTarget is the name of rustc's target for WASI, or empty if it has none.
func rustTarget() string {
	for _, target := range []string{"wasm32-wasip1", "wasm32-wasi"} { // in older releases
		dir, err := exec.Command("rustc", "--print", "target-libdir", "--target", target).Output()
		if err != nil {
			continue
		}
		if _, err := os.Stat(strings.TrimSpace(string(dir))); err == nil {
			return target
		}
	}
	return ""
}

// withoutRust ends a test that takes it: CI has what .ci/run installs, a developer may
// do without.
func withoutRust(t *testing.T) {
	t.Helper()
	const why = "rustc and its target for WASI are not installed here"
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// applySample makes the Service of a sample's file, in a namespace of its own and
// with the image of this platform's registry, and returns it ready.
func applySample(t *testing.T, p *platform.Platform, file, name string) *servingv1.Service {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	here := filepath.Join(t.TempDir(), "service.yaml")
	if err := os.WriteFile(here, []byte(strings.ReplaceAll(string(text), "localhost:5000", p.Registry)), 0o600); err != nil {
		t.Fatal(err)
	}
	namespace := p.Namespace(t)
	p.Kubectl(t, "apply", "-n", namespace, "-f", here)
	service := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	return platform.WaitFor(t, p, service, "be ready", func(s *servingv1.Service) bool { return s.IsReady() })
}
