package e2e

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/guests"
	"github.com/wisp-serving/wisp/test/platform"
)

// edges returns when the calls to span began (1) and ended (-1), in order.
func edges(t *testing.T, answers []answer) []edge {
	t.Helper()
	var all []edge
	for _, a := range answers {
		var began, ended int64
		if _, err := fmt.Sscan(a.body, &began, &ended); err != nil {
			t.Fatalf("span answered %q: %v", a.body, err)
		}
		all = append(all, edge{began, 1}, edge{ended, -1})
	}
	slices.SortFunc(all, func(a, b edge) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.delta, b.delta)) })
	return all
}

type edge struct {
	at    int64
	delta int
}

// mostAtOnce returns how many of the calls to span ran at one time.
func mostAtOnce(t *testing.T, answers []answer) int {
	t.Helper()
	most, running := 0, 0
	for _, e := range edges(t, answers) {
		running += e.delta
		most = max(most, running)
	}
	return most
}

// overlaps returns how many of the calls to span began while another ran.
func overlaps(t *testing.T, answers []answer) int {
	t.Helper()
	n, running := 0, 0
	for _, e := range edges(t, answers) {
		if e.delta > 0 && running > 0 {
			n++
		}
		running += e.delta
	}
	return n
}

// TestContainerConcurrency calls a revision at zero 50 times at once. Each of its
// pods takes one call at a time, from the start ahead of the first pod on: so no
// more run at once than there may be pods.
func TestContainerConcurrency(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	module := p.Guest(t, "test/guests/span/span.c")
	c := newCaller(t, p)
	for _, pods := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d pods", pods), func(t *testing.T) {
			service := createService(t, p, p.Namespace(t), "span", module,
				"--concurrency-limit", "1", "--scale-max", fmt.Sprint(pods))
			awaitZero(t, p, service)
			answers := c.burst(service, 50, `{"args":["200"]}`)
			expectAll(t, "50 at once", answers)
			if most := mostAtOnce(t, answers); most > pods {
				t.Errorf("%d calls ran at one time, want at most %d", most, pods)
			} else {
				t.Logf("%d calls ran at one time", most)
			}
		})
	}
}

// TestContainerConcurrencyOfAServer is the same for a program that lives as long
// as its pod: it counts by itself how many requests it has at once. It is in Go,
// which takes minutes to compile with the race detector.
func TestContainerConcurrencyOfAServer(t *testing.T) {
	p := platform.Start(t, platform.Options{WithoutRace: true})
	module, err := guests.Program(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	c := newCaller(t, p)
	service := createService(t, p, p.Namespace(t), "echo", module,
		"--concurrency-limit", "1", "--scale-max", "3", "--annotation", config.ABIAnnotation+"=server")
	awaitZero(t, p, service)
	ahead := startsAhead(t, p)
	answers := atOnce(50, func() answer { return c.callPath(service, "/span/100", "") })
	expectAll(t, "50 at once", answers)
	for _, a := range answers {
		if a.body != "1\n" {
			t.Errorf("a pod had %q requests at once, want 1", strings.TrimSpace(a.body))
		}
	}
	if n := startsAhead(t, p) - ahead; n != 1 {
		t.Errorf("%d functions were started ahead, want 1", n)
	}
}

// TestScaleBounds changes the bounds of a revision while it runs.
func TestScaleBounds(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	service := createService(t, p, p.Namespace(t), "span", p.Guest(t, "test/guests/span/span.c"),
		"--concurrency-limit", "1", "--scale-min", "2", "--scale-max", "3")
	pods := func(n int, what string) {
		t.Helper()
		awaitPods(t, p, service, what, func(pods []*corev1.Pod) bool {
			return len(pods) == n && !slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return !ready(p) })
		})
	}
	annotate := func(annotation string) {
		t.Helper()
		p.Kubectl(t, "annotate", "revision", service.Status.LatestReadyRevisionName, "-n", service.Namespace, "--overwrite", annotation)
	}
	pods(2, "min-scale pods")
	c := newCaller(t, p)
	tr := c.startTraffic(service, 12, `{"args":["100"]}`, every(0))
	pods(3, "max-scale pods under load for more")
	annotate("autoscaling.knative.dev/max-scale=5")
	pods(5, "as many as the new max-scale")
	annotate("autoscaling.knative.dev/max-scale=4")
	pods(4, "as few as the newer one")
	expectAll(t, "while the bounds change", tr.stop())
	pods(2, "min-scale pods again")
	annotate("autoscaling.knative.dev/min-scale=1")
	pods(1, "as few as the new min-scale")
	annotate("autoscaling.knative.dev/min-scale=0")
	awaitZero(t, p, service)
}

// TestUpdateUnderLoad rolls a Service out three times.
func TestUpdateUnderLoad(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	service := createSort(t, p)
	c := newCaller(t, p)
	tr := c.startTraffic(service, 4, numbers, every(0))
	for i := range 3 {
		p.Kn(t, "service", "update", "sort", "-n", service.Namespace, "--env", fmt.Sprintf("ROUND=%d", i))
	}
	awaitPods(t, p, service, "the last revision's pod alone", func(pods []*corev1.Pod) bool {
		return len(pods) == 1 && ready(pods[0]) && strings.HasSuffix(pods[0].Labels[serving.RevisionLabelKey], "-00004")
	})
	tr.await(t, 100)
	expectAll(t, "through three rollouts", tr.stop())
}

// TestBurstOnAColdRevision is a thousand calls at once where nothing runs.
func TestBurstOnAColdRevision(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	service := createSort(t, p)
	awaitZero(t, p, service)
	began := time.Now()
	expectAll(t, "1,000 at once", newCaller(t, p).burst(service, 1000, numbers))
	t.Logf("the last answer came after %v", time.Since(began).Round(time.Millisecond))
}

// TestToZeroUnderATrickle calls at any point of a scale to zero: the pauses are
// about as long as a window and what follows it.
func TestToZeroUnderATrickle(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	namespace, c := p.Namespace(t), newCaller(t, p)
	var all []*traffic
	for i := range 6 {
		service := createService(t, p, namespace, fmt.Sprintf("sort-%d", i), p.SortModule)
		all = append(all, c.startTraffic(service, 1, numbers, func() time.Duration {
			return 5*time.Second + rand.N(6*time.Second)
		}))
	}
	time.Sleep(time.Minute)
	var answers []answer
	for _, tr := range all {
		answers = append(answers, tr.stop()...)
	}
	expectAll(t, "calls around scales to zero", answers)
}

// TestOutageOfTheAPIServer stops it dead: connections to it hang. WISP_OUTAGE
// says for how long.
func TestOutageOfTheAPIServer(t *testing.T) {
	away := outage(t, 25*time.Second) // longer than a lease of what runs ahead of its pod
	p := platform.Start(t, platform.Options{})
	namespace, c := p.Namespace(t), newCaller(t, p)
	cold := createService(t, p, namespace, "cold", p.SortModule)
	awaitZero(t, p, cold)
	warm := createService(t, p, namespace, "warm", p.SortModule, "--scale-min", "1")
	awaitReadyPod(t, p, warm)

	pause(t, p, "kube-apiserver", func() {
		calls := []*traffic{
			c.startTraffic(warm, 2, numbers, every(20*time.Millisecond)),
			c.startTraffic(cold, 1, numbers, every(time.Second)),
		}
		time.Sleep(away)
		for i, what := range []string{"warm", "cold"} {
			expectAll(t, fmt.Sprintf("%s calls during %v without an API server", what, away), calls[i].stop())
		}
	})
	platform.WaitFor(t, p, warm, "be ready afterwards", func(s *servingv1.Service) bool { return s.IsReady() })
	expectAll(t, "calls after the outage", append(c.burst(warm, 10, numbers), c.burst(cold, 10, numbers)...))
	awaitZero(t, p, cold)
}

// outage returns how long one is to be: WISP_OUTAGE, or what is said here.
func outage(t *testing.T, otherwise time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv("WISP_OUTAGE")
	if text == "" {
		return otherwise
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("WISP_OUTAGE: %v", err)
	}
	return d
}

// pause stops a component's process, without ending it, while f runs.
func pause(t *testing.T, p *platform.Platform, component string, f func()) {
	t.Helper()
	for _, s := range p.Components(t) {
		if s.Name != component {
			continue
		}
		if err := unix.Kill(s.PID, unix.SIGSTOP); err != nil {
			t.Fatalf("stop %s: %v", component, err)
		}
		defer func() {
			if err := unix.Kill(s.PID, unix.SIGCONT); err != nil {
				t.Fatalf("let %s go on: %v", component, err)
			}
		}()
		f()
		return
	}
	t.Fatalf("there is no component %s", component)
}

// TestKilledUnderLoad shows how many calls fail while each of the roles is killed
// and started anew. Envoy and the only node have nobody to stand in for them;
// the others aren't on a request's way.
func TestKilledUnderLoad(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	service := createService(t, p, p.Namespace(t), "sort", p.SortModule, "--scale-min", "1")
	c := newCaller(t, p)
	for role, onTheWay := range map[string]bool{"wisp-autoscaler": false, "wisp-gateway": false, "envoy": true, "wisp-node": true} {
		t.Run(role, func(t *testing.T) {
			tr := c.startTraffic(service, 4, numbers, every(5*time.Millisecond))
			tr.await(t, 100)
			p.Kill(t, role)
			tr.await(t, 400)
			answers := tr.stop()
			if !onTheWay {
				expectAll(t, "while "+role+" was killed", answers)
				return
			}
			n, kinds := failures(answers)
			t.Logf("while %s was killed: %d of %d calls failed%s", role, n, len(answers), kinds)
			if last := answers[len(answers)-1]; !last.ok() {
				t.Errorf("the last call failed: %s", last)
			}
		})
	}
}

// TestQuota is a namespace that may have no pods: what would have run ahead of its
// pod ends, and the caller is told why.
func TestQuota(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	service := createService(t, p, p.Namespace(t), "sort", p.SortModule, "--timeout", "5")
	c := newCaller(t, p)
	awaitZero(t, p, service)
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: service.Namespace, Name: "none"}}
	quota.Spec.Hard = corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}
	if err := p.Client.Create(t.Context(), quota); err != nil {
		t.Fatal(err)
	}
	platform.WaitFor(t, p, quota, "be in force", func(q *corev1.ResourceQuota) bool { return len(q.Status.Hard) > 0 })

	// What runs ahead answers until the refusal is known; then nothing does.
	deadline := time.Now().Add(time.Minute)
	refused := answer{status: http.StatusOK}
	for refused.ok() && time.Now().Before(deadline) {
		refused = c.call(service, numbers)
	}
	if refused.status != http.StatusGatewayTimeout || !strings.Contains(refused.body, "exceeded quota") {
		t.Errorf("got %s, want 504 that names the quota", refused)
	}
	if err := p.Client.Delete(t.Context(), quota); err != nil {
		t.Fatal(err)
	}
	awaitReadyPod(t, p, service)
	expectAll(t, "once there is no quota", c.burst(service, 10, numbers))
}

// TestWaitingForThePod is early-start: "false".
func TestWaitingForThePod(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	service := createService(t, p, p.Namespace(t), "sort", p.SortModule, "--annotation", config.EarlyStartAnnotation+"=false")
	awaitZero(t, p, service)
	ahead := startsAhead(t, p)
	a := newCaller(t, p).call(service, numbers)
	if !a.ok() {
		t.Errorf("got %s, want 200 from the pod", a)
	}
	if n := startsAhead(t, p) - ahead; n != 0 {
		t.Errorf("%d functions were started ahead of their pod", n)
	}
	t.Logf("with waiting for the pod, a cold call took %v", a.took)
}

// TestPodAfter is pod-after: a single call runs without a pod ever, calls that go
// on get one.
func TestPodAfter(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	service := createService(t, p, p.Namespace(t), "sort", p.SortModule, "--annotation", config.PodAfterAnnotation+"=4s")
	c := newCaller(t, p)
	awaitZero(t, p, service)
	expectAll(t, "a single call", c.burst(service, 1, numbers))
	time.Sleep(3 * time.Second) // in which the pod would have come
	awaitZero(t, p, service)
	tr := c.startTraffic(service, 1, numbers, every(100*time.Millisecond))
	awaitReadyPod(t, p, service)
	expectAll(t, "calls that go on", tr.stop())
}
