package translate

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite testdata/out and delete what is stale there")

// golden is a file of testdata/in. All backends are in the KIngress's namespace.
type golden struct {
	Backends map[string]Backend `json:"backends"`
	// Secrets are the certificates that there are.
	Secrets []string         `json:"secrets"`
	Gateway *Gateway         `json:"gateway"`
	Ingress v1alpha1.Ingress `json:"ingress"`
}

func (g golden) world() World {
	w := World{
		Gateway: Gateway{InternalDomain: "internal.wisp-system.svc.cluster.local", InternalAddress: "127.0.0.1:8081", TLS: true},
		Backend: func(s types.NamespacedName) (Backend, bool) {
			b, ok := g.Backends[s.Name]
			return b, ok && s.Namespace == g.Ingress.Namespace
		},
		Certificate: func(s types.NamespacedName) *Refusal {
			if s.Namespace == g.Ingress.Namespace && slices.Contains(g.Secrets, s.Name) {
				return nil
			}
			return refuse(ReasonCertificate, "secret %s: there is none", s)
		},
	}
	if g.Gateway != nil {
		w.Gateway = *g.Gateway
	}
	return w
}

// result is a file of testdata/out.
type result struct {
	Ingress *Ingress `json:"ingress,omitempty"`
	Refusal *Refusal `json:"refusal,omitempty"`
}

func TestTranslateGoldens(t *testing.T) {
	inputs, err := filepath.Glob("testdata/in/*.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("find inputs: %v, %v", inputs, err)
	}
	wanted := map[string]bool{}
	for _, in := range inputs {
		name := filepath.Base(in)
		wanted[name] = true
		t.Run(strings.TrimSuffix(name, ".yaml"), func(t *testing.T) {
			compare(t, filepath.Join("testdata/out", name), translateFile(t, in))
		})
	}
	outputs, err := filepath.Glob("testdata/out/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range outputs {
		if wanted[filepath.Base(out)] {
			continue
		}
		if !*update {
			t.Errorf("%s has no input: run with -update", out)
		} else if err := os.Remove(out); err != nil {
			t.Error(err)
		}
	}
}

func translateFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var in golden
	if err := yaml.UnmarshalStrict(text, &in); err != nil {
		t.Fatal(err)
	}
	before := in.Ingress.DeepCopy()
	got, refusal := Translate(&in.Ingress, in.world())
	if diff := cmp.Diff(before, &in.Ingress); diff != "" {
		t.Errorf("the KIngress was changed (-before +after):\n%s", diff)
	}
	out := result{Refusal: refusal}
	if refusal == nil {
		out.Ingress = &got
	}
	raw, err := yaml.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func compare(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("read golden (run with -update): %v", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("translation differs (-want +got):\n%s", diff)
	}
}

func TestClusters(t *testing.T) {
	a, b := Cluster{Kind: Revision, Namespace: "ns", Service: "a", Protocol: HTTP1}, Cluster{Kind: Revision, Namespace: "ns", Service: "b", Protocol: H2C}
	leading := func(to ...Cluster) VirtualHost {
		vh := VirtualHost{}
		for _, c := range to {
			vh.Routes = append(vh.Routes, Route{Splits: []Split{{Cluster: c}}})
		}
		return vh
	}
	got := Ingress{Internal: []VirtualHost{leading(b, a), leading(a)}}.Clusters()
	if diff := cmp.Diff([]Cluster{a, b}, got); diff != "" {
		t.Errorf("clusters (-want +got):\n%s", diff)
	}
}

func TestHeadersAreInOrder(t *testing.T) {
	want := []Header{{"a", "lower"}, {"b", "later"}}
	for range 50 { // maps have no order
		got := headers(map[string]string{"A": "upper", "a": "lower", "b": "earlier"}, map[string]string{"B": "later"})
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("headers (-want +got):\n%s", diff)
		}
	}
}
