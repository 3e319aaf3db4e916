package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/guests"
	"github.com/wisp-serving/wisp/test/platform"
)

// rotation is how many services of a kind take turns: while one is called, the
// others go to zero.
const rotation = 12

// BenchmarkColdAgainstWarm calls functions that have no pod, and the same ones
// warm, all through Envoy: as Wisp does it; waiting for the pod, which is what a
// Kubernetes without early starts would do on this node; and with the module only
// on disk, as after a restart of the node. An iteration is a cycle to zero and
// back, so run it for a number of iterations, as in -benchtime=200x.
func BenchmarkColdAgainstWarm(b *testing.B) {
	p := platform.Start(b, platform.Options{WithoutRace: true})
	namespace := p.Namespace(b)
	puppet, err := guests.Program(b.Context(), "puppet")
	if err != nil {
		b.Fatal(err)
	}
	cases := []coldCase{
		{name: "sort", module: p.SortModule, body: numbers},
		{name: "sort-waiting", module: p.SortModule, body: numbers, flags: []string{"--annotation", config.EarlyStartAnnotation + "=false"}},
		{name: "go", module: puppet, body: `{"args":["out","hello"]}`},
		{name: "go-waiting", module: puppet, body: `{"args":["out","hello"]}`, flags: []string{"--annotation", config.EarlyStartAnnotation + "=false"}},
		{name: "sort-on-disk", module: p.SortModule, body: numbers, before: func(b *testing.B) { p.Restart(b, "wisp-node") }},
	}
	var table strings.Builder
	fmt.Fprintf(&table, "%-13s %6s  %8s %8s  %8s %8s  %8s %8s\n", "in ms", "cycles", "cold p50", "p99", "warm p50", "p99", "more p50", "p99")
	for _, c := range cases {
		b.Run(c.name, func(b *testing.B) {
			var cold, warm []time.Duration
			caller, services := newCaller(b, p), c.create(b, p, namespace)
			for b.Loop() {
				service := services[len(cold)%rotation]
				awaitZero(b, p, service)
				if c.before != nil {
					c.before(b)
				}
				cold = append(cold, timed(b, caller, service, c.body))
				awaitReadyPod(b, p, service)
				warm = append(warm, timed(b, caller, service, c.body))
			}
			b.ReportMetric(0, "ns/op")
			row := []float64{quantile(cold, 0.5), quantile(cold, 0.99), quantile(warm, 0.5), quantile(warm, 0.99)}
			for i, name := range []string{"cold-p50-µs", "cold-p99-µs", "warm-p50-µs", "warm-p99-µs"} {
				b.ReportMetric(row[i], name)
			}
			fmt.Fprintf(&table, "%-13s %6d  %8.2f %8.2f  %8.2f %8.2f  %8.2f %8.2f\n", c.name, len(cold),
				row[0]/1e3, row[1]/1e3, row[2]/1e3, row[3]/1e3, (row[0]-row[2])/1e3, (row[1]-row[3])/1e3)
		})
	}
	save(b, "cold.txt", table.String())
}

// coldCase is a way in which a function is cold.
type coldCase struct {
	name, module, body string
	flags              []string
	before             func(*testing.B) // a cold call; may be nil
}

// create makes the case's services.
func (c coldCase) create(b *testing.B, p *platform.Platform, namespace string) []*servingv1.Service {
	b.Helper()
	services := make([]*servingv1.Service, rotation)
	for i := range services {
		services[i] = createService(b, p, namespace, fmt.Sprintf("%s-%d", c.name, i), c.module, c.flags...)
	}
	return services
}

// timed calls a service after a while of stillness, and returns what the call
// took.
func timed(b *testing.B, c *caller, service *servingv1.Service, body string) time.Duration {
	b.Helper()
	time.Sleep(stillness)
	a := c.call(service, body)
	if !a.ok() {
		b.Errorf("got %s, want 200", a)
	}
	return a.took
}

// BenchmarkColdBurst is 1,000 calls at once where nothing runs: the time to the
// last answer.
func BenchmarkColdBurst(b *testing.B) {
	p := platform.Start(b, platform.Options{WithoutRace: true})
	c := newCaller(b, p)
	service := createService(b, p, p.Namespace(b), "sort", p.SortModule)
	var last, median []time.Duration
	for b.Loop() {
		awaitZero(b, p, service)
		answers := c.burst(service, 1000, numbers)
		if n, kinds := failures(answers); n > 0 {
			b.Errorf("%d of 1000 calls failed%s", n, kinds)
		}
		took := make([]time.Duration, 0, len(answers))
		for _, a := range answers {
			took = append(took, a.took)
		}
		last, median = append(last, slices.Max(took)), append(median, time.Duration(quantile(took, 0.5))*time.Microsecond)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(quantile(last, 0.5)/1000, "last-ms")
	b.ReportMetric(quantile(median, 0.5)/1000, "median-ms")
}

// BenchmarkStepLoad goes from nothing to 200 calls at once and back, once, and
// draws the pods over time.
func BenchmarkStepLoad(b *testing.B) {
	const clients, calm = 200, 5 * time.Second
	p := platform.Start(b, platform.Options{WithoutRace: true, Own: true})
	c := newCaller(b, p)
	service := createService(b, p, p.Namespace(b), "span", p.Guest(b, "test/guests/span/span.c"), "--concurrency-limit", "10")
	for b.Loop() {
		awaitZero(b, p, service)
		watch := watchPods(b, p, service)
		time.Sleep(calm)
		tr := c.startTraffic(service, clients, `{"args":["100"]}`, every(0))
		time.Sleep(30 * time.Second)
		answers := tr.stop()
		stopped := watch.now()
		awaitZero(b, p, service)
		time.Sleep(calm)
		samples := watch.stop()

		n, kinds := failures(answers)
		if n > 0 {
			b.Errorf("%d of %d calls failed%s", n, len(answers), kinds)
		}
		most := slices.MaxFunc(samples, func(a, b podSample) int { return a.ready - b.ready })
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(float64(len(answers)-n)/float64(len(answers))*100, "answered-%")
		b.ReportMetric(float64(len(answers))/30, "answers/s")
		b.ReportMetric(float64(most.ready), "most-pods")
		b.ReportMetric((most.at - calm).Seconds(), "to-most-pods-s")
		b.ReportMetric((samples[len(samples)-1].at - calm - stopped).Seconds(), "to-zero-s")
		save(b, "step-load.svg", drawPods(samples, calm, stopped))
	}
}

// save leaves text in a file of WISP_BENCH_OUT, or build/bench.
func save(b *testing.B, name, text string) {
	b.Helper()
	dir := os.Getenv("WISP_BENCH_OUT")
	if dir == "" {
		dir = "../../build/bench"
	}
	path := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		b.Fatal(err)
	}
	b.Logf("%s is in %s", name, path)
}

// podSample is how many pods there were at a time.
type podSample struct {
	at         time.Duration // since the watch began
	all, ready int
}

// podWatch counts a service's pods four times a second.
type podWatch struct {
	began   time.Time
	end     context.CancelFunc
	done    chan struct{}
	samples []podSample
}

func watchPods(b testing.TB, p *platform.Platform, service *servingv1.Service) *podWatch {
	b.Helper()
	ctx, end := context.WithCancel(context.Background())
	w := &podWatch{began: time.Now(), end: end, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			list := &corev1.PodList{}
			if err := p.Client.List(ctx, list, client.InNamespace(service.Namespace)); err == nil {
				s := podSample{at: w.now(), all: len(list.Items)}
				for i := range list.Items {
					if ready(&list.Items[i]) {
						s.ready++
					}
				}
				w.samples = append(w.samples, s)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	return w
}

func (w *podWatch) now() time.Duration { return time.Since(w.began) }

func (w *podWatch) stop() []podSample {
	w.end()
	<-w.done
	return w.samples
}

// drawPods returns the samples as a picture, the time under load shaded.
func drawPods(samples []podSample, from, to time.Duration) string {
	const width, height, margin = 800.0, 300.0, 40.0
	span := samples[len(samples)-1].at.Seconds()
	most := 1
	for _, s := range samples {
		most = max(most, s.all)
	}
	x := func(at time.Duration) float64 { return margin + at.Seconds()/span*(width-2*margin) }
	y := func(pods int) float64 { return height - margin - float64(pods)/float64(most)*(height-2*margin) }
	line := func(of func(podSample) int) string {
		var points strings.Builder
		for _, s := range samples {
			fmt.Fprintf(&points, "%.1f,%.1f ", x(s.at), y(of(s)))
		}
		return points.String()
	}
	var svg strings.Builder
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&svg, `<rect width="%g" height="%g" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(&svg, `<rect x="%.1f" y="%g" width="%.1f" height="%g" fill="#eee"/>`+"\n", x(from), margin, x(to)-x(from), height-2*margin)
	fmt.Fprintf(&svg, `<polyline points="%s" fill="none" stroke="#999"/>`+"\n", line(func(s podSample) int { return s.all }))
	fmt.Fprintf(&svg, `<polyline points="%s" fill="none" stroke="#06c" stroke-width="2"/>`+"\n", line(func(s podSample) int { return s.ready }))
	fmt.Fprintf(&svg, `<text x="%g" y="%g">%d pods</text><text x="%g" y="%g">0</text>`+"\n", 4.0, margin, most, 4.0, height-margin)
	fmt.Fprintf(&svg, `<text x="%g" y="%g">%.0f s</text>`+"\n", width-margin, height-margin/2, span)
	fmt.Fprintf(&svg, `<text x="%g" y="20">pods over time: ready (blue) and all (grey), under load where shaded</text>`+"\n</svg>\n", margin)
	return svg.String()
}

// BenchmarkManyServices creates services, lets all of them go to zero, and says
// what each costs every role, idle, and what a cold call of any of them takes.
// WISP_BENCH_SERVICES is how many.
func BenchmarkManyServices(b *testing.B) {
	count := 100
	if text := os.Getenv("WISP_BENCH_SERVICES"); text != "" {
		var err error
		if count, err = strconv.Atoi(text); err != nil || count < 1 {
			b.Fatalf("WISP_BENCH_SERVICES = %q, must be a number above 0", text)
		}
	}
	p := platform.Start(b, platform.Options{WithoutRace: true, Own: true})
	namespace, c := p.Namespace(b), newCaller(b, p)
	first := createService(b, p, namespace, "first", p.SortModule)
	awaitZero(b, p, first)
	before := usage(b, p, idleFor)
	began := time.Now()
	services := cloneServices(b, p, first, count)
	created := time.Since(began)
	awaitNoPods(b, p, namespace)
	after := usage(b, p, idleFor)

	var table strings.Builder
	fmt.Fprintf(&table, "%d services at zero, created in %s\n", count, created.Round(time.Second))
	fmt.Fprintf(&table, "%-16s %9s %9s %12s  %9s %9s\n", "", "MiB before", "after", "KiB/service", "CPU before", "after")
	each := map[string]float64{} // reported at the end: the loop begins with none
	for _, role := range slices.Sorted(maps.Keys(after)) {
		was, is := before[role], after[role]
		each[role] = float64(is.memory-was.memory) / float64(count) / 1024
		fmt.Fprintf(&table, "%-16s %9.1f %9.1f %12.1f  %8.2f%% %8.2f%%\n", role,
			float64(was.memory)/(1<<20), float64(is.memory)/(1<<20), each[role], was.cpu*100, is.cpu*100)
	}
	var cold, warm []time.Duration
	for b.Loop() {
		service := services[rand.N(len(services))]
		awaitZero(b, p, service)
		cold = append(cold, timed(b, c, service, numbers))
		awaitReadyPod(b, p, service)
		warm = append(warm, timed(b, c, service, numbers))
	}
	b.ReportMetric(0, "ns/op")
	for role, kibibytes := range each {
		b.ReportMetric(kibibytes, role+"-KiB/service")
	}
	for name, samples := range map[string][]time.Duration{"cold": cold, "warm": warm} {
		p50, p99 := quantile(samples, 0.5), quantile(samples, 0.99)
		b.ReportMetric(p50, name+"-p50-µs")
		b.ReportMetric(p99, name+"-p99-µs")
		fmt.Fprintf(&table, "%s call of a random one, of %d: p50 %.2f ms, p99 %.2f ms\n", name, len(samples), p50/1e3, p99/1e3)
	}
	b.Logf("many services:\n%s", table.String())
	save(b, "services.txt", table.String())
}

// cloneServices creates count services like one, some at a time, and returns them
// ready.
func cloneServices(b *testing.B, p *platform.Platform, like *servingv1.Service, count int) []*servingv1.Service {
	b.Helper()
	services := make([]*servingv1.Service, count)
	var g errgroup.Group
	g.SetLimit(10)
	for i := range services {
		g.Go(func() error {
			s := &servingv1.Service{}
			s.Namespace, s.Name = like.Namespace, fmt.Sprintf("sort-%d", i)
			s.Spec.Template = *like.Spec.Template.DeepCopy()
			s.Spec.Template.Name = ""
			if err := p.Client.Create(b.Context(), s); err != nil {
				return err
			}
			services[i] = platform.WaitFor(b, p, s, "be ready", func(s *servingv1.Service) bool { return s.IsReady() })
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	return services
}

// awaitNoPods waits until a namespace has none.
func awaitNoPods(b *testing.B, p *platform.Platform, namespace string) {
	b.Helper()
	for {
		list := &corev1.PodList{}
		if err := p.Client.List(b.Context(), list, client.InNamespace(namespace)); err != nil {
			b.Fatal(err)
		}
		if meta.LenList(list) == 0 {
			return
		}
		time.Sleep(time.Second)
	}
}

// idleFor is for how long CPU time is counted.
const idleFor = 20 * time.Second

// used is what a role takes.
type used struct {
	memory int64   // resident, of its own, in bytes
	cpu    float64 // the share of one core
}

// usage returns what each role takes, over a while.
func usage(b *testing.B, p *platform.Platform, while time.Duration) map[string]used {
	b.Helper()
	roles := map[string]used{}
	pids := map[string]int{}
	for _, c := range p.Components(b) {
		if strings.HasPrefix(c.Name, "wisp-") || c.Name == "envoy" {
			pids[c.Name] = c.PID
		}
	}
	time.Sleep(while / 4) // what has just begun to be idle
	ticks := map[string]int64{}
	for role, pid := range pids {
		ticks[role] = cpuTicks(b, pid)
	}
	time.Sleep(while)
	for role, pid := range pids {
		spent := float64(cpuTicks(b, pid)-ticks[role]) / clockTicks
		roles[role] = used{memory: resident(b, pid), cpu: spent / while.Seconds()}
	}
	return roles
}

// clockTicks is how many there are in a second of CPU time: USER_HZ, which is 100
// on every Linux of today (proc(5)).
const clockTicks = 100

// cpuTicks returns the CPU time that a process has taken.
func cpuTicks(b *testing.B, pid int) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	// The command's name, in parentheses, may hold anything; utime and stime are
	// the twelfth and thirteenth field after it.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		b.Fatal(err)
	}
	return user + system
}

// resident returns what a process has in memory of its own, in bytes.
func resident(b *testing.B, pid int) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kilobytes int64
		if n, _ := fmt.Sscanf(line, "RssAnon: %d kB", &kilobytes); n == 1 {
			return kilobytes << 10
		}
	}
	b.Fatalf("process %d has no RssAnon", pid)
	return 0
}

// stillness is how long nothing happens before a measured call, cold or warm: a
// machine that has been idle answers its first request slower, whatever it is.
const stillness = 300 * time.Millisecond

// quantile returns the q-quantile of the samples, in microseconds.
func quantile(samples []time.Duration, q float64) float64 {
	sorted := slices.Sorted(slices.Values(samples))
	i := min(int(q*float64(len(sorted))), len(sorted)-1)
	return float64(sorted[i]) / float64(time.Microsecond)
}
