package e2e

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/wisp-serving/wisp/test/platform"
)

// maxPods bounds how many pods a benchmark starts by rounds.
const maxPods = 1000

// BenchmarkPods times pods of one image from their creation until the last one
// runs, and from their deletion until the last one is gone, on a node of Wisp's
// and on one that only says so: up-ratio and down-ratio are the one's time by the
// other's, in turns.
func BenchmarkPods(b *testing.B) {
	p := platform.Start(b, platform.Options{WithoutRace: true})
	startStub(b, p)
	w := newWorker(b, p)
	nodes := []string{"wisp-0", stubName}
	for _, node := range nodes {
		w.upAndDown(b, node, 1) // what only the first pod pays: a pull, a compilation
	}
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			up, down := map[string]time.Duration{}, map[string]time.Duration{}
			rounds := min(b.N, 1+maxPods/n) // a thousand pods are a measurement by themselves
			for range rounds {
				for _, node := range nodes {
					u, d := w.upAndDown(b, node, n)
					up[node], down[node] = up[node]+u, down[node]+d
				}
			}
			b.ReportMetric(float64(up["wisp-0"].Milliseconds())/float64(rounds), "up-ms")
			b.ReportMetric(float64(down["wisp-0"].Milliseconds())/float64(rounds), "down-ms")
			b.ReportMetric(up["wisp-0"].Seconds()/up[stubName].Seconds(), "up-ratio")
			b.ReportMetric(down["wisp-0"].Seconds()/down[stubName].Seconds(), "down-ratio")
		})
	}
}

// upAndDown creates n pods on a node, as fast as the API server takes them, and
// deletes them when all run.
func (w *worker) upAndDown(b *testing.B, node string, n int) (up, down time.Duration) {
	b.Helper()
	watch, err := w.Client.Watch(b.Context(), &corev1.PodList{}, client.InNamespace(w.namespace))
	if err != nil {
		b.Fatal(err)
	}
	defer watch.Stop()
	// await reads changes until as many pods are as they should be.
	await := func(ok func(deleted bool, p *corev1.Pod) bool) {
		b.Helper()
		seen := map[string]bool{}
		timeout := time.After(2 * time.Minute)
		for len(seen) < n {
			select {
			case e, open := <-watch.ResultChan():
				if !open {
					b.Fatal("the watch of pods has ended")
				}
				if pod, is := e.Object.(*corev1.Pod); is && ok(e.Type == "DELETED", pod) {
					seen[pod.Name] = true
				}
			case <-timeout:
				b.Fatalf("%d of %d pods on %s are as they should be", len(seen), n, node)
			}
		}
	}
	var g errgroup.Group
	began := time.Now()
	g.Go(func() error { return w.createAll(b, node, n) })
	await(func(_ bool, p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	up = time.Since(began)
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	began = time.Now()
	if err := w.Client.DeleteAllOf(b.Context(), &corev1.Pod{}, client.InNamespace(w.namespace)); err != nil {
		b.Fatal(err)
	}
	await(func(deleted bool, _ *corev1.Pod) bool { return deleted })
	return up, time.Since(began)
}

func (w *worker) createAll(b *testing.B, node string, n int) error {
	var g errgroup.Group
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error {
			spec := w.spec(corev1.RestartPolicyAlways, "sleep", "3600")
			spec.NodeName = node
			return w.Client.Create(b.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: fmt.Sprintf("pod-%d", i)}, Spec: spec})
		})
	}
	return g.Wait()
}
