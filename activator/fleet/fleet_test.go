package fleet

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"knative.dev/serving/pkg/apis/serving"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/ranking"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var sortKey = types.NamespacedName{Namespace: "default", Name: "sort-00001"}

// bench is a Fleet of node wisp-0 on a fake API server, with what it told.
type bench struct {
	*Fleet
	client *fake.Clientset

	mu       sync.Mutex
	changed  *sync.Cond
	at       map[string]int
	refusals []string
	started  []string
	appeared []string
	marks    []bool
}

func start(t *testing.T, nodes ...*corev1.Node) *bench {
	t.Helper()
	b := &bench{client: fake.NewClientset()}
	b.changed = sync.NewCond(&b.mu)
	for _, n := range nodes {
		if err := b.client.Tracker().Add(n); err != nil {
			t.Fatal(err)
		}
	}
	told := func(f func()) {
		b.mu.Lock()
		defer b.mu.Unlock()
		f()
		b.changed.Broadcast()
	}
	var err error
	b.Fleet, err = New(Config{
		Client: b.client, Node: "wisp-0", Port: 8012,
		Elsewhere: func(r types.NamespacedName, at map[string]int) {
			if r == sortKey {
				told(func() { b.at = at })
			}
		},
		Refused:  func(_ Revision, reason string) { told(func() { b.refusals = append(b.refusals, reason) }) },
		Started:  func(p *corev1.Pod) { told(func() { b.started = append(b.started, p.Name) }) },
		Appeared: func(r Revision, image string) { told(func() { b.appeared = append(b.appeared, r.Name+" "+image) }) },
		Marked:   func(cordoned bool) { told(func() { b.marks = append(b.marks, cordoned) }) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if err := b.Synced(ctx); err != nil {
		t.Fatal(err)
	}
	return b
}

// await waits until ok holds for what was told; the test's own timeout ends it.
func (b *bench) await(ok func() bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !ok() {
		b.changed.Wait()
	}
}

func (b *bench) put(t *testing.T, objs ...any) {
	t.Helper()
	for _, obj := range objs {
		var err error
		switch o := obj.(type) {
		case *corev1.Pod:
			if _, err = b.client.CoreV1().Pods(o.Namespace).Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
				_, err = b.client.CoreV1().Pods(o.Namespace).Update(t.Context(), o, metav1.UpdateOptions{})
			}
		case *appsv1.Deployment:
			_, err = b.client.AppsV1().Deployments(o.Namespace).Create(t.Context(), o, metav1.CreateOptions{})
		case *corev1.Node:
			_, err = b.client.CoreV1().Nodes().Update(t.Context(), o, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func wasmNode(name, ip string, edits ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{config.NodeLabel: "true"}}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for _, edit := range edits {
		edit(n)
	}
	return n
}

func cordoned(n *corev1.Node) { n.Spec.Unschedulable = true }

func notReady(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionFalse }

var labels = map[string]string{serving.RevisionLabelKey: sortKey.Name, serving.RevisionUID: "rev"}

func pod(name, on string, edits ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: sortKey.Namespace, Name: name, Labels: labels}}
	p.Spec.NodeName = on
	p.Spec.Containers = []corev1.Container{{Name: "queue-proxy", Env: []corev1.EnvVar{{Name: "CONTAINER_CONCURRENCY", Value: "2"}}}}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	for _, edit := range edits {
		edit(p)
	}
	return p
}

func unready(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }

func unbounded(p *corev1.Pod) { p.Spec.Containers[0].Env[0].Value = "0" }

func deployment1(edits ...func(*appsv1.Deployment)) *appsv1.Deployment {
	class := config.RuntimeClass
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: sortKey.Namespace, Name: "sort-00001-deployment", Labels: labels}}
	d.Spec.Template.Spec.RuntimeClassName = &class
	d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "queue-proxy", Image: "queue"}, {Name: "user-container", Image: "reg/sort@sha256:00"}}
	for _, edit := range edits {
		edit(d)
	}
	return d
}

func TestPodsElsewhere(t *testing.T) {
	b := start(t, wasmNode("wisp-0", "10.0.0.1"), wasmNode("wisp-1", "10.0.0.2"), wasmNode("wisp-2", "10.0.0.3"))
	expect := func(want map[string]int, when string) {
		t.Helper()
		b.await(func() bool { return maps.Equal(b.at, want) })
		if t.Failed() {
			t.Log(when)
		}
	}
	b.put(t, pod("here", "wisp-0"), pod("native", "other"), pod("starting", "wisp-1", unready), pod("ready", "wisp-1"))
	expect(map[string]int{"10.0.0.2:8012": 2}, "only ready ones of other wasm nodes count")
	b.put(t, pod("starting", "wisp-1"), pod("third", "wisp-2", unbounded))
	expect(map[string]int{"10.0.0.2:8012": 4, "10.0.0.3:8012": 0}, "pods of a node add up")
	now := metav1.Now()
	b.put(t, pod("ready", "wisp-1", func(p *corev1.Pod) { p.DeletionTimestamp = &now }))
	expect(map[string]int{"10.0.0.2:8012": 2, "10.0.0.3:8012": 0}, "one that is deleted takes no more")
	if err := b.client.CoreV1().Nodes().Delete(t.Context(), "wisp-2", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	expect(map[string]int{"10.0.0.2:8012": 2}, "nor do those of a node that has gone")
	if err := b.client.CoreV1().Pods("default").Delete(t.Context(), "starting", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	expect(map[string]int{}, "nor those that have gone")
	b.await(func() bool { return len(b.started) == 3 })
	if diff := cmp.Diff([]string{"ready", "starting", "third"}, b.started); diff != "" {
		t.Errorf("told of these pods that became ready (-want +got):\n%s", diff)
	}
}

// TestNodeThatIsKnownAfterItsPods is what a restart may bring: two lists come in
// no order.
func TestNodeThatIsKnownAfterItsPods(t *testing.T) {
	b := start(t, wasmNode("wisp-0", "10.0.0.1"))
	b.put(t, pod("early", "wisp-1"))
	for len(b.podsOf(sortKey)) == 0 { // until the watch has it
		time.Sleep(time.Millisecond)
	}
	if _, err := b.client.CoreV1().Nodes().Create(t.Context(), wasmNode("wisp-1", "10.0.0.2"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	b.await(func() bool { return len(b.started) == 1 && maps.Equal(b.at, map[string]int{"10.0.0.2:8012": 2}) })
}

func TestRefusal(t *testing.T) {
	unscheduled := func(p *corev1.Pod) {
		p.Spec.NodeName = ""
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/1 nodes"}}
	}
	now := metav1.Now()
	leaving := func(p *corev1.Pod) { p.DeletionTimestamp = &now }
	refused := &deployment{refused: "exceeded quota"}
	tests := []struct {
		name string
		d    *deployment
		pods []*corev1.Pod
		want string
	}{
		{name: "nothing known"},
		{name: "no pods could be created", d: refused, want: "exceeded quota"},
		{name: "no node for it", d: &deployment{}, pods: []*corev1.Pod{pod("p", "", unscheduled)}, want: "pod p: Unschedulable: 0/1 nodes"},
		{name: "not looked at yet", pods: []*corev1.Pod{pod("p", "", unready)}},
		{name: "one of several has a node", d: refused, pods: []*corev1.Pod{pod("p", "", unscheduled), pod("q", "wisp-1", unready)}},
		{name: "but is leaving", d: refused, pods: []*corev1.Pod{pod("q", "wisp-1", unready, leaving)}, want: "exceeded quota"},
		{name: "unscheduled, but leaving", pods: []*corev1.Pod{pod("p", "", unscheduled, leaving)}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := refusal(test.d, test.pods); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestRefusalIsToldAndEnds(t *testing.T) {
	b := start(t, wasmNode("wisp-0", "10.0.0.1"))
	quota := appsv1.DeploymentCondition{
		Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: "exceeded quota",
	}
	b.put(t, deployment1(func(d *appsv1.Deployment) { d.Status.Conditions = []appsv1.DeploymentCondition{quota} }))
	b.await(func() bool { return len(b.refusals) > 0 && b.refusals[0] == "exceeded quota" })
	if got := b.Refusal(sortKey); got != "exceeded quota" {
		t.Errorf("got %q, want the refusal to stand", got)
	}
	b.put(t, pod("p", "wisp-0", unready))
	for b.Refusal(sortKey) != "" { // until the watch has it
		time.Sleep(time.Millisecond)
	}
}

func TestRevisionThatAppearsIsToldToThoseThatMayBeAsked(t *testing.T) {
	var all []*corev1.Node
	for _, name := range []string{"wisp-0", "wisp-1", "wisp-2", "wisp-3", "wisp-4"} {
		all = append(all, wasmNode(name, "10.0.0.1"))
	}
	b := start(t, all...)
	isFirst := func(name string) bool {
		order := ranking.Of(types.NamespacedName{Namespace: "default", Name: name}, all, func(n *corev1.Node) (string, bool) { return n.Name, false })
		for _, n := range order[:ranking.Spares] {
			if n.Name == "wisp-0" {
				return true
			}
		}
		return false
	}
	var want []string
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		if isFirst(name) {
			want = append(want, name+" reg/sort@sha256:00")
		}
		b.put(t, deployment1(func(d *appsv1.Deployment) {
			d.Name = name + "-deployment"
			d.Labels = map[string]string{serving.RevisionLabelKey: name}
		}))
	}
	b.put(t, deployment1(func(d *appsv1.Deployment) { d.Name, d.Spec.Template.Spec.RuntimeClassName = "native-deployment", nil }))
	if len(want) == 0 || len(want) == 8 {
		t.Fatalf("this node is among the first of %d revisions: that shows nothing", len(want))
	}
	told := func() []string { return slices.Compact(slices.Sorted(slices.Values(b.appeared))) }
	b.await(func() bool { return len(told()) >= len(want) })
	if diff := cmp.Diff(want, told()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNext(t *testing.T) {
	tests := []struct {
		name  string
		nodes []*corev1.Node
		want  string
	}{
		{"no other node", []*corev1.Node{wasmNode("wisp-0", "10.0.0.1")}, ""},
		{"another node", []*corev1.Node{wasmNode("wisp-0", "10.0.0.1"), wasmNode("wisp-1", "10.0.0.2")}, "10.0.0.2:8012"},
		{"that is cordoned", []*corev1.Node{wasmNode("wisp-1", "10.0.0.2", cordoned)}, ""},
		{"that is not ready", []*corev1.Node{wasmNode("wisp-1", "10.0.0.2", notReady)}, ""},
		{"that has no address", []*corev1.Node{wasmNode("wisp-1", "nowhere")}, ""},
		{"over IPv6", []*corev1.Node{wasmNode("wisp-1", "fd00::2")}, "[fd00::2]:8012"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := start(t, test.nodes...).Next(sortKey); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestCordoned(t *testing.T) {
	b := start(t, wasmNode("wisp-0", "10.0.0.1"))
	if b.Cordoned() {
		t.Error("cordoned before it was")
	}
	for i, now := range []bool{true, false} {
		node := wasmNode("wisp-0", "10.0.0.1")
		node.Spec.Unschedulable = now
		b.put(t, node)
		b.await(func() bool { return len(b.marks) > i })
		if b.Cordoned() != now || b.marks[i] != now {
			t.Errorf("got cordoned %v, and was told %v, want %v", b.Cordoned(), b.marks[i], now)
		}
	}
}

func TestTemplateDigestTellsTemplatesApart(t *testing.T) {
	b := start(t)
	if got := b.TemplateDigest(sortKey); got != "" {
		t.Errorf("got %q for no Deployment, want none", got)
	}
	of := func(edit func(*appsv1.Deployment)) string {
		out, err := trimDeployment(deployment1(edit))
		if err != nil {
			t.Fatal(err)
		}
		return out.(*deployment).template
	}
	same := of(func(d *appsv1.Deployment) { d.Spec.Replicas = new(int32); d.Generation = 7 })
	if other := of(func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "queue:v2" }); same == other {
		t.Error("another template has the same digest")
	}
	if again := of(func(*appsv1.Deployment) {}); same != again {
		t.Error("replicas change the template's digest")
	}
}

func TestTransformsPassWhatTheyMade(t *testing.T) {
	gone := cache.DeletedFinalStateUnknown{Key: "default/x"}
	for name, transform := range map[string]cache.TransformFunc{"pod": trimPod, "deployment": trimDeployment, "node": trimNode} {
		if got, err := transform(gone); err != nil || got != any(gone) {
			t.Errorf("%s: got %v, %v, want the tombstone as it is", name, got, err)
		}
	}
	once, _ := trimDeployment(deployment1())
	if twice, err := trimDeployment(once); err != nil || twice != once {
		t.Errorf("got %v, %v, want what was trimmed as it is", twice, err)
	}
}

func TestSilent(t *testing.T) {
	status := make(chan int, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		w.WriteHeader(<-status)
	}))
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	f := &Fleet{cfg: Config{Client: client}}
	status <- http.StatusOK
	if f.Silent(t.Context()) {
		t.Error("silent though the API server is ready")
	}
	status <- http.StatusInternalServerError
	if !f.Silent(t.Context()) {
		t.Error("not silent though the API server says that it isn't ready")
	}
	server.Close()
	if !f.Silent(t.Context()) {
		t.Error("not silent though nobody is there")
	}
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("got no error")
	}
	if f, err := New(Config{Client: fake.NewClientset(), Elsewhere: func(types.NamespacedName, map[string]int) {}, Refused: func(Revision, string) {}, Started: func(*corev1.Pod) {}, Appeared: func(Revision, string) {}, Marked: func(bool) {}}); err == nil {
		t.Errorf("got %v without a node's name", f)
	}
}

func TestSyncedFailsWhenTheContextEnds(t *testing.T) {
	f, err := New(Config{
		Client: fake.NewClientset(), Node: "wisp-0", Port: 8012,
		Elsewhere: func(types.NamespacedName, map[string]int) {}, Refused: func(Revision, string) {}, Started: func(*corev1.Pod) {}, Appeared: func(Revision, string) {}, Marked: func(bool) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Synced(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's end", err)
	}
}
