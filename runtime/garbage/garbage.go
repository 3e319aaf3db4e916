// Package garbage bounds how fast guests make the node allocate memory of Go's.
//
// A guest's linear memory isn't Go's, but the engine's tables are, and its stacks, each of
// which it makes anew, twice as large, whenever a guest's calls nest too deeply for
// the last one. Who does that over and over, and drops it, keeps the collector running,
// and everybody has to help it. So such bytes have a rate: Try takes them from what
// there is, and Wait waits for them, in the order in which pods get a core (see
// runtime/cpu), the one that has waited for the least lately going first.
//
// The package starts no goroutine.
// See ../RATIONALE.md "What does garbage cost?".
package garbage

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/wisp-serving/wisp/runtime/cpu"
)

// Config says how many bytes all guests together may have.
type Config struct {
	// Rate is in bytes per second, and Burst in bytes: what there is after a rest.
	// Both are at least 1.
	Rate, Burst int64
}

// Bound is the node's. It is safe for concurrent use.
type Bound struct {
	burst int64
	left  *rate.Limiter
	// order has one place: only who is first takes from what is left.
	order   *cpu.Cores
	waiting atomic.Int32
}

// New returns a Bound of which nothing is taken.
func New(cfg Config) *Bound {
	burst := max(cfg.Burst, 1)
	return &Bound{burst: burst, left: rate.NewLimiter(rate.Limit(max(cfg.Rate, 1)), int(burst)), order: cpu.New(1)}
}

// Share returns a pod's part, with a weight against others.
func (b *Bound) Share(weight int64) *Share {
	return &Share{bound: b, place: b.order.Share(cpu.ShareConfig{Request: weight})}
}

// Share is what a pod's instances have in common. It is safe for concurrent use.
type Share struct {
	bound *Bound
	place *cpu.Share
}

// Try takes bytes, unless there are too few or others wait for some.
func (s *Share) Try(bytes int64) bool {
	return s.bound.waiting.Load() == 0 && s.bound.left.AllowN(time.Now(), int(bytes))
}

// Wait waits for bytes, however many, and takes them. When ctx ends before it takes none, or a
// part, and returns ctx's cause.
func (s *Share) Wait(ctx context.Context, bytes int64) error {
	s.bound.waiting.Add(1)
	defer s.bound.waiting.Add(-1)
	turn := s.place.Turn()
	if err := turn.Begin(ctx); err != nil {
		return err
	}
	defer turn.End()
	for bytes > 0 {
		part := min(bytes, s.bound.burst)
		if err := s.bound.wait(ctx, part); err != nil {
			return err
		}
		bytes -= part
	}
	return nil
}

// wait waits for at most a burst.
func (b *Bound) wait(ctx context.Context, bytes int64) error {
	now := time.Now()
	taken := b.left.ReserveN(now, int(bytes))
	timer := time.NewTimer(taken.DelayFrom(now))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		taken.Cancel()
		return context.Cause(ctx)
	}
}
