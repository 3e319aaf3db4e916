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

var (
	// errQueueFull says that as many requests wait for a slot as may.
	errQueueFull = errors.New("too many requests wait for the revision")
	// errGone says that the function is none, or no longer.
	errGone = errors.New("the function takes no requests")
)

// ownDepth is how many requests may wait for one function by itself, for each
// that it takes at a time, as in Knative's queue-proxy (serving
// pkg/queue/sharedmain/main.go).
const ownDepth = 10

// slots hands out one revision's places for requests: each target has as many
// as its concurrency allows. A target on this node comes before one elsewhere.
// Who finds none waits in line, first come first served.
//
// A request that another node has sent may use targets of this node only, and one
// that came straight to a pod only that pod's. So there are several lines, and a
// slot goes to whoever came first of those who may use it.
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
	own      list.List // of *waiter, who may use this target only
	// notBefore is when a node that could not be reached is tried again.
	notBefore time.Time
}

// waiter is a request in line.
type waiter struct {
	arrival uint64
	bytes   int64
	grant   chan *target // with room for its one grant; nil: errGone
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
	place := s.stand(line, bytes)
	s.grant(time.Now())
	isCold := len(place.Value.(*waiter).grant) == 0 && s.isCold(local, time.Now())
	s.mu.Unlock()
	if isCold {
		cold()
	}
	return s.await(ctx, line, place)
}

// waitFor takes a slot of one function, waiting for it until ctx ends. It fails
// with errQueueFull or errGone, or with ctx's error.
func (s *slots) waitFor(ctx context.Context, id types.UID, bytes int64) (*target, error) {
	s.mu.Lock()
	i := s.index(id)
	if i < 0 {
		s.mu.Unlock()
		return nil, errGone
	}
	t := s.targets[i]
	if t.free() { // then nobody waits whom it would serve
		t.inFlight++
		s.mu.Unlock()
		return t, nil
	}
	if t.own.Len() >= ownDepth*t.concurrency || (s.held > 0 && s.held+bytes > s.limits.bytes) {
		s.mu.Unlock()
		return nil, errQueueFull
	}
	place := s.stand(&t.own, bytes)
	s.mu.Unlock()
	return s.await(ctx, &t.own, place)
}

// await waits at a place in line.
func (s *slots) await(ctx context.Context, line *list.List, place *list.Element) (*target, error) {
	w := place.Value.(*waiter)
	select {
	case t := <-w.grant:
		return granted(t)
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case t := <-w.grant: // granted in the same moment: the slot is someone else's now
		if t != nil {
			s.giveBack(t)
		}
	default:
		s.leave(line, place)
	}
	return nil, ctx.Err()
}

func granted(t *target) (*target, error) {
	if t == nil {
		return nil, errGone
	}
	return t, nil
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
	waiting int // for no function by itself
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

// depth returns how many requests have a slot on this node or wait for one.
func (s *slots) depth() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.waiting()
	for _, t := range s.targets {
		n += t.inFlight + t.own.Len()
	}
	return n
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

// stand puts a request at the end of a line.
func (s *slots) stand(line *list.List, bytes int64) *list.Element {
	s.arrivals++
	s.held += bytes
	return line.PushBack(&waiter{arrival: s.arrivals, bytes: bytes, grant: make(chan *target, 1)})
}

// leave takes a request out of its line.
func (s *slots) leave(line *list.List, place *list.Element) *waiter {
	w := line.Remove(place).(*waiter)
	s.held -= w.bytes
	return w
}

// grant gives free slots to those who wait, in order.
func (s *slots) grant(now time.Time) {
	for {
		line, t := s.next(now)
		if t == nil {
			return
		}
		s.leave(line, line.Front()).grant <- t
	}
}

// next returns the line whose first waiter is next, with a slot taken for it; nil
// if there is none for anybody.
func (s *slots) next(now time.Time) (*list.List, *target) {
	line := &s.here
	if before(&s.anywhere, line) {
		line = &s.anywhere
	}
	for _, t := range s.targets {
		if t.free() && before(&t.own, line) {
			t.inFlight++
			return &t.own, t
		}
	}
	if line.Len() == 0 {
		return nil, nil
	}
	if t := take(s.targets, time.Time{}); t != nil {
		return line, t
	}
	if s.anywhere.Len() == 0 {
		return nil, nil
	}
	return &s.anywhere, take(s.elsewhere, now)
}

// before is whether the first waiter of a line came before that of another.
func before(a, b *list.List) bool {
	if a.Len() == 0 || b.Len() == 0 {
		return a.Len() > 0
	}
	return a.Front().Value.(*waiter).arrival < b.Front().Value.(*waiter).arrival
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
	for t.own.Len() > 0 {
		s.leave(&t.own, t.own.Front()).grant <- nil
	}
	return t.drained
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
