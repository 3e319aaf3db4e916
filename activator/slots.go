package activator

import (
	"container/list"
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// errQueueFull says that as many requests wait for a slot as may.
var errQueueFull = errors.New("too many requests wait for the revision")

// slots hands out one revision's places for requests: each target on this node
// has as many as its concurrency allows. Who finds none waits in line, first
// come first served.
type slots struct {
	depth int // the most waiters

	mu      sync.Mutex
	targets []*target
	waiters list.List // of chan *target, each with room for its one grant
}

// target is one running function.
type target struct {
	id          types.UID
	concurrency int // 0: any number
	handler     http.Handler
	drained     chan struct{} // closed when removed && inFlight == 0

	// Guarded by slots.mu.
	inFlight int
	removed  bool
}

// idle notes the end of the last request of a removed target.
func (t *target) idle() {
	if t.removed && t.inFlight == 0 {
		close(t.drained)
	}
}

func (t *target) free() bool { return t.concurrency == 0 || t.inFlight < t.concurrency }

func newSlots(depth int) *slots { return &slots{depth: depth} }

// try takes a slot if one is free and nobody waits for it.
func (s *slots) try() *target {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiters.Len() > 0 {
		return nil
	}
	return s.take()
}

// wait takes a slot, waiting for one until ctx ends. It calls cold if it waits
// while there is no target at all. It fails with errQueueFull without waiting,
// or with ctx's error.
func (s *slots) wait(ctx context.Context, cold func()) (*target, error) {
	s.mu.Lock()
	if s.waiters.Len() == 0 {
		if t := s.take(); t != nil {
			s.mu.Unlock()
			return t, nil
		}
	}
	if s.waiters.Len() >= s.depth {
		s.mu.Unlock()
		return nil, errQueueFull
	}
	grant := make(chan *target, 1)
	place := s.waiters.PushBack(grant)
	isCold := s.isCold()
	s.mu.Unlock()
	if isCold {
		cold()
	}

	select {
	case t := <-grant:
		return t, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case t := <-grant: // granted in the same moment: the slot is someone else's now
		s.giveBack(t)
	default:
		s.waiters.Remove(place)
	}
	return nil, ctx.Err()
}

// release gives back a slot that try or wait took.
func (s *slots) release(t *target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveBack(t)
}

func (s *slots) add(id types.UID, concurrency int, h http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(id)
	s.targets = append(s.targets, &target{id: id, concurrency: concurrency, handler: h, drained: make(chan struct{})})
	s.grant()
}

// remove takes the target away. drained is closed when its last request has
// ended; cold is whether requests wait and no target is left for them.
func (s *slots) remove(id types.UID) (drained <-chan struct{}, cold bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drop(id), s.isCold()
}

// occupancy returns how many targets there are and how many requests wait.
func (s *slots) occupancy() (targets, waiting int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.targets), s.waiters.Len()
}

// The methods below are called with mu held.

// take takes a slot of the least busy target, or returns nil.
func (s *slots) take() *target {
	var best *target
	for _, t := range s.targets {
		if t.free() && (best == nil || t.inFlight < best.inFlight) {
			best = t
		}
	}
	if best != nil {
		best.inFlight++
	}
	return best
}

func (s *slots) isCold() bool { return len(s.targets) == 0 && s.waiters.Len() > 0 }

func (s *slots) giveBack(t *target) {
	t.inFlight--
	t.idle()
	s.grant()
}

// grant gives free slots to those who wait, in order.
func (s *slots) grant() {
	for s.waiters.Len() > 0 {
		t := s.take()
		if t == nil {
			return
		}
		s.waiters.Remove(s.waiters.Front()).(chan *target) <- t
	}
}

// drop takes the target off the list and returns its drained channel, a closed
// one if there is no such target.
func (s *slots) drop(id types.UID) <-chan struct{} {
	i := slices.IndexFunc(s.targets, func(t *target) bool { return t.id == id })
	if i < 0 {
		return closed()
	}
	t := s.targets[i]
	s.targets = slices.Delete(s.targets, i, i+1)
	t.removed = true
	t.idle()
	return t.drained
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
