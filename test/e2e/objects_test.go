package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/wisp-serving/wisp/test/guests"
	"github.com/wisp-serving/wisp/test/platform"
)

// TestObjectsAhead calls functions at zero that take a Secret and a ConfigMap: where
// the node may read them they start ahead of their pod, with what is in them now;
// elsewhere they wait.
func TestObjectsAhead(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	puppet, err := guests.Program(t.Context(), "puppet")
	if err != nil {
		t.Fatal(err)
	}
	c := newCaller(t, p)
	create := func(t *testing.T) (*servingv1.Service, *corev1.Secret) {
		t.Helper()
		secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace(t), Name: "keys"}, StringData: map[string]string{"TOKEN": "one"}}
		if err := p.Client.Create(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
		words := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: secret.Namespace, Name: "words"}, Data: map[string]string{"WORD": "said"}}
		if err := p.Client.Create(t.Context(), words); err != nil {
			t.Fatal(err)
		}
		service := createService(t, p, secret.Namespace, "puppet", puppet,
			"--env-from", "secret:keys", "--mount", "/keys=secret:keys", "--env-from", "config-map:words")
		awaitZero(t, p, service)
		return service, secret
	}
	// call returns what the function says, and how many were started ahead for it.
	call := func(t *testing.T, service *servingv1.Service, body string) (string, int) {
		t.Helper()
		before := startsAhead(t, p)
		a := c.call(service, body)
		if !a.ok() {
			t.Fatalf("got %s, want 200", a)
		}
		return strings.TrimSpace(a.body), startsAhead(t, p) - before
	}
	const env, file, word = `{"args":["env","TOKEN"]}`, `{"args":["cat","/keys/TOKEN"]}`, `{"args":["env","WORD"]}`

	t.Run("waits where it was not allowed", func(t *testing.T) {
		service, _ := create(t)
		if said, ahead := call(t, service, env); ahead != 0 || said != "one" {
			t.Errorf("%d functions started ahead, the pod has TOKEN=%s; want none, and one", ahead, said)
		}
	})
	t.Run("starts with what is there now", func(t *testing.T) {
		service, secret := create(t)
		p.Kubectl(t, "create", "rolebinding", "wisp-node-objects", "-n", service.Namespace,
			"--clusterrole", "wisp-node-objects", "--serviceaccount", "wisp-system:wisp-node")
		p.Kill(t, "wisp-node") // which would ask again within a minute: the new one asks as it starts
		ahead := 0
		for deadline := time.Now().Add(2 * time.Minute); ahead == 0; awaitZero(t, p, service) {
			if time.Now().After(deadline) {
				t.Fatal("no function started ahead, two minutes after that was allowed")
			}
			_, ahead = call(t, service, env)
			awaitReadyPod(t, p, service)
		}
		secret.Data, secret.StringData = nil, map[string]string{"TOKEN": "two"}
		if err := p.Client.Update(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
		call(t, service, env) // while its pod comes and goes, the node hears of the change
		awaitReadyPod(t, p, service)
		awaitZero(t, p, service)
		for _, body := range []string{file, env} { // the first starts it, the second finds it
			if said, n := call(t, service, body); said != "two" || body == file && n != 1 {
				t.Errorf("%s: %d functions started ahead, which says %q; want one, and two", body, n, said)
			}
		}
		awaitReadyPod(t, p, service)
		expect(t, p, service, file, http.StatusOK, "two")
		expect(t, p, service, word, http.StatusOK, "said")
	})
}
