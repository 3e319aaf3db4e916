package garbage

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mb = 1 << 20

// take is what an instance does: it waits if it has to.
func take(ctx context.Context, s *Share, bytes int64) error {
	if s.Try(bytes) {
		return nil
	}
	return s.Wait(ctx, bytes)
}

// Who takes a lot now and then doesn't wait; who goes on gets the rate.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Rate: 10 * mb, Burst: 20 * mb}).Share(100)
		took := func(bytes int64) time.Duration {
			asked := time.Now()
			if err := take(t.Context(), s, bytes); err != nil {
				t.Fatal(err)
			}
			return time.Since(asked)
		}
		for range 20 {
			if waited := took(mb); waited > 0 {
				t.Fatalf("waited %s within a burst", waited)
			}
		}
		asked := time.Now()
		for range 100 {
			took(mb)
		}
		if all := time.Since(asked); all < 9900*time.Millisecond || all > 10100*time.Millisecond {
			t.Errorf("100 MiB took %s, want 10 s", all)
		}
		if waited := took(50 * mb); waited < 4900*time.Millisecond || waited > 5100*time.Millisecond {
			t.Errorf("more than a burst took %s, want 5 s", waited)
		}
		time.Sleep(2 * time.Second)
		if waited := took(20 * mb); waited > 0 {
			t.Errorf("waited %s after a rest", waited)
		}
	})
}

// A pod that takes little waits for one of the thousand that are before it, not
// for all.
func TestLittleTakenGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{Rate: 10 * mb, Burst: mb})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		hostile := []*Share{b.Share(100), b.Share(100)}
		for i := range 1000 {
			wg.Go(func() {
				for take(ctx, hostile[i%2], mb) == nil {
				}
			})
		}
		good := b.Share(100)
		for range 10 {
			time.Sleep(time.Second)
			asked := time.Now()
			if err := take(ctx, good, mb); err != nil {
				t.Fatal(err)
			}
			if waited := time.Since(asked); waited > 201*time.Millisecond {
				t.Errorf("waited %s, want at most for one before and for its own", waited)
			}
		}
		cancel()
		wg.Wait()
	})
}

// What is ended while it waits, first or not, takes nothing and holds nobody up.
func TestEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(Config{Rate: mb, Burst: 10 * mb})
		s := b.Share(100)
		if !s.Try(10 * mb) {
			t.Fatal("there is no burst")
		}
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := take(ctx, s, 10*mb); !errors.Is(err, gone) {
					t.Errorf("got %v, want the cause", err)
				}
			})
		}
		synctest.Wait()
		if s.Try(1) {
			t.Error("it went before those who wait")
		}
		cancel(gone)
		wg.Wait()
		asked := time.Now()
		if err := take(t.Context(), s, mb); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(asked); waited > 1001*time.Millisecond {
			t.Errorf("waited %s, want 1 s for its own", waited)
		}
	})
}
