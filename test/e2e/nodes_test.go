package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/activator"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/wisp-serving/wisp/ranking"
	"github.com/wisp-serving/wisp/test/platform"
)

// threeNodes is a platform with the nodes wisp-0, wisp-1 and wisp-2.
type threeNodes struct {
	*platform.Platform
	*caller
}

// component is the process that is the i-th node.
func component(i int) string {
	if i == 0 {
		return "wisp-node"
	}
	return fmt.Sprintf("wisp-node-%d", i)
}

// order returns the indices of the nodes in which the revision ranks them.
func (p threeNodes) order(service *servingv1.Service) []int {
	key := types.NamespacedName{Namespace: service.Namespace, Name: service.Status.LatestReadyRevisionName}
	return ranking.Of(key, []int{0, 1, 2}, func(i int) (string, bool) { return fmt.Sprintf("wisp-%d", i), false })
}

// callNode sends a request for the service's revision straight to a node.
func (p threeNodes) callNode(i int, service *servingv1.Service) answer {
	r, err := http.NewRequest(http.MethodPost, fmt.Sprintf("http://%s:8012", p.NodeAddresses[i]), strings.NewReader(numbers))
	if err != nil {
		return answer{err: err}
	}
	r.Header.Set(activator.RevisionHeaderNamespace, service.Namespace)
	r.Header.Set(activator.RevisionHeaderName, service.Status.LatestReadyRevisionName)
	return p.do(r)
}

// startsOn counts the functions that a node has started ahead of the service's
// pods.
func (p threeNodes) startsOn(t *testing.T, i int, service *servingv1.Service) int {
	t.Helper()
	n := 0
	for line := range strings.Lines(p.Log(t, component(i))) {
		if strings.Contains(line, "function started ahead of its pod") && strings.Contains(line, service.Namespace+"/"+service.Name+"-") {
			n++
		}
	}
	return n
}

// TestThreeNodes is about what a fleet does that one node can't.
func TestThreeNodes(t *testing.T) {
	base := platform.Start(t, platform.Options{Nodes: 3})
	p := threeNodes{base, newCaller(t, base)}

	t.Run("pods spread", func(t *testing.T) {
		service := createService(t, base, base.Namespace(t), "spread", base.SortModule, "--scale-min", "6")
		on := map[string]int{}
		for _, pod := range awaitReadyPods(t, base, service, 6) {
			on[pod.Spec.NodeName]++
		}
		t.Logf("pods on nodes: %v", on)
		if len(on) != 3 {
			t.Errorf("got pods on %v, want them on all three nodes", on)
		}
		expectAll(t, "calls to all of them", p.burst(service, 100, numbers))
	})

	t.Run("cold requests start on the revision's first node", func(t *testing.T) {
		namespace := base.Namespace(t)
		for i := range 3 {
			service := createService(t, base, namespace, fmt.Sprintf("cold-%d", i), base.SortModule)
			awaitZero(t, base, service)
			expectAll(t, service.Name, p.burst(service, 20, numbers))
			order := p.order(service)
			for place, node := range order {
				if n, want := p.startsOn(t, node, service), map[bool]int{true: 1}[place == 0]; n != want {
					t.Errorf("%s: node wisp-%d, in place %d, has started %d functions, want %d", service.Name, node, place+1, n, want)
				}
			}
		}
	})

	t.Run("any node sends on to the one that has the pod", func(t *testing.T) {
		service := createService(t, base, base.Namespace(t), "one", base.SortModule, "--scale-min", "1", "--scale-max", "1")
		pod := awaitReadyPod(t, base, service)
		for i := range 3 {
			if a := p.callNode(i, service); !a.ok() {
				t.Errorf("wisp-%d, while the pod is on %s: got %s, want 200", i, pod.Spec.NodeName, a)
			}
			if n := p.startsOn(t, i, service); n != 0 {
				t.Errorf("wisp-%d started %d functions for a revision with a ready pod", i, n)
			}
		}
	})

	t.Run("a cordoned node sends on what it may not start", func(t *testing.T) {
		service := createService(t, base, base.Namespace(t), "cordoned", base.SortModule)
		awaitZero(t, base, service)
		order := p.order(service)
		name := fmt.Sprintf("wisp-%d", order[0])
		base.Kubectl(t, "cordon", name)
		defer base.Kubectl(t, "uncordon", name)
		p.awaitCordoned(t, order[0])
		if a := p.callNode(order[0], service); !a.ok() {
			t.Errorf("got %s, want 200 from another node", a)
		}
		if first, second := p.startsOn(t, order[0], service), p.startsOn(t, order[1], service); first != 0 || second != 1 {
			t.Errorf("the cordoned node has started %d functions and the next one %d, want 0 and 1", first, second)
		}
		awaitZero(t, base, service)
		expectAll(t, "through Envoy, while the first node is cordoned", p.burst(service, 20, numbers))
	})

	t.Run("scale-out follows the load over the nodes", func(t *testing.T) {
		service := createService(t, base, base.Namespace(t), "span", base.Guest(t, "test/guests/span/span.c"), "--concurrency-limit", "1")
		tr := p.startTraffic(service, 8, `{"args":["200"]}`, every(0))
		pods := awaitPods(t, base, service, "at least 6 ready pods", func(pods []*corev1.Pod) bool {
			return len(slices.DeleteFunc(slices.Clone(pods), func(p *corev1.Pod) bool { return !ready(p) })) >= 6
		})
		on := map[string]int{}
		for _, pod := range pods {
			on[pod.Spec.NodeName]++
		}
		t.Logf("pods on nodes: %v", on)
		if len(on) < 2 {
			t.Errorf("got all pods on %v, want them on several nodes", on)
		}
		expectAll(t, "under the load", tr.stop())
		awaitZero(t, base, service)
	})

	t.Run("max-scale holds over the nodes, from the first call on", func(t *testing.T) {
		namespace := base.Namespace(t)
		for i := range 3 { // each has its own first node, and a pod where the scheduler likes
			service := createService(t, base, namespace, fmt.Sprintf("span-%d", i), base.Guest(t, "test/guests/span/span.c"),
				"--concurrency-limit", "1", "--scale-max", "1")
			awaitZero(t, base, service)
			answers := p.burst(service, 20, `{"args":["200"]}`)
			expectAll(t, "20 at once", answers)
			// What was started ahead finishes the call that it has when the pod comes up
			// on another node.
			if n := overlaps(t, answers); n > 1 {
				t.Errorf("%s: %d calls began while another ran, want at most 1", service.Name, n)
			}
		}
	})

	t.Run("a node that dies takes only its own requests with it", func(t *testing.T) {
		service := createService(t, base, base.Namespace(t), "sort", base.SortModule, "--scale-min", "3")
		pods := awaitReadyPods(t, base, service, 3)
		const clients = 6
		tr := p.startTraffic(service, clients, numbers, every(2*time.Millisecond))
		tr.await(t, 200)
		victim := slices.IndexFunc([]int{0, 1, 2}, func(i int) bool { return fmt.Sprintf("wisp-%d", i) == pods[0].Spec.NodeName })
		base.Kill(t, component(victim))
		tr.await(t, 400)
		answers := tr.stop()
		n, kinds := failures(answers)
		t.Logf("while a node of three was killed: %d of %d calls failed%s", n, len(answers), kinds)
		if n > clients {
			t.Errorf("%d calls failed, want at most the %d that may have been on the node", n, clients)
		}
		awaitReadyPods(t, base, service, 3)
	})
}

func awaitReadyPods(t testing.TB, p *platform.Platform, service *servingv1.Service, n int) []*corev1.Pod {
	t.Helper()
	return awaitPods(t, p, service, fmt.Sprintf("%d ready pods", n), func(pods []*corev1.Pod) bool {
		return len(pods) == n && !slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return !ready(p) })
	})
}

// awaitCordoned waits until the i-th node itself knows that it is: it sends on
// then.
func (p threeNodes) awaitCordoned(t *testing.T, i int) {
	t.Helper()
	eventually(t, component(i)+" to know that it is cordoned", func() bool {
		return strings.Contains(p.Log(t, component(i)), "this node is cordoned")
	})
}
