package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/ranking"
	"github.com/wisp-serving/wisp/test/platform"
	"github.com/wisp-serving/wisp/test/platform/ports"
	"github.com/wisp-serving/wisp/test/platform/stack"
)

// secondRole is a role's process that a test runs beside the platform's.
type secondRole struct {
	process *os.Process
	log     bytes.Buffer
	ended   chan struct{}
}

// startSecond runs a role with settings, those of the platform's at another address,
// and returns it ready.
func startSecond(t *testing.T, p *platform.Platform, role string, settings any, health string) *secondRole {
	t.Helper()
	text, err := yaml.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), role+".yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	s := &secondRole{ended: make(chan struct{})}
	cmd := p.Command(context.Background(), "wisp", role, "--config", path)
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.process = cmd.Process
	go func() {
		defer close(s.ended)
		_ = cmd.Wait() // killed, most likely
	}()
	t.Cleanup(func() {
		s.kill(t)
		if t.Failed() || strings.Contains(s.log.String(), "DATA RACE") {
			t.Errorf("the second %s's log:\n%s", role, s.log.String())
		}
	})
	eventually(t, "the second "+role+" to be ready", func() bool {
		resp, err := http.Get("http://" + health + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return s
}

// kill ends it with SIGKILL. It may be called again.
func (s *secondRole) kill(t *testing.T) {
	t.Helper()
	_ = s.process.Kill() // it may have ended
	<-s.ended
}

// awaitLead waits until the autoscaler at that address leads.
func awaitLead(t *testing.T, p *platform.Platform, statAddress string) {
	t.Helper()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "wisp-system", Name: "wisp-autoscaler"}}
	platform.WaitFor(t, p, lease, "be held by "+statAddress, func(l *coordinationv1.Lease) bool {
		return l.Spec.HolderIdentity != nil && strings.HasSuffix(*l.Spec.HolderIdentity, "_"+statAddress)
	})
}

// TestTwoAutoscalers has one lead after the other fail while a revision panics:
// once it is frozen, so that it comes back and must follow, once it is killed.
// Nobody scales anything down that the one before wouldn't have.
func TestTwoAutoscalers(t *testing.T) {
	host, err := ports.FreeHost(9101, 9102)
	if err != nil {
		t.Fatal(err)
	}
	var first, second config.Autoscaler
	p := platform.Start(t, platform.Options{Settings: stack.Settings{
		Autoscaler: func(c *config.Autoscaler) {
			c.LeaseDuration.Duration = 3 * time.Second
			first, second = *c, *c
			second.HealthAddress, second.StatAddress = host+":9101", host+":9102"
		},
		Node: func(c *config.Node) { c.Autoscalers = append(c.Autoscalers, "ws://"+host+":9102") },
	}})
	awaitLead(t, p, first.StatAddress)
	s := startSecond(t, p, "autoscaler", second, second.HealthAddress)
	namespace, c := p.Namespace(t), newCaller(t, p)
	idle := createService(t, p, namespace, "idle", p.SortModule, "--scale-min", "1")
	service := createService(t, p, namespace, "span", p.Guest(t, "test/guests/span/span.c"),
		"--concurrency-limit", "1", "--scale-window", "40s")
	awaitZero(t, p, service)

	// The panic begins: 4 calls at once where one pod takes one. While it lasts, a
	// window of 40 s, its pods stay, although the average would soon be content with
	// fewer.
	const clients, pods = 4, 5
	tr := c.startTraffic(service, clients, `{"args":["200"]}`, every(0))
	awaitPods(t, p, service, fmt.Sprintf("%d ready pods", pods), atLeastReady(pods))
	watch := watchPods(t, p, service)
	pause(t, p, "wisp-autoscaler", func() { awaitLead(t, p, second.StatAddress) })
	tr.await(t, 20)
	expectAll(t, "while the leader was frozen", tr.stop())

	s.kill(t)
	awaitLead(t, p, first.StatAddress)
	time.Sleep(10 * time.Second) // in which a leader that knows no panic would have decided ten times
	for _, sample := range watch.stop() {
		if sample.ready < pods {
			t.Errorf("%v after the start of the watch there were %d ready pods, want at least %d", sample.at, sample.ready, pods)
			break
		}
	}
	awaitReadyPod(t, p, idle)
	// And this one leads: once the panic is over, it ends what nobody needs.
	awaitZero(t, p, service)
	expectAll(t, "afterwards", append(c.burst(service, 5, `{"args":["1"]}`), c.burst(idle, 5, numbers)...))
}

func atLeastReady(n int) func([]*corev1.Pod) bool {
	return func(pods []*corev1.Pod) bool {
		return len(slices.DeleteFunc(slices.Clone(pods), func(p *corev1.Pod) bool { return !ready(p) })) >= n
	}
}

// TestHandBack has a revision whose pods aren't wasm, in a cluster whose default
// is Wisp's class: Knative's autoscaler, which doesn't run here, is to scale it.
func TestHandBack(t *testing.T) {
	p := platform.Start(t, platform.Options{Own: true})
	p.Kubectl(t, "patch", "configmap", "config-deployment", "-n", "knative-serving", "--type", "merge",
		"-p", `{"data":{"runtime-class-name":"wasm: {}\ncontainer: {selector: {kind: container}}\n"}}`)
	namespace := p.Namespace(t)
	wasm := createService(t, p, namespace, "wasm", p.SortModule)
	p.Kn(t, "service", "create", "container", "-n", namespace, "--image", p.Registry+"/wasm:v1", "--label", "kind=container", "--no-wait")

	container := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "container"}}
	container = platform.WaitFor(t, p, container, "have a revision", func(s *servingv1.Service) bool { return s.Status.LatestCreatedRevisionName != "" })
	pa := func(revision string) *autoscalingv1alpha1.PodAutoscaler {
		return &autoscalingv1alpha1.PodAutoscaler{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: revision}}
	}
	handed := platform.WaitFor(t, p, pa(container.Status.LatestCreatedRevisionName), "be of Knative's class",
		func(pa *autoscalingv1alpha1.PodAutoscaler) bool { return pa.Class() == autoscaling.KPA })
	if metric := handed.Metric(); metric != autoscaling.Concurrency {
		t.Errorf("got metric %q, want what Knative's class has without a choice", metric)
	}
	kept := pa(wasm.Status.LatestReadyRevisionName)
	if err := p.Client.Get(t.Context(), client.ObjectKeyFromObject(kept), kept); err != nil {
		t.Fatal(err)
	}
	if kept.Class() != config.PodAutoscalerClass {
		t.Errorf("got class %q of a revision of wasm, want %q", kept.Class(), config.PodAutoscalerClass)
	}
}

// TestDeadNode kills a node that doesn't come back: only the requests on it fail,
// its pods come up elsewhere, and revisions that were to start on it start on
// others. Kubernetes' patience is shortened for it, from five minutes.
func TestDeadNode(t *testing.T) {
	base := platform.Start(t, platform.Options{Nodes: 3, Settings: stack.Settings{
		APIServer:         []string{"--default-not-ready-toleration-seconds=2", "--default-unreachable-toleration-seconds=2"},
		ControllerManager: []string{"--node-monitor-grace-period=20s", "--node-monitor-period=1s"},
	}})
	p := threeNodes{base, newCaller(t, base)}
	namespace := base.Namespace(t)
	service := createService(t, base, namespace, "sort", base.SortModule, "--scale-min", "3")
	pods := awaitReadyPods(t, base, service, 3)
	victim := slices.IndexFunc([]int{0, 1, 2}, func(i int) bool { return stack.NodeName(i) == pods[0].Spec.NodeName })
	cold, later := p.rankedFirst(t, namespace, "cold", victim), p.rankedFirst(t, namespace, "later", victim)

	const clients = 6
	tr := p.startTraffic(service, clients, numbers, every(5*time.Millisecond))
	tr.await(t, 200)
	release := base.Hold(t, component(victim))
	expectAll(t, "cold, where the dead node would be the first", p.burst(cold, 10, numbers))
	awaitPods(t, base, service, "3 ready pods on the nodes that are left", func(pods []*corev1.Pod) bool {
		return atLeastReady(3)(slices.DeleteFunc(slices.Clone(pods), func(p *corev1.Pod) bool { return p.Spec.NodeName == stack.NodeName(victim) }))
	})
	tr.await(t, 200)
	answers := tr.stop()
	n, kinds := failures(answers)
	t.Logf("while a node of three was dead: %d of %d calls failed%s", n, len(answers), kinds)
	if n > clients {
		t.Errorf("%d calls failed, want at most the %d that may have been on the node", n, clients)
	}
	expectAll(t, "cold, once Kubernetes knows", p.burst(later, 10, numbers))

	release()
	awaitReadyPods(t, base, service, 3) // what is left of the others is gone
	expectAll(t, "with the node back", p.burst(service, 50, numbers))
}

// rankedFirst returns a service at zero whose first node is the i-th.
func (p threeNodes) rankedFirst(t *testing.T, namespace, prefix string, i int) *servingv1.Service {
	t.Helper()
	for n := 0; ; n++ {
		// Known before it is there: Knative names a Service's first revision so.
		name := fmt.Sprintf("%s-%d", prefix, n)
		key := types.NamespacedName{Namespace: namespace, Name: name + "-00001"}
		if ranking.Of(key, []int{0, 1, 2}, func(i int) (string, bool) { return stack.NodeName(i), false })[0] != i {
			continue
		}
		service := createService(t, p.Platform, namespace, name, p.SortModule)
		awaitZero(t, p.Platform, service)
		return service
	}
}
