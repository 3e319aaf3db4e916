package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	nodev1 "k8s.io/api/node/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/platform"
	"github.com/wisp-serving/wisp/test/platform/cluster"
	"github.com/wisp-serving/wisp/test/platform/stack"
)

// TestHelm installs the chart with Helm, upgrades and uninstalls it. The release
// takes over the accounts, permissions and classes with which this platform's
// roles run, which go on meanwhile; the workloads' own pods have no node to run on
// here and stay pending. The API server is one that streams no lists: the roles list
// before they watch.
func TestHelm(t *testing.T) {
	p := platform.Start(t, platform.Options{Settings: stack.Settings{APIServer: []string{"--feature-gates=WatchList=false"}}})
	service := createSort(t, p)
	const namespace = "wisp-system" // where the platform's own accounts are
	values := []string{"wisp", "../../charts/wisp", "--namespace", namespace, "--set", "knative.namespace=" + cluster.KnativeNamespace}

	p.Helm(t, append([]string{"install", "--take-ownership"}, values...)...)
	expectRelease(t, p, namespace, "deployed", 1)
	gateway := &appsv1.Deployment{}
	key := client.ObjectKey{Namespace: namespace, Name: "wisp-gateway"}
	if err := p.Client.Get(t.Context(), key, gateway); err != nil {
		t.Fatal(err)
	}
	before := gateway.Spec.Template.DeepCopy()
	expect(t, p, service, numbers, http.StatusOK, sorted)

	p.Helm(t, append([]string{"upgrade", "--set", "gateway.replicas=3", "--set", "gateway.settings.envoy.heap=512Mi"}, values...)...)
	expectRelease(t, p, namespace, "deployed", 2)
	if err := p.Client.Get(t.Context(), key, gateway); err != nil {
		t.Fatal(err)
	}
	if *gateway.Spec.Replicas != 3 {
		t.Errorf("after the upgrade: %d replicas, want 3", *gateway.Spec.Replicas)
	}
	if before.Annotations["checksum/settings"] == gateway.Spec.Template.Annotations["checksum/settings"] {
		t.Error("other settings don't make other pods")
	}
	expect(t, p, service, numbers, http.StatusOK, sorted)

	p.Helm(t, "uninstall", "wisp", "--namespace", namespace)
	if list := p.Helm(t, "list", "--namespace", namespace, "--all", "--short"); strings.TrimSpace(list) != "" {
		t.Errorf("releases are left: %s", list)
	}
	roles := &rbacv1.ClusterRoleList{}
	if err := p.Client.List(t.Context(), roles); err != nil {
		t.Fatal(err)
	}
	for _, role := range roles.Items {
		if strings.HasPrefix(role.Name, "wisp-") {
			t.Errorf("cluster role %s is left", role.Name)
		}
	}
	if err := p.Client.Get(t.Context(), client.ObjectKey{Name: config.RuntimeClass}, &nodev1.RuntimeClass{}); client.IgnoreNotFound(err) != nil || err == nil {
		t.Errorf("the RuntimeClass is left: %v", err)
	}
}

func expectRelease(t *testing.T, p *platform.Platform, namespace, status string, revision int) {
	t.Helper()
	var release struct {
		Version int `json:"version"`
		Info    struct {
			Status string `json:"status"`
		} `json:"info"`
	}
	if err := json.Unmarshal([]byte(p.Helm(t, "status", "wisp", "--namespace", namespace, "--output", "json")), &release); err != nil {
		t.Fatal(err)
	}
	if release.Info.Status != status || release.Version != revision {
		t.Errorf("the release is %s, revision %d; want %s, %d", release.Info.Status, release.Version, status, revision)
	}
}
