package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/platform"
	"github.com/wisp-serving/wisp/test/platform/ports"
	"github.com/wisp-serving/wisp/test/platform/stack"
)

// TestNodeUnderAccount runs a node as the chart does in a cluster: under its account
// alone, without a kubelet's certificate, and with the roles that the chart binds to it.
func TestNodeUnderAccount(t *testing.T) {
	var settings config.Node
	p := platform.Start(t, platform.Options{Settings: stack.Settings{Node: func(c *config.Node) { settings = *c }}})
	w := newWorker(t, p)
	const role, account = "wisp-node-kubelet", "--serviceaccount=" + stack.WispNamespace + ":wisp-node"
	p.Kubectl(t, "create", "clusterrolebinding", role, "--clusterrole", role, account)
	p.Kubectl(t, "create", "rolebinding", role, "-n", corev1.NamespaceNodeLease, "--role", role, account)

	host, err := ports.FreeHost(8012, settings.Kubelet.Port, 9440)
	if err != nil {
		t.Fatal(err)
	}
	settings.Name, settings.Address, settings.HealthAddress, settings.DataDir = "account", host, host+":9440", t.TempDir()
	settings.Cluster = settings.Reader
	second := startSecond(t, p, "node", settings, settings.HealthAddress)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: settings.Name}}
	platform.WaitFor(t, p, node, "be ready", nodeReady)

	w.create(t, &corev1.ConfigMap{ObjectMeta: w.meta("words"), Data: map[string]string{"FROM_CONFIG": "read"}})
	w.create(t, &corev1.Secret{ObjectMeta: w.meta("keys"), StringData: map[string]string{"FROM_SECRET": "too"}})
	spec := w.spec(corev1.RestartPolicyNever, "env")
	spec.NodeSelector = map[string]string{corev1.LabelHostname: settings.Name}
	spec.Containers[0].EnvFrom = []corev1.EnvFromSource{
		{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "words"}}},
		{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "keys"}}},
	}
	if pod := w.run(t, "there", spec); pod.Status.Phase != corev1.PodSucceeded || pod.Spec.NodeName != settings.Name {
		t.Errorf("the pod is %s on node %s, want it to succeed on %s", pod.Status.Phase, pod.Spec.NodeName, settings.Name)
	}
	expectKubeletAPI(t, w, fmt.Sprintf("https://%s:%d/containerLogs/%s/there/main", host, settings.Kubelet.Port, w.namespace))
	w.Kubectl(t, "delete", "pod", "there", "-n", w.namespace)

	second.kill(t)
	if log := second.log.String(); strings.Contains(log, "forbidden") {
		t.Errorf("the node asked for what its account may not do:\n%s", log)
	}
	if err := p.Client.Delete(t.Context(), node); client.IgnoreNotFound(err) != nil {
		t.Error(err)
	}
}

func nodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// expectKubeletAPI asks for a pod's log, straight from its node: as nobody, as an account
// that may not, and as one that may.
func expectKubeletAPI(t *testing.T, w *worker, url string) {
	t.Helper()
	w.Kubectl(t, "create", "serviceaccount", "reader", "-n", w.namespace)
	binding := w.namespace + "-reader"
	w.Kubectl(t, "create", "clusterrolebinding", binding, "--clusterrole", "system:kubelet-api-admin", "--serviceaccount", w.namespace+":reader")
	t.Cleanup(func() { w.Kubectl(t, "delete", "clusterrolebinding", binding) })
	insecure := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // nobody signs a certificate for an account
	}}
	for account, want := range map[string]int{"": http.StatusUnauthorized, "default": http.StatusForbidden, "reader": http.StatusOK} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if account != "" {
			r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(w.Kubectl(t, "create", "token", account, "-n", w.namespace)))
		}
		resp, err := insecure.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != want || want == http.StatusOK && !strings.Contains(string(text), "FROM_CONFIG=read\n") {
			t.Errorf("the log, as account %q: %d %q, %v; want %d", account, resp.StatusCode, text, err, want)
		}
	}
}
