// Package cpu shares the node's cores among guests.
//
// Cores has as many turns to give as the node has cores for guests. Each running
// instance has a Turn: it takes a core (Begin), asks at least every 50 µs or so
// whether it may go on (Yield), and gives the core back while it waits for
// something else or when it has ended (End). A pod's instances have a Share in
// common, with a weight and perhaps a limit.
//
// Who waits for a core gets it in the order of what pods have used lately, less
// for a higher weight: a pod that used little goes first, so that a hundred busy
// loops next door cost a request the rest of somebody's 50 µs. Within a pod,
// the instance that has used the least goes first. As long as nobody waits,
// nothing but a pod's own account is locked.
//
// A pod that uses a core for a while, with one instance or with many short ones, yields
// to the kernel as well: a thread that has just been woken, by the network as a rule, gets
// its core then and not at the end of a time slice of some milliseconds.
//
// The package starts no goroutine. Time is wall time with a core in hand.
// See ../RATIONALE.md "Who gets a core?".
package cpu

import (
	"context"
	goruntime "runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Cores hands out cores. It is safe for concurrent use.
type Cores struct {
	epoch time.Time
	free  atomic.Int32
	// waiting is the length of queue, to be read without mu. A turn that is put
	// into the queue and a core that becomes free can't miss one another: both
	// sides change their own number first and look at the other's then.
	waiting atomic.Int32
	// latest is the share that was seen with a core last, and changed when another
	// one had been, since the epoch.
	latest  atomic.Pointer[Share]
	changed atomic.Int64

	mu    sync.Mutex
	queue queue
}

// New returns n cores, at least 1.
func New(n int) *Cores {
	c := &Cores{epoch: time.Now()}
	c.free.Store(int32(max(n, 1)))
	return c
}

// now is the time since the epoch. It reads only the monotonic clock.
func (c *Cores) now() time.Duration { return time.Since(c.epoch) }

func (c *Cores) tryTake() bool {
	for {
		n := c.free.Load()
		if n <= 0 {
			return false
		}
		if c.free.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

// company is for how long a pod that has used a core counts as the others'.
const company = 10 * time.Millisecond

// shared notes that s has a core, and says whether another share had one lately.
func (c *Cores) shared(s *Share, now time.Duration) bool {
	if c.latest.Load() != s {
		c.latest.Store(s)
		c.changed.Store(int64(now))
	}
	return now-time.Duration(c.changed.Load()) < company
}

// giveBack gives a core to whoever is first, or leaves it free.
func (c *Cores) giveBack() {
	c.free.Add(1)
	if c.waiting.Load() > 0 {
		c.mu.Lock()
		c.serve()
		c.mu.Unlock()
	}
}

// serve gives free cores to those who wait. c.mu is held.
func (c *Cores) serve() {
	for c.queue.len() > 0 && c.tryTake() {
		c.grant(c.queue.pop())
	}
}

func (c *Cores) grant(t *Turn) {
	c.waiting.Add(-1)
	t.granted <- struct{}{} // it has room
}

// enqueue puts t into the queue. c.mu is held.
func (c *Cores) enqueue(t *Turn) {
	c.queue.push(t)
	c.waiting.Add(1)
}

// Share returns a new account.
func (c *Cores) Share(cfg ShareConfig) *Share {
	return &Share{cores: c, account: newAccount(cfg)}
}

// Share is the account of one pod. It is safe for concurrent use.
type Share struct {
	cores *Cores
	// owes says that whoever has a core next yields its thread first.
	owes atomic.Bool

	mu      sync.Mutex
	account account
	// Under cores.mu: the turns that wait.
	turns turns
	key   float64 // the rank by which it has its place in the queue
	index int
}

// CPU returns the time that the share's instances have used.
func (s *Share) CPU() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.account.total
}

func (s *Share) charge(now, used time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.account.charge(now, used) {
		s.owes.Store(true)
	}
}

// pause returns how long the share's limit wants it to stay away from cores.
func (s *Share) pause(now time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.account.pause(now)
}

func (s *Share) rank() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.account.rank()
}

// Turn is one instance's place among those who want a core. It belongs to the
// goroutine that runs the instance.
type Turn struct {
	share    *Share
	since    time.Duration // when it began to use the core in hand
	used     time.Duration
	straight time.Duration // use since other goroutines and threads had a chance
	granted  chan struct{} // takes one core
	index    int           // in share.turns, under cores.mu
}

// Turn returns a Turn without a core.
func (s *Share) Turn() *Turn { return &Turn{share: s, granted: make(chan struct{}, 1)} }

// Used returns the time that the instance has had a core.
func (t *Turn) Used() time.Duration { return t.used }

// Begin takes a core, waiting for one until ctx ends: then it has none, and the
// error is ctx's cause.
func (t *Turn) Begin(ctx context.Context) error {
	c := t.share.cores
	for wait := t.share.pause(c.now()); wait > 0; wait = t.share.pause(c.now()) {
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
	if c.waiting.Load() == 0 && c.tryTake() {
		t.since, t.straight = c.now(), 0
	} else {
		c.mu.Lock()
		c.enqueue(t)
		c.serve()
		c.mu.Unlock()
		if err := t.wait(ctx); err != nil {
			return err
		}
	}
	c.shared(t.share, t.since)
	t.letOthers()
	return nil
}

// wait waits for the core that t is in the queue for.
func (t *Turn) wait(ctx context.Context) error {
	c := t.share.cores
	select {
	case <-t.granted:
	case <-ctx.Done():
		if t.withdraw() {
			return context.Cause(ctx)
		}
		<-t.granted // in between: its owner will see that ctx has ended
	}
	// Go runs who was woken last first, in the time slice of who woke it: guests
	// that wake one another would keep everybody else from this thread for 10 ms.
	goruntime.Gosched()
	t.since, t.straight = c.now(), 0
	return nil
}

// withdraw leaves the queue, unless a core has been granted.
func (t *Turn) withdraw() bool {
	c := t.share.cores
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.queue.remove(t) {
		return false
	}
	c.waiting.Add(-1)
	return true
}

// Yield accounts for the time since the last call and lets others have the core
// if it is their turn, or if the share has reached its limit; then it waits for
// one. It returns the time for which the turn had the core. With an error, which
// is ctx's cause, it has none any more.
func (t *Turn) Yield(ctx context.Context) (time.Duration, error) {
	used := t.account()
	if err := t.handOn(ctx); err != nil {
		return used, err
	}
	shared := t.share.cores.shared(t.share, t.since)
	t.letOthers()
	if t.straight += used; t.straight >= straightInterval {
		t.letAll(shared)
	}
	return used, nil
}

// handOn lets others have the core if it is their turn, and waits for one then.
func (t *Turn) handOn(ctx context.Context) error {
	c := t.share.cores
	if t.share.pause(c.now()) > 0 {
		c.giveBack()
		return t.Begin(ctx)
	}
	if c.waiting.Load() == 0 {
		return nil
	}
	c.mu.Lock()
	if !c.queue.before(t) {
		c.mu.Unlock()
		return nil
	}
	next := c.queue.pop()
	c.enqueue(t)
	c.grant(next)
	c.mu.Unlock()
	return t.wait(ctx)
}

// letOthers yields to the kernel if the turn's pod hasn't for a while. With a core
// that no guest has, other threads need none of this one's.
func (t *Turn) letOthers() {
	if t.share.owes.Load() && t.share.cores.free.Load() <= 0 && t.share.owes.CompareAndSwap(true, false) {
		yieldThread()
		t.since = t.share.cores.now() // what others had isn't its own
	}
}

// straightInterval is for how long a turn may keep other goroutines from its
// thread, and other threads from its core where a core is free of guests and still
// isn't idle.
const straightInterval = 500 * time.Microsecond

// letAll yields to other goroutines and, in the company of other pods, to the
// kernel.
func (t *Turn) letAll(company bool) {
	t.straight = 0
	goruntime.Gosched()
	if company {
		yieldThread()
	}
	t.since = t.share.cores.now()
}

// yieldThread lets the kernel run another thread that waits for this core. It
// doesn't block, so Go's scheduler needn't hear of it.
func yieldThread() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// End accounts and gives the core back. It is for those who have one.
func (t *Turn) End() {
	t.account()
	t.share.cores.giveBack()
}

func (t *Turn) account() time.Duration {
	now := t.share.cores.now()
	used := now - t.since
	t.since = now
	t.used += used
	t.share.charge(now, used)
	return used
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
