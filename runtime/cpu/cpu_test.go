package cpu

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func begin(t testing.TB, s *Share) *Turn {
	t.Helper()
	turn := s.Turn()
	if err := turn.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	return turn
}

// busy is what a guest does that never ends by itself: it uses a core for a
// ration and yields.
func busy(ctx context.Context, s *Share) error {
	turn := s.Turn()
	if err := turn.Begin(ctx); err != nil {
		return err
	}
	for ctx.Err() == nil {
		time.Sleep(100 * time.Microsecond) // of the bubble: it passes as if the core were used
		if _, err := turn.Yield(ctx); err != nil {
			return err
		}
	}
	turn.End()
	return nil
}

// Two pods that want all they can get share by weight, as long as both do.
func TestSharesByWeight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(1)
		heavy, light := c.Share(ShareConfig{Request: 300}), c.Share(ShareConfig{Request: 100})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for _, s := range []*Share{heavy, light, light} { // two instances get no more than one
			wg.Go(func() { _ = busy(ctx, s) })
		}
		wg.Wait()
		if ratio := heavy.CPU().Seconds() / light.CPU().Seconds(); math.Abs(ratio-3) > 0.1 {
			t.Errorf("heavy had %s, light %s: ratio %.2f, want 3", heavy.CPU(), light.CPU(), ratio)
		}
		if all := heavy.CPU() + light.CPU(); all < 9900*time.Millisecond {
			t.Errorf("the core was used for %s of 10 s", all)
		}
	})
}

// A request to a pod that used little waits for no more than what is left of the
// rations under way, however many loop elsewhere.
func TestLittleUsedGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(2)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		hostile := []*Share{c.Share(ShareConfig{Request: 100}), c.Share(ShareConfig{Request: 100})}
		for i := range 1000 {
			wg.Go(func() { _ = busy(ctx, hostile[i%2]) })
		}
		good := c.Share(ShareConfig{Request: 100})
		for range 100 {
			time.Sleep(10*time.Millisecond + 17*time.Microsecond)
			asked := time.Now()
			turn := begin(t, good)
			if waited := time.Since(asked); waited > 100*time.Microsecond {
				t.Fatalf("waited %s", waited)
			}
			time.Sleep(70 * time.Microsecond)
			turn.End()
		}
		cancel()
		wg.Wait()
	})
}

// Within a pod too, the new instance goes before those that run on and on.
func TestNewInstanceGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(1)
		s := c.Share(ShareConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { _ = busy(ctx, s) })
		}
		time.Sleep(time.Second)
		asked := time.Now()
		turn := begin(t, s)
		if waited := time.Since(asked); waited > 100*time.Microsecond {
			t.Errorf("waited %s", waited)
		}
		turn.End()
		cancel()
		wg.Wait()
	})
}

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(2)
		s := c.Share(ShareConfig{Limit: 250})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { _ = busy(ctx, s) })
		}
		wg.Wait()
		if got := s.CPU(); got < 2400*time.Millisecond || got > 2600*time.Millisecond {
			t.Errorf("had %s in 10 s, want a quarter", got)
		}
	})
}

// What is ended while it waits, for a core or because of its limit, holds none.
func TestGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(1)
		gone := errors.New("gone")
		limited := c.Share(ShareConfig{Limit: 1})
		limited.charge(c.now(), time.Second)
		holder := begin(t, c.Share(ShareConfig{}))
		for _, s := range []*Share{limited, c.Share(ShareConfig{})} {
			ctx, cancel := context.WithCancelCause(t.Context())
			done := make(chan error, 1)
			go func() { done <- s.Turn().Begin(ctx) }()
			synctest.Wait()
			cancel(gone)
			if err := <-done; !errors.Is(err, gone) {
				t.Errorf("got %v, want the cause", err)
			}
		}
		holder.End()
		begin(t, c.Share(ShareConfig{})).End()
		if c.free.Load() != 1 || c.waiting.Load() != 0 {
			t.Errorf("%d cores are free, %d wait", c.free.Load(), c.waiting.Load())
		}
	})
}

// Never more than there are cores run, and none is lost, whatever ends when.
func TestHammer(t *testing.T) {
	c := New(3)
	shares := []*Share{c.Share(ShareConfig{}), c.Share(ShareConfig{Request: 500}), c.Share(ShareConfig{Request: 100})}
	var running atomic.Int32
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			for n := range 300 {
				ctx, cancel := context.WithCancel(t.Context())
				if n%3 == 0 {
					go cancel()
				}
				turn := shares[i%3].Turn()
				if turn.Begin(ctx) == nil {
					ok := true
					for range n % 5 {
						if now := running.Add(1); now > 3 {
							t.Errorf("%d run at once", now)
						}
						running.Add(-1)
						if _, err := turn.Yield(ctx); err != nil {
							ok = false
							break
						}
					}
					if ok {
						turn.End()
					}
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if c.free.Load() != 3 || c.waiting.Load() != 0 || c.queue.len() != 0 {
		t.Errorf("%d cores are free, %d wait", c.free.Load(), c.waiting.Load())
	}
}

func TestRankForgetsAtOneRate(t *testing.T) {
	early, late := newAccount(ShareConfig{Request: 100}), newAccount(ShareConfig{Request: 100})
	early.charge(0, 8*time.Millisecond)
	late.charge(2*halfLife, time.Millisecond) // the early one's is worth 2 ms by now
	if early.rank() <= late.rank() {
		t.Errorf("early %f, late %f", early.rank(), late.rank())
	}
	late.charge(2*halfLife, 2*time.Millisecond)
	if early.rank() >= late.rank() {
		t.Errorf("early %f, late %f", early.rank(), late.rank())
	}
}

// A pod that uses cores for long lets other threads have them in between, with
// one instance as with many; one that uses little isn't asked to.
func TestYieldsThreads(t *testing.T) {
	const seconds = 1000 * time.Millisecond
	for _, tt := range []struct {
		name        string
		used, pause time.Duration
		least, most int // yields in a second of use
	}{
		{"a loop", 50 * time.Microsecond, 0, 20_000, 20_000},
		{"requests one after another", 15 * time.Microsecond, time.Microsecond, 20_000, 25_000},
		{"calls of the host", 100 * time.Nanosecond, 100 * time.Nanosecond, 25_000, 10_000_000},
		{"a request now and then", 30 * time.Microsecond, time.Millisecond, 0, 0},
	} {
		a := newAccount(ShareConfig{})
		yields, now := 0, time.Duration(0)
		for used := time.Duration(0); used < seconds; used += tt.used {
			now += tt.pause + tt.used
			if a.charge(now, tt.used) {
				yields++
			}
		}
		if yields < tt.least || yields > tt.most {
			t.Errorf("%s: %d yields, want %d to %d", tt.name, yields, tt.least, tt.most)
		}
	}
}

// An instance hands on to another of its pod when it has used more than it by a
// lead, to another pod's as soon as that is first.
func TestHandsOnByLead(t *testing.T) {
	c := New(1)
	s := c.Share(ShareConfig{})
	turn, other := begin(t, s), s.Turn()
	defer turn.End()
	before := func(waiting *Turn) bool {
		defer waiting.withdraw()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.enqueue(waiting)
		return c.queue.before(turn)
	}
	other.used = time.Second
	for used, want := range map[time.Duration]bool{0: false, time.Second: false, time.Second + lead: false, time.Second + lead + 1: true} {
		turn.used = used
		if got := before(other); got != want {
			t.Errorf("after %s, the other after %s: %t, want %t", used, other.used, got, want)
		}
	}
	turn.used = 1
	s.charge(c.now(), time.Microsecond)
	if !before(c.Share(ShareConfig{}).Turn()) {
		t.Error("a pod that has used nothing isn't first")
	}
}

// A pod is in company while another one uses cores, whichever of them begins or
// comes by.
func TestShared(t *testing.T) {
	c := New(2)
	busy, visitor := c.Share(ShareConfig{}), c.Share(ShareConfig{})
	for _, step := range []struct {
		at    time.Duration
		share *Share
		want  bool
	}{
		{time.Second, busy, true}, // who was there before isn't known
		{time.Second + company, busy, false},
		{2 * time.Second, busy, false},
		{2*time.Second + 1, visitor, true},
		{2*time.Second + 2, busy, true},
		{2*time.Second + company + 1, busy, true},
		{2*time.Second + company + 2, busy, false},
	} {
		if got := c.shared(step.share, step.at); got != step.want {
			t.Errorf("at %s: %t, want %t", step.at, got, step.want)
		}
	}
}

// BenchmarkYield is the cost of a safe point when nobody waits, and when two
// take turns at each.
func BenchmarkYield(b *testing.B) {
	b.Run("alone", func(b *testing.B) {
		turn := begin(b, New(1).Share(ShareConfig{}))
		defer turn.End()
		for b.Loop() {
			if _, err := turn.Yield(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("in turn", func(b *testing.B) {
		c := New(1)
		ctx, cancel := context.WithCancel(b.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			turn := c.Share(ShareConfig{}).Turn()
			err := turn.Begin(ctx)
			for err == nil && ctx.Err() == nil {
				_, err = turn.Yield(ctx)
			}
			if err == nil {
				turn.End()
			}
		})
		turn := begin(b, c.Share(ShareConfig{}))
		for b.Loop() {
			if _, err := turn.Yield(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		cancel()
		turn.End()
		wg.Wait()
	})
	b.Run("begin and end", func(b *testing.B) {
		s := New(1).Share(ShareConfig{})
		b.ReportAllocs()
		for b.Loop() {
			begin(b, s).End()
		}
	})
}
