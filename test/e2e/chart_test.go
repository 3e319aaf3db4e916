package e2e

import (
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/wisp-serving/wisp/test/platform"
	"github.com/wisp-serving/wisp/test/platform/cluster"
)

// TestChart has the API server check what the chart installs in a cluster. The
// part of it that this platform uses itself, accounts, permissions and settings,
// is what every other test runs with.
func TestChart(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	namespace := p.Namespace(t)
	p.Kubectl(t, "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
	manifest := filepath.Join(t.TempDir(), "wisp.yaml")
	text := p.Helm(t, "template", "wisp", "../../charts/wisp", "--namespace", namespace, "--kube-version", "1.35.0",
		"--values", "../chart/testdata/everything.yaml", "--set", "knative.namespace="+cluster.KnativeNamespace,
		"--set", "node.objectsAhead={"+namespace+"}") // namespaces have to be there
	if err := os.WriteFile(manifest, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Kubectl(t, "apply", "--dry-run=server", "-f", manifest)

	objects, err := cluster.ParseObjects([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	workloads := 0
	for _, o := range objects {
		template, ok, err := unstructured.NestedMap(o.Object, "spec", "template")
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			continue
		}
		workloads++
		pod := &corev1.Pod{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(template, pod); err != nil {
			t.Fatal(err)
		}
		pod.ObjectMeta = metav1.ObjectMeta{Namespace: namespace, Name: o.GetName(), Labels: pod.Labels}
		claims, _, err := unstructured.NestedSlice(o.Object, "spec", "volumeClaimTemplates")
		if err != nil {
			t.Fatal(err)
		}
		for range claims { // a StatefulSet's controller adds a volume for each
			pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "data"})
		}
		pod.Spec.ServiceAccountName = "" // that of the chart isn't there in a dry run
		if err := p.Client.Create(t.Context(), pod, client.DryRunAll); err != nil {
			t.Errorf("a restricted namespace refuses the pods of %s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
	if workloads != 4 {
		t.Errorf("the chart has %d workloads, want the three roles and Envoy", workloads)
	}
}
