package activator

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

var nothing = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})

func TestSlotsAreAsManyAsConcurrency(t *testing.T) {
	s := newSlots(10)
	s.add("a", 2, nothing)
	first, second := s.try(), s.try()
	if first == nil || second == nil {
		t.Fatal("two slots of a target with concurrency 2: got none")
	}
	if s.try() != nil {
		t.Fatal("a third slot of a target with concurrency 2")
	}
	s.release(first)
	if s.try() == nil {
		t.Fatal("no slot after a release")
	}
}

func TestSlotsPreferTheLeastBusyTarget(t *testing.T) {
	s := newSlots(10)
	s.add("a", 0, nothing)
	s.add("b", 0, nothing)
	seen := map[types.UID]int{}
	for range 10 {
		seen[s.try().id]++
	}
	if seen["a"] != 5 || seen["b"] != 5 {
		t.Fatalf("10 requests over two targets: got %v, want 5 each", seen)
	}
}

func TestSlotsWait(t *testing.T) {
	t.Run("first come first served", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSlots(10)
			s.add("a", 1, nothing)
			held := s.try()
			var order []int
			for i := range 3 {
				go func() {
					got, err := s.wait(t.Context(), func() {})
					if err != nil {
						t.Error(err)
						return
					}
					order = append(order, i)
					s.release(got)
				}()
				synctest.Wait() // in line before the next one comes
			}
			s.release(held)
			synctest.Wait()
			if len(order) != 3 || order[0] != 0 || order[1] != 1 || order[2] != 2 {
				t.Errorf("got order %v, want [0 1 2]", order)
			}
		})
	})
	t.Run("nobody overtakes who waits", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSlots(10)
			granted := make(chan *target, 1)
			go func() {
				got, _ := s.wait(t.Context(), func() {})
				granted <- got
			}()
			synctest.Wait()
			s.add("a", 1, nothing)
			if s.try() != nil {
				t.Error("a newcomer got the slot that was waited for")
			}
			s.release(<-granted)
		})
	})
	t.Run("an added target ends the wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSlots(10)
			go s.add("late", 1, nothing)
			got, err := s.wait(t.Context(), func() {})
			if err != nil || got.id != "late" {
				t.Errorf("got %v, %v, want the target that came late", got, err)
			}
		})
	})
	t.Run("a full queue refuses without waiting", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSlots(1)
			ctx, cancel := context.WithCancel(t.Context())
			go s.wait(ctx, func() {})
			synctest.Wait()
			if _, err := s.wait(t.Context(), func() {}); !errors.Is(err, errQueueFull) {
				t.Errorf("got %v, want errQueueFull", err)
			}
			cancel()
		})
	})
	t.Run("who gives up leaves the line", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSlots(1)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := s.wait(ctx, func() {}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want the deadline's error", err)
			}
			if _, waiting := s.occupancy(); waiting != 0 {
				t.Errorf("%d still wait", waiting)
			}
			s.add("a", 1, nothing)
			if s.try() == nil {
				t.Error("the slot went to who had given up")
			}
		})
	})
}

func TestSlotsRemovedTargetTakesNoMore(t *testing.T) {
	s := newSlots(10)
	s.add("a", 1, nothing)
	held := s.try()
	s.remove("a")
	s.release(held)
	if s.try() != nil {
		t.Fatal("a removed target got a request")
	}
}

func TestSlotsRemovedTargetDrains(t *testing.T) {
	drained := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	s := newSlots(10)
	s.add("a", 2, nothing)
	first, second := s.try(), s.try()
	busy, _ := s.remove("a")
	s.release(first)
	if drained(busy) {
		t.Error("drained with a request left")
	}
	s.release(second)
	if !drained(busy) {
		t.Error("not drained after its last request")
	}
	if unknown, _ := s.remove("a"); !drained(unknown) {
		t.Error("an unknown target is not drained")
	}
}

// TestSlotsHammer lets many requests come, give up and go while targets come
// and go, and holds that no target ever has more than its concurrency and that
// no slot is lost.
func TestSlotsHammer(t *testing.T) {
	const concurrency = 3
	s := newSlots(1000)
	var inside [4]atomic.Int32
	var requests, churn sync.WaitGroup
	done := make(chan struct{})
	ids := []types.UID{"0", "1", "2", "3"}
	for i, id := range ids[1:] {
		churn.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				s.add(id, concurrency, nothing)
				if i > 0 {
					s.remove(id)
				}
			}
		})
	}
	s.add(ids[0], concurrency, nothing)
	for range 16 {
		requests.Go(func() {
			for n := range 500 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(n%3)*time.Microsecond+time.Nanosecond)
				got, err := s.wait(ctx, func() {})
				cancel()
				if err != nil {
					continue
				}
				if got.id == ids[0] {
					if n := inside[0].Add(1); n > concurrency {
						t.Errorf("%d requests in a target with concurrency %d", n, concurrency)
					}
					inside[0].Add(-1)
				}
				s.release(got)
			}
		})
	}
	requests.Wait()
	close(done)
	churn.Wait()
	for _, id := range ids[1:] {
		s.remove(id)
	}
	for range concurrency {
		if s.try() == nil {
			t.Fatal("a slot was lost")
		}
	}
	if s.try() != nil {
		t.Fatal("a slot was gained")
	}
}
