package activator

import (
	"container/list"
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// errQueueFull says that as many requests wait for a slot as may.
var errQueueFull = errors.New("too many requests wait for the revision")

// slots hands out one revision's places for requests: each target has as many
// as its concurrency allows. A target on this node comes before one elsewhere.
// Who finds none waits in line, first come first served.
//
// A request that another node has sent may use targets of this node only. So
// there are two lines, and a slot goes to whoever came first of those who may
// use it.
type slots struct {
	limits queueLimits

	mu        sync.Mutex
	targets   []*target // on this node
	elsewhere []*target // nodes with ready pods
	here      list.List // of *waiter, who may use targets of this node only
	anywhere  list.List // of *waiter
	arrivals  uint64    // waiters so far, to tell who came first
	held      int64     // bytes that waiters hold
}

// queueLimits bound who may wait for one revision.
type queueLimits struct {
	depth int   // the most waiters
	bytes int64 // the most that they hold of this process's memory
}

// target is where a request can go: a function on this node, or a node that has
// ready pods of the revision.
type target struct {
	id          types.UID
	concurrency int          // 0: any number
	handler     http.Handler // nil for a node
	address     string       // of a node, empty for a function
	// early is whether a function has no Pod yet; guarded by slots.mu.
	early   bool
	drained chan struct{} // closed when removed && inFlight == 0; nil for a node

	// Guarded by slots.mu.
	inFlight int
	removed  bool
	// notBefore is when a node that could not be reached is tried again.
	notBefore time.Time
}

// waiter is a request in line.
type waiter struct {
	arrival uint64
	bytes   int64
	grant   chan *target // with room for its one grant
}

// idle notes the end of the last request of a removed target.
func (t *target) idle() {
	if t.removed && t.inFlight == 0 && t.drained != nil {
		close(t.drained)
	}
}

func (t *target) free() bool { return t.concurrency == 0 || t.inFlight < t.concurrency }

func newSlots(l queueLimits) *slots { return &slots{limits: l} }

// try takes a slot if one is free and nobody waits. With local, it takes none
// elsewhere.
func (s *slots) try(local bool) *target {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting() > 0 {
		return nil
	}
	if t := take(s.targets, time.Time{}); t != nil || local {
		return t
	}
	return take(s.elsewhere, time.Now())
}

// wait takes a slot, waiting for one until ctx ends; bytes is what the request
// holds meanwhile. It calls cold if it waits while there is no target at all. It
// fails with errQueueFull without waiting, or with ctx's error.
func (s *slots) wait(ctx context.Context, local bool, bytes int64, cold func()) (*target, error) {
	s.mu.Lock()
	// One request of any size may wait: it is the only one to pay for it.
	if n := s.waiting(); n >= s.limits.depth || (n > 0 && s.held+bytes > s.limits.bytes) {
		s.mu.Unlock()
		return nil, errQueueFull
	}
	line := s.line(local)
	s.arrivals++
	w := &waiter{arrival: s.arrivals, bytes: bytes, grant: make(chan *target, 1)}
	place := line.PushBack(w)
	s.held += bytes
	s.grant(time.Now())
	isCold := len(w.grant) == 0 && s.isCold(local, time.Now())
	s.mu.Unlock()
	if isCold {
		cold()
	}

	select {
	case t := <-w.grant:
		return t, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case t := <-w.grant: // granted in the same moment: the slot is someone else's now
		s.giveBack(t)
	default:
		line.Remove(place)
		s.held -= bytes
	}
	return nil, ctx.Err()
}

// release gives back a slot that try or wait took.
func (s *slots) release(t *target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveBack(t)
}

// add makes a function of this node a target, in the place of one with the same
// id. An early one has no Pod yet.
func (s *slots) add(id types.UID, concurrency int, h http.Handler, early bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(id)
	s.targets = append(s.targets, &target{id: id, concurrency: concurrency, handler: h, early: early, drained: make(chan struct{})})
	s.grant(time.Now())
}

// adopted notes that a target has a Pod now.
func (s *slots) adopted(id types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.index(id); i >= 0 {
		s.targets[i].early = false
	}
}

// remove takes the target away. drained is closed when its last request has
// ended; cold is whether requests wait and no target is left for them.
func (s *slots) remove(id types.UID) (drained <-chan struct{}, cold bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drop(id), s.stranded(time.Now())
}

// setElsewhere says which nodes have ready pods, and how many requests each
// takes at a time (0: any number). It reports whether requests wait and no
// target is left for them.
func (s *slots) setElsewhere(nodes map[string]int) (cold bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := make([]*target, 0, len(nodes))
	known := make(map[string]bool, len(nodes))
	for _, t := range s.elsewhere {
		if concurrency, ok := nodes[t.address]; ok {
			t.concurrency = concurrency
			known[t.address] = true
			next = append(next, t)
		}
	}
	for address, concurrency := range nodes {
		if !known[address] {
			next = append(next, &target{address: address, concurrency: concurrency})
		}
	}
	s.elsewhere = next
	s.grant(time.Now())
	return s.stranded(time.Now())
}

// suspend keeps requests from a node that could not be reached, until then.
func (s *slots) suspend(t *target, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.notBefore = until
}

// look does what is due at now without anything having changed: a suspension
// may be over. It reports whether requests wait and there is no target for them.
func (s *slots) look(now time.Time) (cold bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grant(now)
	return s.stranded(now)
}

// cold is whether there is no target at all for such a request.
func (s *slots) cold(local bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.isCold(local, time.Now())
}

// occupancy is what a slots holds at one time.
type occupancy struct {
	targets int // on this node
	pods    int // targets that are, or have, Pods
	waiting int
}

func (s *slots) occupancy() occupancy {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := occupancy{targets: len(s.targets), pods: len(s.elsewhere), waiting: s.waiting()}
	for _, t := range s.targets {
		if !t.early {
			o.pods++
		}
	}
	return o
}

// The methods below are called with mu held.

func (s *slots) waiting() int { return s.here.Len() + s.anywhere.Len() }

func (s *slots) line(local bool) *list.List {
	if local {
		return &s.here
	}
	return &s.anywhere
}

// take takes a slot of the least busy target, or returns nil.
func take(targets []*target, now time.Time) *target {
	var best *target
	for _, t := range targets {
		if t.free() && !now.Before(t.notBefore) && (best == nil || t.inFlight < best.inFlight) {
			best = t
		}
	}
	if best != nil {
		best.inFlight++
	}
	return best
}

func (s *slots) isCold(local bool, now time.Time) bool {
	return len(s.targets) == 0 && (local || !slices.ContainsFunc(s.elsewhere, func(t *target) bool { return !now.Before(t.notBefore) }))
}

// stranded is whether somebody waits for whom there is no target at all.
func (s *slots) stranded(now time.Time) bool {
	return (s.here.Len() > 0 && s.isCold(true, now)) || (s.anywhere.Len() > 0 && s.isCold(false, now))
}

func (s *slots) giveBack(t *target) {
	t.inFlight--
	t.idle()
	s.grant(time.Now())
}

// grant gives free slots to those who wait, in order.
func (s *slots) grant(now time.Time) {
	for s.waiting() > 0 {
		line := s.first()
		t := take(s.targets, time.Time{})
		if t == nil {
			line = &s.anywhere
			if line.Len() > 0 {
				t = take(s.elsewhere, now)
			}
		}
		if t == nil {
			return
		}
		w := line.Remove(line.Front()).(*waiter)
		s.held -= w.bytes
		w.grant <- t
	}
}

// first returns the line whose first waiter came before the other's.
func (s *slots) first() *list.List {
	a, b := s.here.Front(), s.anywhere.Front()
	if b == nil || (a != nil && a.Value.(*waiter).arrival < b.Value.(*waiter).arrival) {
		return &s.here
	}
	return &s.anywhere
}

func (s *slots) index(id types.UID) int {
	return slices.IndexFunc(s.targets, func(t *target) bool { return t.id == id })
}

// drop takes the target off the list and returns its drained channel, a closed
// one if there is no such target.
func (s *slots) drop(id types.UID) <-chan struct{} {
	i := s.index(id)
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
