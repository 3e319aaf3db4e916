package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const page = 64 << 10

func newPool(t testing.TB, retain int64) *Pool {
	p := NewPool(retain)
	t.Cleanup(func() {
		if n := p.Lent(); n != 0 {
			t.Errorf("%d mappings are still lent", n)
		}
		p.Close()
	})
	return p
}

func reserve(t testing.TB, b *Budget, n Needs) *Linear {
	t.Helper()
	l, err := b.Reserve(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// What one guest wrote the next must not read, however much it was, on a kernel
// that tells which pages were touched and on one that doesn't.
func TestNextGuestReadsZeroes(t *testing.T) {
	for name, forget := range map[string]bool{"kernel tells": false, "kernel does not tell": true} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, 1<<30)
			if forget {
				p.pages.close()
				p.pages.file = nil
			}
			b := NewBudget(p, 64<<20)
			zeroes := make([]byte, 16<<20)
			random := rand.New(rand.NewPCG(1, 2))
			for round := range 40 {
				pages := 1 + random.IntN(256)
				l := reserve(t, b, Needs{Min: page, Max: 64 << 20})
				mem := l.Reallocate(uint64(pages) * page)
				if !bytes.Equal(mem, zeroes[:len(mem)]) {
					t.Fatalf("round %d: a fresh memory isn't zero", round)
				}
				for range random.IntN(2000) {
					mem[random.IntN(len(mem))] = 0xff
				}
				mem[len(mem)-1] = 0xff
				l.Release()
			}
		})
	}
}

// Instances of a module have one another's mappings again, whosever they are, and no
// other module's.
func TestMappingsAreUsedAgain(t *testing.T) {
	p := newPool(t, 1<<30)
	budgets := []*Budget{NewBudget(p, 1<<20), NewBudget(p, 1<<20)}
	use := func(b *Budget, module string) *byte {
		l := reserve(t, b, Needs{Module: module, Min: page, Max: 1 << 20})
		defer l.Release()
		return &l.Reallocate(page)[0]
	}
	a := use(budgets[0], "a")
	b := use(budgets[0], "b")
	if a == b {
		t.Error("b's instance has a's mapping")
	}
	if use(budgets[1], "b") != b || use(budgets[1], "a") != a {
		t.Error("instances of the same module have mappings of their own")
	}
}

// What has been kept for the longest makes room, if that is of use.
func TestPoolKeepsWhatWasUsedLast(t *testing.T) {
	p := newPool(t, 2*page)
	b := NewBudget(p, 1<<20)
	for _, step := range []struct {
		module  string
		leaving int64 // what is being emptied meanwhile
		want    string
	}{
		{"a", 0, "a"},
		{"b", 0, "ab"},
		{"a", 0, "ab"},
		{"c", 0, "ac"},
		{"d", 2 * page, "ac"},
		{"d", page, "d"},
	} {
		l := reserve(t, b, Needs{Module: step.module, Min: page, Max: 1 << 20})
		l.Reallocate(page)
		p.leaving = step.leaving
		l.Release()
		p.leaving = 0
		var kept string
		for _, module := range []string{"a", "b", "c", "d"} {
			if len(p.kept[shelf{module, 1 << 20}]) > 0 {
				kept += module
			}
		}
		if kept != step.want || p.held != int64(len(kept))*page {
			t.Errorf("%s, with %d bytes that leave: kept %q, %d bytes, want %q", step.module, step.leaving, kept, p.held, step.want)
		}
	}
}

// What one large request has touched isn't cleared after each small one for ever.
func TestOneLargeUseIsForgotten(t *testing.T) {
	p := newPool(t, 1<<30)
	b := NewBudget(p, 16<<20)
	use := func(pages int) (resident int64) {
		l := reserve(t, b, Needs{Min: 4 << 20, Max: 4 << 20})
		mem := l.Reallocate(4 << 20)
		for i := range pages {
			mem[i*4096] = 1
		}
		m := l.mapping
		l.Release()
		p.emptying.Wait()
		return m.resident
	}
	if got := use(500); got != 500*4096 && p.pages.file != nil {
		t.Fatalf("after the large use %d bytes are resident, want %d", got, 500*4096)
	}
	for range refreshed {
		use(3)
	}
	if got := use(3); got > 3*4096 {
		t.Errorf("after as many small uses %d bytes are resident, want at most %d", got, 3*4096)
	}
}

// A pool that may keep nothing gives everything back at once; Close does so with
// what a pool has kept. What is large is given back in any case, a little later.
func TestPoolIsBounded(t *testing.T) {
	for name, tt := range map[string]struct {
		retain int64
		size   uint64
		end    func(*Pool)
	}{
		"keeps nothing":          {0, 1 << 20, func(*Pool) {}},
		"keeps nothing of large": {0, 16 << 20, func(*Pool) {}},
		"closed":                 {1 << 30, 1 << 20, (*Pool).Close},
		"closed with large":      {1 << 30, 16 << 20, (*Pool).Close},
		"large":                  {1 << 30, 16 << 20, func(p *Pool) { p.emptying.Wait() }},
	} {
		t.Run(name, func(t *testing.T) {
			p := NewPool(tt.retain)
			b := NewBudget(p, 1<<30)
			before := resident(t)
			var held []*Linear
			for range (64 << 20) / tt.size {
				l := reserve(t, b, Needs{Min: tt.size, Max: tt.size})
				mem := l.Reallocate(tt.size)
				for i := range mem {
					mem[i] = 1
				}
				held = append(held, l)
			}
			for _, l := range held {
				l.Release()
			}
			tt.end(p)
			if grown := resident(t) - before; grown > 16<<20 {
				t.Errorf("the process has %d MiB more", grown>>20)
			}
			if b.Used() != 0 {
				t.Errorf("%d bytes count as used", b.Used())
			}
		})
	}
}

// resident returns this process' physical memory in bytes.
func resident(t *testing.T) int {
	t.Helper()
	var size, pages int
	text, err := os.ReadFile("/proc/self/statm")
	if err == nil {
		_, err = fmt.Sscan(string(text), &size, &pages)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

func TestGrowing(t *testing.T) {
	b := NewBudget(newPool(t, 0), 4*page+100)
	one := reserve(t, b, Needs{Min: page, Max: page, Fixed: 100})
	two := reserve(t, b, Needs{Min: 0, Max: 1 << 32})
	small := two.Reallocate(page)
	small[0] = 1
	large := two.Reallocate(3 * page)
	if len(large) != 3*page || &large[0] != &small[0] || two.Denied() {
		t.Errorf("grew to %d bytes, moved %v, denied %v", len(large), &large[0] != &small[0], two.Denied())
	}
	if two.Reallocate(4*page) != nil || !two.Denied() {
		t.Error("two instances grew beyond what they may have together")
	}
	one.Release()
	if two.Reallocate(4*page) == nil {
		t.Error("alone, it may have as much")
	}
	if two.Reallocate(1<<32) != nil {
		t.Error("grew beyond its mapping")
	}
	two.Release()
}

func TestTooLargeToStart(t *testing.T) {
	b := NewBudget(newPool(t, 0), 10*page)
	_, err := b.Reserve(t.Context(), Needs{Min: 10 * page, Max: 10 * page, Fixed: 1})
	limit := new(LimitError)
	if !errors.As(err, &limit) || limit.Need != 10*page+1 || limit.Limit != 10*page {
		t.Errorf("got %v", err)
	}
}

// Who doesn't fit waits, in order, and who gives up leaves its place.
func TestWaiting(t *testing.T) {
	b := NewBudget(newPool(t, 0), 10*page)
	first := reserve(t, b, Needs{Fixed: 8 * page})
	started := make(chan int, 2)
	var wg sync.WaitGroup
	giveUp, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	wg.Go(func() {
		if _, err := b.Reserve(giveUp, Needs{Fixed: 9 * page}); !errors.Is(err, gone) {
			t.Errorf("got %v, want the cause", err)
		}
	})
	waitFor(b, 1)
	for i := range 2 {
		wg.Go(func() {
			l, err := b.Reserve(t.Context(), Needs{Fixed: 6 * page})
			if err != nil {
				t.Error(err)
				return
			}
			started <- i
			l.Release()
		})
		waitFor(b, i+2)
	}
	cancel(gone)
	waitFor(b, 2)
	first.Release()
	if a, b := <-started, <-started; a != 0 || b != 1 {
		t.Errorf("started %d, then %d", a, b)
	}
	wg.Wait()
	if b.Used() != 0 {
		t.Errorf("%d bytes count as used", b.Used())
	}
}

func waitFor(b *Budget, waiting int) {
	for {
		b.mu.Lock()
		n := b.waiting.Len()
		b.mu.Unlock()
		if n == waiting {
			return
		}
	}
}

// Instances that grow to much more than their module declares aren't started
// only to be denied.
func TestReservesWhatInstancesComeToHold(t *testing.T) {
	b := NewBudget(newPool(t, 0), 100*page)
	needs := Needs{Min: page, Max: 1 << 30}
	for range 50 {
		l := reserve(t, b, needs)
		l.Reallocate(60 * page)
		l.Release()
	}
	l := reserve(t, b, needs)
	defer l.Release()
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Reserve(done, needs); err == nil {
		t.Error("a second instance was started beside one that will want 60 of 100 pages")
	}
}

func TestHammer(t *testing.T) {
	p := newPool(t, 8<<20)
	budgets := []*Budget{NewBudget(p, 4<<20), NewBudget(p, 16<<20)}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			b := budgets[g%2]
			for i := range 200 {
				l, err := b.Reserve(t.Context(), Needs{Min: page, Max: 2 << 20, Fixed: 1000})
				if err != nil {
					t.Error(err)
					return
				}
				mem := l.Reallocate(page)
				for n := uint64(2); n < uint64(i%8); n++ {
					if grown := l.Reallocate(n * page); grown != nil {
						mem = grown
					}
				}
				for at := 0; at < len(mem); at += 4096 {
					if mem[at] != 0 {
						t.Errorf("byte %d is %d", at, mem[at])
					}
					mem[at] = byte(g + 1)
				}
				l.Release()
			}
		})
	}
	wg.Wait()
	for _, b := range budgets {
		if b.Used() != 0 {
			t.Errorf("%d bytes count as used", b.Used())
		}
	}
}

// BenchmarkMemory is what an instance's memory costs, by how much of what is
// declared is touched, and by the way in which it is taken back.
func BenchmarkMemory(b *testing.B) {
	for _, c := range []struct{ declared, touched int }{
		{2 * page, 8}, {16 << 20, 12}, {16 << 20, 500}, {64 << 20, 2000},
	} {
		for _, way := range []string{"kept", "not told", "unmapped"} {
			b.Run(fmt.Sprintf("%dKiB/%d pages/%s", c.declared>>10, c.touched, way), func(b *testing.B) {
				pool := newPool(b, 64<<20)
				if way == "not told" {
					pool.pages.close()
					pool.pages.file = nil
				}
				if way == "unmapped" {
					pool.retain = -1
				}
				budget := NewBudget(pool, 128<<20)
				for b.Loop() {
					l := reserve(b, budget, Needs{Min: uint64(c.declared), Max: uint64(c.declared)})
					mem := l.Reallocate(uint64(c.declared))
					for i := range c.touched / 2 { // at both ends, as data and stack are
						mem[i*4096] = 1
						mem[len(mem)-1-i*4096] = 1
					}
					l.Release()
				}
			})
		}
	}
}
