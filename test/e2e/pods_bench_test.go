package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/wisp-serving/wisp/test/platform"
)

// BenchmarkPods times pods of one image from their creation until the last one
// runs, and from their deletion until the last one is gone, on a node of Wisp's
// and on one that only says so. They take turns, each the first one in every other
// round; up-ratio and down-ratio are the median of one's times by that of the
// other's. rss-KB/pod is what the node's process holds more of with n idle pods,
// garbage included.
func BenchmarkPods(b *testing.B) {
	p := platform.Start(b, platform.Options{WithoutRace: true})
	startStub(b, p)
	w := newWorker(b, p)
	m := &measured{worker: w, pods: kubernetes.NewForConfigOrDie(p.REST).CoreV1().Pods(w.namespace)}
	nodes := []string{"wisp-0", stubName}
	for _, node := range nodes {
		m.upAndDown(b, node, 1) // what only the first pod pays: a pull, a compilation
	}
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			up, down := map[string][]time.Duration{}, map[string][]time.Duration{}
			for range b.N * perRound(n) {
				for _, node := range nodes {
					u, d := m.upAndDown(b, node, n)
					up[node], down[node] = append(up[node], u), append(down[node], d)
				}
				slices.Reverse(nodes)
			}
			report := func(name string, took map[string][]time.Duration) {
				wisp, stub := median(took["wisp-0"]), median(took[stubName])
				b.ReportMetric(wisp.Seconds()*1000, name+"-ms")
				b.ReportMetric(wisp.Seconds()/stub.Seconds(), name+"-ratio")
			}
			report("up", up)
			report("down", down)
			if n > 1 {
				b.ReportMetric(float64(m.held)/float64(n)/1024, "rss-KB/pod")
			}
		})
	}
}

// perRound is how often n pods go up and down for each round that is asked for: few
// take little time, of which noise is much.
func perRound(n int) int { return max(30/n, 1) }

func median(of []time.Duration) time.Duration {
	slices.Sort(of)
	return of[len(of)/2]
}

// measured creates and deletes pods.
type measured struct {
	*worker
	pods typedcorev1.PodInterface
	held int64 // by the node's process more than before, with the pods of the last round
}

// upAndDown creates n pods on a node, as fast as the API server takes them, and
// deletes them when all run.
func (m *measured) upAndDown(b *testing.B, node string, n int) (up, down time.Duration) {
	b.Helper()
	before := m.resident(b)
	up = m.each(b, n, m.creates(node), func(_ watch.EventType, p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	if node == "wisp-0" {
		m.held = m.resident(b) - before
	}
	down = m.each(b, n, m.deletes, func(kind watch.EventType, _ *corev1.Pod) bool { return kind == watch.Deleted })
	return up, down
}

// each does something to each of n pods, several at once, and returns how long it
// takes until ok has held for every one.
func (m *measured) each(b *testing.B, n int, do func(context.Context, string) error, ok func(watch.EventType, *corev1.Pod) bool) time.Duration {
	b.Helper()
	list, err := m.pods.List(b.Context(), metav1.ListOptions{})
	if err != nil {
		b.Fatal(err)
	}
	changes, err := watchtools.NewRetryWatcherWithContext(b.Context(), list.ResourceVersion, &cache.ListWatch{WatchFuncWithContext: m.pods.Watch})
	if err != nil {
		b.Fatal(err)
	}
	defer changes.Stop()
	var g errgroup.Group
	g.SetLimit(16)
	began := time.Now()
	started := make(chan error, 1)
	go func() {
		for i := range n {
			g.Go(func() error { return do(b.Context(), fmt.Sprintf("pod-%d", i)) })
		}
		started <- g.Wait()
	}()
	seen := map[string]bool{}
	timeout := time.After(2 * time.Minute)
	for len(seen) < n {
		select {
		case e, open := <-changes.ResultChan():
			if !open {
				b.Fatal("the watch of pods has ended")
			}
			if pod, is := e.Object.(*corev1.Pod); is && ok(e.Type, pod) {
				seen[pod.Name] = true
			}
		case <-timeout:
			b.Fatalf("%d of %d pods are as they should be", len(seen), n)
		}
	}
	took := time.Since(began)
	if err := <-started; err != nil {
		b.Fatal(err)
	}
	return took
}

func (m *measured) creates(node string) func(context.Context, string) error {
	return func(ctx context.Context, name string) error {
		spec := m.spec(corev1.RestartPolicyAlways, "sleep", "3600")
		spec.NodeName = node
		return m.Client.Create(ctx, &corev1.Pod{ObjectMeta: m.meta(name), Spec: spec})
	}
}

func (m *measured) deletes(ctx context.Context, name string) error {
	return m.Client.Delete(ctx, &corev1.Pod{ObjectMeta: m.meta(name)})
}

// resident is how much memory the node's process holds.
func (m *measured) resident(b *testing.B) int64 {
	b.Helper()
	for _, c := range m.Components(b) {
		if c.Name != "wisp-node" {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", c.PID))
		if err != nil {
			b.Fatal(err)
		}
		var size, pages int64
		if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
			b.Fatal(err)
		}
		return pages * int64(os.Getpagesize())
	}
	b.Fatal("there is no component wisp-node")
	return 0
}
