package decider

import (
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/apis/serving"
	"knative.dev/serving/pkg/autoscaler/config/autoscalerconfig"
	"knative.dev/serving/pkg/autoscaler/metrics"
	"knative.dev/serving/pkg/autoscaler/scaling"
	knmetrics "knative.dev/serving/pkg/metrics"
	kparesources "knative.dev/serving/pkg/reconciler/autoscaling/kpa/resources"
	asresources "knative.dev/serving/pkg/reconciler/autoscaling/resources"

	"github.com/wisp-serving/wisp/autoscaler/lifecycle"
	"github.com/wisp-serving/wisp/autoscaler/load"
)

// plan is how a revision wants to be decided.
type plan struct {
	spec  scaling.DeciderSpec
	span  load.Span
	attrs attribute.Set
}

// planOf reads a plan from a PodAutoscaler. The metric is filled in first: the
// webhook leaves it empty for classes that it doesn't know, and Knative's own
// code then forgets to keep the target below the container concurrency.
func planOf(pa *autoscalingv1alpha1.PodAutoscaler, cfg *autoscalerconfig.Config) plan {
	pa = pa.DeepCopy()
	if pa.Metric() == "" {
		pa.Annotations[autoscaling.MetricAnnotationKey] = autoscaling.Concurrency
	}
	m := asresources.MakeMetric(pa, "", cfg)
	return plan{
		spec: kparesources.MakeDecider(pa, cfg).Spec,
		span: load.Span{Stable: m.Spec.StableWindow, Panic: m.Spec.PanicWindow, Algorithm: m.AggregationAlgorithm()},
		attrs: attribute.NewSet(
			knmetrics.K8sNamespaceKey.With(pa.Namespace),
			knmetrics.RevisionNameKey.With(pa.Name),
			knmetrics.ServiceNameKey.With(pa.Labels[serving.ServiceLabelKey]),
			knmetrics.ConfigurationNameKey.With(pa.Labels[serving.ConfigurationLabelKey]),
		),
	}
}

// revision decides for one revision.
type revision struct {
	key   types.NamespacedName
	since time.Time
	cfg   Config
	log   *zap.SugaredLogger

	mu     sync.Mutex // guards what follows
	plan   plan
	window *load.Window
	scaler scaling.UniScaler
	// nodes are those of the ready pods, as of the latest look.
	nodes []string
	// replicas is what the target has, desired what the load asks for.
	replicas, desired int32
	// least is how many pods it keeps until leastUntil.
	least      int32
	leastUntil time.Time
	// poked is set from a poke until the decision that it asked for.
	poked bool
}

// newRevision makes a revision that knows no load. With several pods ready,
// Knative's scaler starts in panic, that is, it takes none away for a window.
func newRevision(key types.NamespacedName, p plan, cfg Config) *revision {
	r := &revision{
		key:      key,
		since:    time.Now(),
		cfg:      cfg,
		log:      quiet(cfg.Log).With("revision", key.String()),
		plan:     p,
		replicas: lifecycle.Unknown,
		desired:  lifecycle.Unknown,
	}
	if nodes, err := cfg.ReadyNodes(key); err == nil {
		r.nodes = nodes
	}
	r.window = load.New(p.span)
	r.scaler = r.newScaler()
	return r
}

// quiet drops Knative's lines about each step of each tick, unless someone
// asked for details.
func quiet(log *zap.SugaredLogger) *zap.SugaredLogger {
	if log.Level() <= zap.DebugLevel {
		return log
	}
	return log.WithOptions(zap.IncreaseLevel(zap.WarnLevel))
}

func (r *revision) newScaler() scaling.UniScaler {
	spec := r.plan.spec
	return scaling.New(r.plan.attrs, r.cfg.Meter, r.key.Namespace, r.key.Name, readings{r}, readings{r}, &spec)
}

// update takes a new plan and what the target has now. A changed scale-down
// delay needs a new scaler, for Knative's reads it only when it is made; a
// changed metric or algorithm makes what was heard so far useless as well.
func (r *revision) update(p plan, replicas int32) View {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.replicas = replicas
	was := r.plan
	r.plan = p
	if p.span.Algorithm != was.span.Algorithm || p.spec.ScalingMetric != was.spec.ScalingMetric {
		r.window = load.New(p.span)
	} else if p.span != was.span {
		r.window.Resize(p.span.Stable, p.span.Panic)
	}
	switch {
	case p.spec.ScalingMetric != was.spec.ScalingMetric || p.spec.ScaleDownDelay != was.spec.ScaleDownDelay || !p.attrs.Equals(&was.attrs):
		r.scaler.OnDelete()
		r.scaler = r.newScaler()
	case p.spec != was.spec:
		spec := p.spec
		r.scaler.Update(&spec)
	}
	return View{Desired: r.desired, Since: r.since}
}

func (r *revision) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.scaler.OnDelete()
}

// record adds a stat to the window, and reports whether a decision is due at
// once. What was proxied is counted by the node that sent it on. The time is
// that of arrival: a node's clock may be wrong.
func (r *revision) record(now time.Time, stat metrics.Stat) (poke bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	value := stat.AverageConcurrentRequests - stat.AverageProxiedConcurrentRequests
	if r.plan.spec.ScalingMetric == autoscaling.RPS {
		value = stat.RequestCount - stat.ProxiedRequestCount
	}
	value = max(value, 0)
	r.window.Record(now, stat.PodName, value)
	if value == 0 || r.desired > 0 || r.poked {
		return false
	}
	r.poked = true
	return true
}

// decide brings desired up to date and reports whether it changed.
func (r *revision) decide(now time.Time) (changed bool) {
	nodes, err := r.cfg.ReadyNodes(r.key)
	if err != nil {
		r.log.Errorw("pods not counted", "error", err)
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.poked = false
	r.nodes = nodes
	before := r.desired
	r.desired = r.next(now)
	if r.desired != before {
		r.cfg.Log.Debugw("revision decided", "revision", r.key.String(), "desired", r.desired, "before", before, "ready", len(nodes))
	}
	return r.desired != before
}

// takeOver keeps the pods that are ready now for a window, as Knative's scaler does
// when it is made; a new one would forget what its scale-down delay has seen.
func (r *revision) takeOver(now time.Time) {
	nodes, err := r.cfg.ReadyNodes(r.key)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		r.nodes = nodes
	}
	if len(r.nodes) > 1 {
		r.least, r.leastUntil = int32(len(r.nodes)), now.Add(r.plan.span.Stable)
	}
	r.desired = r.next(now)
}

// next asks Knative's scaler. What it says counts, except that nothing is
// taken away on silence: then the decision stays what it was.
// See RATIONALE.md "Why is silence not zero?".
func (r *revision) next(now time.Time) int32 {
	if _, _, err := r.window.Averages(now); err != nil {
		return lifecycle.Unknown
	}
	result := r.scaler.Scale(r.log, now)
	if !result.ScaleValid {
		return r.desired
	}
	desired := result.DesiredPodCount
	if now.Before(r.leastUntil) {
		desired = max(desired, r.least)
	}
	fewer := desired < r.replicas || r.replicas == lifecycle.Unknown
	if fewer && !r.window.Covers(now, r.nodes) {
		return r.desired
	}
	return desired
}

// readings is what Knative's scaler may ask of a revision. It asks only from
// within newScaler and next, whose callers hold the lock.
type readings struct{ r *revision }

// StableAndPanicConcurrency implements metrics.MetricClient.
func (m readings) StableAndPanicConcurrency(_ types.NamespacedName, now time.Time) (float64, float64, error) {
	return m.r.window.Averages(now)
}

// StableAndPanicRPS implements metrics.MetricClient. A revision has one metric,
// so one window serves both.
func (m readings) StableAndPanicRPS(_ types.NamespacedName, now time.Time) (float64, float64, error) {
	return m.r.window.Averages(now)
}

// ReadyCount implements resources.EndpointsCounter.
func (m readings) ReadyCount() (int, error) { return len(m.r.nodes), nil }

// NotReadyCount implements resources.EndpointsCounter. Scalers don't ask.
func (m readings) NotReadyCount() (int, error) { return 0, nil }
