package memory

import (
	"container/list"
	"context"
	"fmt"
	"sync"

	"github.com/tetratelabs/wazero/experimental"
)

// Needs is what an instance of a module takes from its sandbox's memory.
type Needs struct {
	// Module names it: its instances have one another's mappings again.
	Module string
	// Min and Max bound its linear memory, in bytes. Max is 0 for a module
	// without one.
	Min, Max uint64
	// Fixed is all else that it holds: tables, globals, its stack, and what it
	// costs the node.
	Fixed int64
	// Empty is what of Fixed is tables that its functions can't fill. Making them
	// takes next to no time, which nothing else of Go's memory does.
	Empty int64
}

func (n Needs) least() int64 { return n.Fixed + int64(n.Min) }

// LimitError says that an instance needs more memory than its sandbox may have,
// with no other instance beside it. Common is what it holds together with others.
type LimitError struct{ Need, Limit, Common int64 }

func (e *LimitError) Error() string {
	if e.Common > 0 {
		return fmt.Sprintf("an instance needs %d bytes of memory to start, the limit is %d, of which volumes in memory hold %d", e.Need, e.Limit, e.Common)
	}
	return fmt.Sprintf("an instance needs %d bytes of memory to start, the limit is %d", e.Need, e.Limit)
}

// Budget is the memory of one sandbox. It is safe for concurrent use.
type Budget struct {
	pool  *Pool
	limit int64

	mu      sync.Mutex
	used    int64
	common  int64     // held together with others, beside used
	typical int64     // what instances hold at their end, a moving average
	waiting list.List // of *waiter, the longest waiting first
}

type waiter struct {
	want int64
	fits chan struct{} // closed once want is counted as used
}

// NewBudget returns a Budget of limit bytes whose instances have their memory
// from p.
func NewBudget(p *Pool, limit int64) *Budget { return &Budget{pool: p, limit: limit} }

// Used returns the bytes that count as used now.
func (b *Budget) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used + b.common
}

// Limit returns the limit in bytes.
func (b *Budget) Limit() int64 { return b.limit }

// Reserve returns the memory of a new instance, or waits for it until others
// end: for as much as instances come to hold as a rule, so that they aren't
// started only to be denied it. It gives up with ctx's cause. What can never fit
// is *LimitError.
func (b *Budget) Reserve(ctx context.Context, n Needs) (*Linear, error) {
	charged, err := b.take(ctx, n)
	if err != nil {
		return nil, err
	}
	l := &Linear{budget: b, fixed: n.Fixed, charged: charged}
	if n.Max > 0 {
		if l.mapping, err = b.pool.get(n.Module, min(n.Max, uint64(b.limit))); err != nil {
			b.give(charged)
			return nil, err
		}
	}
	return l, nil
}

func (b *Budget) take(ctx context.Context, n Needs) (int64, error) {
	b.mu.Lock()
	if n.least() > b.limit-b.common {
		defer b.mu.Unlock()
		return 0, &LimitError{Need: n.least(), Limit: b.limit, Common: b.common}
	}
	if b.typical == 0 && n.Max > n.Min {
		b.typical = n.Fixed + 2*int64(n.Min) // a guess, until some have ended
	}
	want := min(max(n.least(), b.typical), b.limit-b.common)
	if b.waiting.Len() == 0 && b.fits(want) {
		b.used += want
		b.mu.Unlock()
		return want, nil
	}
	w := &waiter{want: want, fits: make(chan struct{})}
	place := b.waiting.PushBack(w)
	b.mu.Unlock()
	select {
	case <-w.fits:
		return want, nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-w.fits:
		return want, nil // both: its owner will see that ctx has ended
	default:
		b.waiting.Remove(place)
		b.admit() // the next one may want less
		return 0, context.Cause(ctx)
	}
}

// give gives bytes back.
func (b *Budget) give(bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= bytes
	b.admit()
}

// admit lets in who waits, in order. b.mu is held.
func (b *Budget) admit() {
	for b.waiting.Len() > 0 {
		first := b.waiting.Front()
		w := first.Value.(*waiter)
		if !b.fits(w.want) {
			return
		}
		b.used += w.want
		b.waiting.Remove(first)
		close(w.fits)
	}
}

// grow counts another extra bytes unless they are beyond the limit.
func (b *Budget) grow(extra int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.fits(extra) {
		return false
	}
	b.used += extra
	return true
}

// fits is whether there is room for so many bytes more. b.mu is held.
func (b *Budget) fits(bytes int64) bool { return b.used+b.common+bytes <= b.limit }

// hold is grow for what others hold too, and the opposite below 0.
func (b *Budget) hold(bytes int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if bytes > 0 && !b.fits(bytes) {
		return false
	}
	b.common += bytes
	if bytes < 0 {
		b.admit()
	}
	return true
}

// join counts what others hold already, beyond the limit too: no instance starts
// then.
func (b *Budget) join(bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.common += bytes
}

// learn takes in what an instance held at its end.
func (b *Budget) learn(held int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.typical += (held - b.typical) / 8
}

// Linear is the memory of one instance: a wazero MemoryAllocator and its one
// LinearMemory. It belongs to the goroutine that runs the instance.
type Linear struct {
	budget  *Budget
	mapping *mapping // nil for a module without memory
	size    uint64   // of the linear memory
	fixed   int64
	charged int64 // to the budget
	denied  bool
}

// Allocate implements experimental.MemoryAllocator.
func (l *Linear) Allocate(_, _ uint64) experimental.LinearMemory { return l }

// Reallocate implements experimental.LinearMemory. It moves nothing.
func (l *Linear) Reallocate(size uint64) []byte {
	if size == 0 {
		return []byte{}
	}
	if l.mapping == nil || size > uint64(len(l.mapping.bytes)) || !l.charge(l.fixed+int64(size)) {
		l.denied = true
		return nil
	}
	l.size = size
	return l.mapping.bytes[:size:size]
}

func (l *Linear) charge(bytes int64) bool {
	extra := bytes - l.charged
	if extra <= 0 {
		return true
	}
	if !l.budget.grow(extra) {
		return false
	}
	l.charged = bytes
	return true
}

// Fix is Hold for what the instance can't do without: without room it is out of
// memory.
func (l *Linear) Fix(bytes int64) bool {
	if !l.Hold(bytes) {
		l.denied = true
		return false
	}
	return true
}

// Hold counts bytes that the instance holds beside its linear memory, or, below
// 0, that it holds no more. Beyond the limit it counts nothing and says no; the
// instance isn't out of memory by that.
func (l *Linear) Hold(bytes int64) bool {
	if bytes > 0 && !l.charge(l.fixed+bytes+int64(l.size)) {
		return false
	}
	l.fixed += bytes
	return true
}

// Free implements experimental.LinearMemory. It does nothing: wazero doesn't
// call it where making an instance fails half-way, so Release is called instead.
func (l *Linear) Free() {}

// Denied reports whether the instance asked for more than there was.
func (l *Linear) Denied() bool { return l.denied }

// Release gives everything back. The instance must be closed.
func (l *Linear) Release() {
	if l.mapping != nil {
		l.budget.pool.put(l.mapping, l.size)
		l.mapping = nil
	}
	if !l.denied {
		l.budget.learn(l.fixed + int64(l.size))
	}
	l.budget.give(l.charged)
	l.charged = 0
}
