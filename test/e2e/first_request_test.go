// Package e2e holds the tests that need everything: a real Kubernetes, Knative
// Serving, registry and Envoy, Wisp's three roles, and guests compiled from
// source. They share one platform, each in a namespace of its own; package
// platform starts it all.
package e2e

import (
	"net/http"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/platform"
)

const (
	numbers = `{"args":["1111","2345","8","99","11234","12312","1231231","-10000"]}`
	sorted  = "-10000 8 99 1111 2345 11234 12312 1231231"
)

func TestMain(m *testing.M) { os.Exit(platform.Main(m, platform.Options{})) }

// TestFirstRequest draws the whole line: from a module on disk to an answer
// through Envoy, to zero, and back.
func TestFirstRequest(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	service := createSort(t, p)

	t.Run("the pod runs on the wasm node", func(t *testing.T) {
		pod := awaitReadyPod(t, p, service)
		if pod.Spec.RuntimeClassName == nil || *pod.Spec.RuntimeClassName != config.RuntimeClass {
			t.Errorf("got runtime class %v, want %s", pod.Spec.RuntimeClassName, config.RuntimeClass)
		}
		node := &corev1.Node{}
		if err := p.Client.Get(t.Context(), client.ObjectKey{Name: pod.Spec.NodeName}, node); err != nil {
			t.Fatal(err)
		}
		if node.Labels[config.NodeLabel] != "true" {
			t.Errorf("the pod is on node %s, which is no wasm node", node.Name)
		}
	})
	t.Run("it answers through Envoy", func(t *testing.T) {
		expect(t, p, service, numbers, http.StatusOK, sorted)
	})
	t.Run("it says what is wrong with a call", func(t *testing.T) {
		expect(t, p, service, `{"args":["1",2]}`, http.StatusBadRequest, "args[1]")
		expect(t, p, service, `{"args":["no number"]}`, http.StatusInternalServerError, "exit status 1")
	})
	t.Run("an unknown host is Envoy's to refuse", func(t *testing.T) {
		if status, _ := call(t, p, "nobody."+service.Namespace+".localhost", numbers); status != http.StatusNotFound {
			t.Errorf("got %d, want 404", status)
		}
	})
	for _, round := range []string{"first", "second"} {
		t.Run("from zero, the "+round+" time", func(t *testing.T) {
			awaitZero(t, p, service)
			ahead := startsAhead(t, p)
			expect(t, p, service, numbers, http.StatusOK, sorted)
			if n := startsAhead(t, p) - ahead; n != 1 {
				t.Errorf("%d functions were started ahead of their pod for one cold request, want 1", n)
			}
			pod := awaitReadyPod(t, p, service)
			events := p.Kubectl(t, "get", "events", "-n", service.Namespace, "--field-selector", "reason=Started,involvedObject.name="+pod.Name)
			if !strings.Contains(events, "Adopted the function") {
				t.Errorf("pod %s did not adopt the function that was started ahead of it; its events:\n%s", pod.Name, events)
			}
			expect(t, p, service, numbers, http.StatusOK, sorted)
		})
	}
	t.Run("from zero, on a node that has run nothing since it was killed", func(t *testing.T) {
		awaitZero(t, p, service)
		p.Kill(t, "wisp-node")
		ahead := startsAhead(t, p)
		expect(t, p, service, numbers, http.StatusOK, sorted)
		if n := startsAhead(t, p) - ahead; n != 1 {
			t.Errorf("%d functions were started ahead of their pod, want 1: what was admitted before is on disk", n)
		}
	})
	t.Run("a deleted service is gone", func(t *testing.T) {
		p.Kn(t, "service", "delete", "sort", "-n", service.Namespace, "--wait")
		awaitZero(t, p, service)
	})
}

// startsAhead counts the functions that the node has started ahead of a pod.
func startsAhead(t *testing.T, p *platform.Platform) int {
	t.Helper()
	return strings.Count(p.Log(t, "wisp-node"), "function started ahead of its pod")
}
