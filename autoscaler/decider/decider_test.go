package decider

import (
	"context"
	"math"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	asconfig "knative.dev/serving/pkg/autoscaler/config"
	"knative.dev/serving/pkg/autoscaler/config/autoscalerconfig"
	"knative.dev/serving/pkg/autoscaler/metrics"

	"github.com/wisp-serving/wisp/autoscaler/lifecycle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var key = types.NamespacedName{Namespace: "default", Name: "sort-00001"}

func newPA(annotations ...string) *autoscalingv1alpha1.PodAutoscaler {
	pa := &autoscalingv1alpha1.PodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: key.Namespace, Name: key.Name,
			Annotations: map[string]string{autoscaling.ClassAnnotationKey: "wisp.dev", autoscaling.MetricAnnotationKey: ""},
		},
		Spec: autoscalingv1alpha1.PodAutoscalerSpec{
			ScaleTargetRef: corev1.ObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "sort-00001-deployment"},
		},
	}
	for i := 0; i < len(annotations); i += 2 {
		pa.Annotations[annotations[i]] = annotations[i+1]
	}
	return pa
}

func defaults(t *testing.T) *autoscalerconfig.Config {
	t.Helper()
	c, err := asconfig.NewConfigFromMap(nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// bench is a running Set in a bubble of fake time. Its fields are used between
// synctest.Wait and the next passing of time, when the Set is at rest.
type bench struct {
	t       *testing.T
	set     *Set
	pa      *autoscalingv1alpha1.PodAutoscaler
	nodes   []string // of the ready pods
	changes int
}

// run runs f in a bubble, with a Set that tracks pa, whose target has as many
// replicas as there are ready pods on nodes.
func run(t *testing.T, pa *autoscalingv1alpha1.PodAutoscaler, nodes []string, f func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, pa: pa, nodes: nodes}
		b.set = New(Config{
			ReadyNodes: func(types.NamespacedName) ([]string, error) { return b.nodes, nil },
			Meter:      noop.NewMeterProvider(),
			Log:        zap.NewNop().Sugar(),
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		b.scale(nodes...)
		go func() { done <- b.set.Run(ctx, func(types.NamespacedName) { b.changes++ }) }()
		f(b)
		b.set.Forget(key)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
}

// scale gives the target a ready pod on each of the nodes.
func (b *bench) scale(nodes ...string) {
	b.nodes = nodes
	b.set.Track(b.pa, defaults(b.t), int32(len(nodes)))
}

// report lets time pass, in each second of which each node reports.
func (b *bench) report(d time.Duration, concurrency float64, nodes ...string) {
	for range int(d / time.Second) {
		for _, n := range nodes {
			b.set.Record(key, metrics.Stat{PodName: n, AverageConcurrentRequests: concurrency, RequestCount: concurrency})
		}
		time.Sleep(time.Second)
		synctest.Wait()
	}
}

func (b *bench) want(desired int32, when string) {
	b.t.Helper()
	synctest.Wait()
	if got := b.set.Track(b.pa, defaults(b.t), int32(len(b.nodes))).Desired; got != desired {
		b.t.Errorf("%s: desired = %d, want %d", when, got, desired)
	}
}

func TestNoDataDecidesNothing(t *testing.T) {
	run(t, newPA(), []string{"a"}, func(b *bench) {
		time.Sleep(time.Hour)
		b.want(lifecycle.Unknown, "after an hour without a word")
		if b.changes != 0 {
			t.Errorf("%d changes, want none", b.changes)
		}
	})
}

func TestZerosDecideAfterAFullWindow(t *testing.T) {
	run(t, newPA(), []string{"a"}, func(b *bench) {
		b.report(58*time.Second, 0, "a")
		b.want(lifecycle.Unknown, "before a window is full")
		b.report(6*time.Second, 0, "a")
		b.want(0, "after a full window of zeros")
	})
}

func TestWhoTakesOverKeepsWhatThereIs(t *testing.T) {
	run(t, newPA(), []string{"a", "a", "a", "a", "b"}, func(b *bench) {
		b.report(2*time.Minute, 50, "a", "b") // 100 / 70
		b.want(2, "after the scaler's own panic")
		b.set.TakeOver()
		b.want(5, "at once")
		b.report(58*time.Second, 50, "a", "b")
		b.want(5, "for a window")
		b.report(4*time.Second, 50, "a", "b")
		b.want(2, "after the window")
	})
	run(t, newPA(), []string{"a"}, func(b *bench) {
		b.report(64*time.Second, 0, "a")
		b.set.TakeOver()
		b.want(0, "what nobody calls")
	})
}

func TestSilenceKeepsWhatWasDecided(t *testing.T) {
	run(t, newPA(), []string{"a", "b"}, func(b *bench) {
		b.report(2*time.Minute, 100, "a", "b") // 200 / 70 each
		b.want(3, "under load")
		b.scale("a", "b", "a")
		b.report(10*time.Second, 100, "a")
		b.report(50*time.Second, 0, "a")
		b.want(3, "with a node that fell silent")
		time.Sleep(70 * time.Second)
		b.want(lifecycle.Unknown, "after a silent window")
	})
}

func TestARestartRemovesNothing(t *testing.T) {
	// Three pods under little load, as a new process finds them.
	run(t, newPA(), []string{"a", "b", "c"}, func(b *bench) {
		for range 58 {
			b.report(time.Second, 1, "a", "b", "c")
			b.want(3, "before a window has passed")
		}
		b.report(time.Minute, 1, "a", "b", "c")
		b.want(1, "when the load is known")
	})
}

func TestNodesAddUp(t *testing.T) {
	run(t, newPA(), []string{"a"}, func(b *bench) {
		b.report(4*time.Second, 50, "a", "b") // 100 in all, 70 for each pod
		b.want(2, "under the load of both")
	})
}

func TestPokeDecidesAtOnce(t *testing.T) {
	run(t, newPA(), nil, func(b *bench) {
		time.Sleep(time.Second) // Off the tick.
		before := time.Now()
		b.set.Record(key, metrics.Stat{PodName: "a", AverageConcurrentRequests: 1, RequestCount: 1})
		synctest.Wait()
		b.want(1, "after the first request")
		if passed := time.Since(before); passed != 0 || b.changes != 1 {
			t.Errorf("decided after %v with %d changes, want at once with 1", passed, b.changes)
		}
	})
}

func TestPokeAtZero(t *testing.T) {
	run(t, newPA(), []string{"a"}, func(b *bench) {
		b.report(64*time.Second, 0, "a")
		b.want(0, "when idle")
		b.scale()
		time.Sleep(10500 * time.Millisecond)
		b.set.Record(key, metrics.Stat{PodName: "b", AverageConcurrentRequests: 1, RequestCount: 1})
		b.want(1, "after a request on another node")
	})
}

func TestWhatPokesNot(t *testing.T) {
	tests := []struct {
		name string
		stat metrics.Stat
	}{
		{"a zero", metrics.Stat{PodName: "a"}},
		{"what another node has counted", metrics.Stat{
			PodName: "a", AverageConcurrentRequests: 1, AverageProxiedConcurrentRequests: 1, RequestCount: 1, ProxiedRequestCount: 1,
		}},
		{"more proxied than there was", metrics.Stat{PodName: "a", AverageProxiedConcurrentRequests: 1, ProxiedRequestCount: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			run(t, newPA(), nil, func(b *bench) {
				b.set.Record(key, tt.stat)
				b.want(lifecycle.Unknown, "at once")
				time.Sleep(Tick + time.Second)
				b.want(0, "after a tick")
			})
		})
	}
}

func TestActivationScale(t *testing.T) {
	run(t, newPA(autoscaling.ActivationScaleKey, "3"), nil, func(b *bench) {
		b.set.Record(key, metrics.Stat{PodName: "a", AverageConcurrentRequests: 1})
		b.want(3, "after the first request")
	})
}

func TestScaleDownDelay(t *testing.T) {
	pa := newPA(autoscaling.ScaleDownDelayAnnotationKey, "30s")
	run(t, pa, []string{"a"}, func(b *bench) {
		b.report(62*time.Second, 1, "a")
		b.want(1, "under load")
		b.report(75*time.Second, 0, "a")
		b.want(1, "within the delay")
		b.report(30*time.Second, 0, "a")
		b.want(0, "after the delay")
	})
}

func TestMetricRPS(t *testing.T) {
	run(t, newPA(autoscaling.MetricAnnotationKey, "rps", autoscaling.TargetAnnotationKey, "10", autoscaling.TargetUtilizationPercentageKey, "100"), []string{"a"}, func(b *bench) {
		for range 4 {
			b.set.Record(key, metrics.Stat{PodName: "a", AverageConcurrentRequests: 1000, RequestCount: 25})
			time.Sleep(time.Second)
		}
		b.want(3, "at 25 requests a second")
	})
}

func TestSettingsChangeWhileRunning(t *testing.T) {
	run(t, newPA(), []string{"a"}, func(b *bench) {
		b.report(4*time.Second, 50, "a")
		b.want(1, "at a target of 70")
		b.pa = newPA(autoscaling.TargetAnnotationKey, "10")
		b.scale("a")
		b.report(4*time.Second, 50, "a")
		b.want(8, "at a target of 7")
		b.pa = newPA(autoscaling.MetricAnnotationKey, "rps")
		b.scale(slices.Repeat([]string{"a"}, 8)...)
		b.want(8, "with a metric of which nothing is known yet")
	})
}

func TestTargetIsKeptBelowContainerConcurrency(t *testing.T) {
	pa := newPA(autoscaling.TargetAnnotationKey, "100")
	pa.Spec.ContainerConcurrency = 2
	p := planOf(pa, defaults(t))
	if got, want := p.spec.TotalValue, 2.0; got != want {
		t.Errorf("total = %v, want %v", got, want)
	}
	if got := pa.Annotations[autoscaling.MetricAnnotationKey]; got != "" {
		t.Errorf("planOf changed its argument: metric = %q", got)
	}
}

func TestUntrackedRevisionsAreIgnored(t *testing.T) {
	run(t, newPA(), nil, func(b *bench) {
		b.set.Forget(key)
		b.set.Forget(key)
		b.set.Record(key, metrics.Stat{PodName: "a", AverageConcurrentRequests: 1})
		time.Sleep(2 * Tick)
		if b.changes != 0 {
			t.Errorf("%d changes, want none", b.changes)
		}
	})
}

func TestAnUnknownTargetIsNotShrunk(t *testing.T) {
	run(t, newPA(), []string{"a"}, func(b *bench) {
		b.set.Track(b.pa, defaults(t), lifecycle.Unknown)
		b.report(10*time.Second, 0, "a")
		b.want(lifecycle.Unknown, "before a window is full")
	})
}

func TestHammer(t *testing.T) {
	// No bubble: what is looked for are data races.
	set := New(Config{
		ReadyNodes: func(types.NamespacedName) ([]string, error) { return []string{"a"}, nil },
		Meter:      noop.NewMeterProvider(),
		Log:        zap.NewNop().Sugar(),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 5)
	go func() { done <- set.Run(ctx, func(types.NamespacedName) {}) }()
	cfg := defaults(t)
	for i := range 4 {
		go func() {
			for j := range 500 {
				set.Track(newPA(autoscaling.TargetAnnotationKey, []string{"1", "2"}[j%2]), cfg, int32(i))
				set.Record(key, metrics.Stat{PodName: "a", AverageConcurrentRequests: math.Abs(float64(i - 1))})
				if j%50 == 0 {
					set.Forget(key)
				}
			}
			done <- nil
		}()
	}
	for range 4 {
		<-done
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
