// Package decider says how many pods each revision's load asks for. The
// arithmetic is Knative's own (pkg/autoscaler/scaling): stable and panic
// windows, rates, activation scale, scale-down delay. What is ours is what it
// is fed with, and when it is asked: one loop for all revisions, at each tick
// and at once when a request finds a revision at zero.
//
// It knows no bounds, no conditions and no cluster; package lifecycle makes a
// decision of the number, and the caller carries it out. A Set owns no
// goroutine but the one that calls Run.
package decider

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.uber.org/zap"
	"k8s.io/apimachinery/pkg/types"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/autoscaler/config/autoscalerconfig"
	"knative.dev/serving/pkg/autoscaler/metrics"
)

// Tick is how often every revision is decided anew. It is Knative's, whose
// scale-down delay counts in it.
const Tick = 2 * time.Second

// Config is what a Set needs. All fields are required.
type Config struct {
	// ReadyNodes returns the nodes of a revision's ready pods, one entry for
	// each pod. It must be quick: it is called for each revision at each tick.
	ReadyNodes func(revision types.NamespacedName) ([]string, error)
	// Meter takes Knative's metrics of each revision.
	Meter metric.MeterProvider
	Log   *zap.SugaredLogger
}

// Set holds a decider for each revision. It is safe for concurrent use.
type Set struct {
	cfg Config

	mu        sync.Mutex
	revisions map[types.NamespacedName]*revision
	poked     []types.NamespacedName
	// wake has room for one token, so that poking never blocks.
	wake chan struct{}
}

// New returns an empty set.
func New(cfg Config) *Set {
	return &Set{cfg: cfg, revisions: make(map[types.NamespacedName]*revision), wake: make(chan struct{}, 1)}
}

// View is what a Set knows about a revision.
type View struct {
	// Desired is how many pods the load asks for, or lifecycle.Unknown.
	Desired int32
	// Since is when the Set began to listen for it.
	Since time.Time
}

// Track makes the Set decide for pa's revision, with the settings of pa and
// cfg, or makes it use these from now on. Replicas is what the target has now,
// or lifecycle.Unknown. Pa must have passed lifecycle.Check.
func (s *Set) Track(pa *autoscalingv1alpha1.PodAutoscaler, cfg *autoscalerconfig.Config, replicas int32) View {
	key := types.NamespacedName{Namespace: pa.Namespace, Name: pa.Name}
	p := planOf(pa, cfg)
	r := s.find(key)
	if r == nil {
		r = s.add(newRevision(key, p, s.cfg))
	}
	return r.update(p, replicas)
}

// add returns the revision that is there already, if one was added meanwhile.
func (s *Set) add(r *revision) *revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	if first := s.revisions[r.key]; first != nil {
		r.end()
		return first
	}
	s.revisions[r.key] = r
	return r
}

// Forget ends the decisions for a revision, if there are any.
func (s *Set) Forget(key types.NamespacedName) {
	s.mu.Lock()
	r := s.revisions[key]
	delete(s.revisions, key)
	s.mu.Unlock()
	if r != nil {
		r.end()
	}
}

// Record takes a stat that has just arrived; stats of revisions that aren't
// tracked are dropped. It doesn't block. If the revision isn't known to be
// wanted and the stat says that it is, it is decided at once.
func (s *Set) Record(key types.NamespacedName, stat metrics.Stat) {
	if r := s.find(key); r != nil && r.record(time.Now(), stat) {
		s.poke(key)
	}
}

func (s *Set) find(key types.NamespacedName) *revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revisions[key]
}

func (s *Set) poke(key types.NamespacedName) {
	s.mu.Lock()
	s.poked = append(s.poked, key)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// TakeOver has every revision keep the pods that are ready now for a stable window
// from now on: whoever decided until now may have been in panic where this Set, whose
// ticks fall elsewhere, was not.
func (s *Set) TakeOver() {
	for _, r := range s.all() {
		r.takeOver(time.Now())
	}
}

// Run decides until ctx ends. It calls changed, from its own goroutine, for
// each revision whose View has another Desired than before.
func (s *Set) Run(ctx context.Context, changed func(types.NamespacedName)) error {
	tick := time.NewTicker(Tick)
	defer tick.Stop()
	for {
		var due []*revision
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			due = s.all()
		case <-s.wake:
			due = s.takePoked()
		}
		for _, r := range due {
			if ctx.Err() == nil && r.decide(time.Now()) {
				changed(r.key)
			}
		}
	}
}

func (s *Set) all() []*revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*revision, 0, len(s.revisions))
	for _, r := range s.revisions {
		all = append(all, r)
	}
	return all
}

func (s *Set) takePoked() []*revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	var due []*revision
	for _, key := range s.poked {
		if r := s.revisions[key]; r != nil {
			due = append(due, r)
		}
	}
	s.poked = s.poked[:0]
	return due
}
