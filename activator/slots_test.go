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
	s := newSlots(queueLimits{depth: 10, bytes: 1 << 20})
	s.add("a", 2, nothing, false)
	first, second := s.try(false), s.try(false)
	if first == nil || second == nil {
		t.Fatal("two slots of a target with concurrency 2: got none")
	}
	if s.try(false) != nil {
		t.Fatal("a third slot of a target with concurrency 2")
	}
	s.release(first)
	if s.try(false) == nil {
		t.Fatal("no slot after a release")
	}
}

func TestSlotsPreferTheLeastBusyTarget(t *testing.T) {
	s := newSlots(queueLimits{depth: 10, bytes: 1 << 20})
	s.add("a", 0, nothing, false)
	s.add("b", 0, nothing, false)
	seen := map[types.UID]int{}
	for range 10 {
		seen[s.try(false).id]++
	}
	if seen["a"] != 5 || seen["b"] != 5 {
		t.Fatalf("10 requests over two targets: got %v, want 5 each", seen)
	}
}

func TestSlotsWait(t *testing.T) {
	t.Run("first come first served", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSlots(queueLimits{depth: 10, bytes: 1 << 20})
			s.add("a", 1, nothing, false)
			held := s.try(false)
			var order []int
			for i := range 3 {
				go func() {
					got, err := s.wait(t.Context(), false, 1, func() {})
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
			s := newSlots(queueLimits{depth: 10, bytes: 1 << 20})
			granted := make(chan *target, 1)
			go func() {
				got, _ := s.wait(t.Context(), false, 1, func() {})
				granted <- got
			}()
			synctest.Wait()
			s.add("a", 1, nothing, false)
			if s.try(false) != nil {
				t.Error("a newcomer got the slot that was waited for")
			}
			s.release(<-granted)
		})
	})
	t.Run("an added target ends the wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSlots(queueLimits{depth: 10, bytes: 1 << 20})
			go s.add("late", 1, nothing, false)
			got, err := s.wait(t.Context(), false, 1, func() {})
			if err != nil || got.id != "late" {
				t.Errorf("got %v, %v, want the target that came late", got, err)
			}
		})
	})
	t.Run("a full queue refuses without waiting", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSlots(queueLimits{depth: 1, bytes: 1 << 20})
			ctx, cancel := context.WithCancel(t.Context())
			go s.wait(ctx, false, 1, func() {})
			synctest.Wait()
			if _, err := s.wait(t.Context(), false, 1, func() {}); !errors.Is(err, errQueueFull) {
				t.Errorf("got %v, want errQueueFull", err)
			}
			cancel()
		})
	})
	t.Run("who gives up leaves the line", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSlots(queueLimits{depth: 1, bytes: 1 << 20})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := s.wait(ctx, false, 1, func() {}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want the deadline's error", err)
			}
			if o := s.occupancy(); o.waiting != 0 {
				t.Errorf("%d still wait", o.waiting)
			}
			s.add("a", 1, nothing, false)
			if s.try(false) == nil {
				t.Error("the slot went to who had given up")
			}
		})
	})
}

func TestSlotsRemovedTargetTakesNoMore(t *testing.T) {
	s := newSlots(queueLimits{depth: 10, bytes: 1 << 20})
	s.add("a", 1, nothing, false)
	held := s.try(false)
	s.remove("a")
	s.release(held)
	if s.try(false) != nil {
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
	s := newSlots(queueLimits{depth: 10, bytes: 1 << 20})
	s.add("a", 2, nothing, false)
	first, second := s.try(false), s.try(false)
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

func TestSlotsElsewhere(t *testing.T) {
	const other = "10.0.0.2:8012"
	t.Run("come after those here", func(t *testing.T) {
		s := newSlots(queueLimits{depth: 10, bytes: 1 << 20})
		s.setElsewhere(map[string]int{other: 1})
		s.add("here", 1, nothing, false)
		if got := s.try(false); got.id != "here" {
			t.Errorf("got %+v first, want the function here", got)
		}
		if got := s.try(false); got == nil || got.address != other {
			t.Errorf("got %+v second, want the other node", got)
		}
		if got := s.try(false); got != nil {
			t.Errorf("got %+v, want neither to take more than its concurrency", got)
		}
	})
	t.Run("are not for what another node has sent", func(t *testing.T) {
		s := newSlots(queueLimits{depth: 10, bytes: 1 << 20})
		s.setElsewhere(map[string]int{other: 0})
		if got := s.try(true); got != nil {
			t.Errorf("got %+v for a request that may go no further", got)
		}
		if !s.cold(true) || s.cold(false) {
			t.Error("a node with ready pods counts for requests from outside, and for them alone")
		}
	})
	t.Run("keep their load when they change", func(t *testing.T) {
		s := newSlots(queueLimits{depth: 10, bytes: 1 << 20})
		s.setElsewhere(map[string]int{other: 1})
		first := s.try(false)
		s.setElsewhere(map[string]int{other: 2, "10.0.0.3:8012": 0})
		if got := s.try(false); got.address == other {
			t.Error("the busier node was chosen")
		}
		s.setElsewhere(nil)
		s.release(first)
		if got := s.try(false); got != nil {
			t.Errorf("got %+v, want none: the nodes have no pods any more", got)
		}
	})
	t.Run("rest when they can't be reached", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newSlots(queueLimits{depth: 10, bytes: 1 << 20})
			s.setElsewhere(map[string]int{other: 0})
			got := s.try(false)
			s.release(got)
			s.suspend(got, time.Now().Add(time.Second))
			if !s.cold(false) || s.try(false) != nil {
				t.Error("a node that can't be reached is chosen again")
			}
			go func() {
				if got, err := s.wait(t.Context(), false, 1, func() {}); err != nil || got.address != other {
					t.Errorf("got %+v, %v, want the node once its rest is over", got, err)
				}
			}()
			time.Sleep(time.Second)
			if s.look(time.Now()) {
				t.Error("still stranded")
			}
		})
	})
}

// TestSlotsLines is about who gets a slot when requests wait of which some may
// use functions of this node only.
func TestSlotsLines(t *testing.T) {
	const other = "10.0.0.2:8012"
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(queueLimits{depth: 10, bytes: 1 << 20})
		granted := make(chan string, 10)
		wait := func(name string, local bool) {
			go func() {
				got, err := s.wait(t.Context(), local, 1, func() {})
				if err != nil {
					t.Error(err)
				}
				granted <- name + " " + string(got.id) + got.address
			}()
			synctest.Wait()
		}
		expect := func(want string) {
			t.Helper()
			synctest.Wait()
			if len(granted) == 0 {
				t.Fatalf("nobody got a slot, want %s", want)
			}
			if got := <-granted; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		wait("sent-1", true)
		wait("own-2", false)
		wait("sent-3", true)
		s.setElsewhere(map[string]int{other: 1})
		expect("own-2 " + other) // past who came first, and may not go there
		wait("own-4", false)
		s.add("a", 1, nothing, false)
		expect("sent-1 a")
		s.add("b", 1, nothing, false)
		expect("sent-3 b")
		s.add("c", 1, nothing, false)
		expect("own-4 c")
	})
}

// TestSlotsOfOneFunction is about requests that only one function may take.
func TestSlotsOfOneFunction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(queueLimits{depth: 100, bytes: 1 << 20})
		if _, err := s.waitFor(t.Context(), "a", 1); !errors.Is(err, errGone) {
			t.Errorf("got %v for a function that isn't there, want errGone", err)
		}
		s.add("a", 1, nothing, false)
		s.add("b", 1, nothing, false)
		a, err := s.waitFor(t.Context(), "a", 1)
		if err != nil || a.id != "a" {
			t.Fatalf("got %+v, %v, want a slot of a", a, err)
		}
		b := s.try(false) // b's, which is the only one left

		outcomes := make(chan string, 2*ownDepth)
		queue := func(name string, wait func() (*target, error)) {
			go func() {
				got, err := wait()
				if err != nil {
					outcomes <- name + ": " + err.Error()
					return
				}
				outcomes <- name + " has " + string(got.id)
			}()
			synctest.Wait()
		}
		expect := func(want string) {
			t.Helper()
			synctest.Wait()
			select {
			case got := <-outcomes:
				if got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			default:
				t.Errorf("nothing happened, want %q", want)
			}
		}
		ofA := func() (*target, error) { return s.waitFor(t.Context(), "a", 1) }
		anyone := func() (*target, error) { return s.wait(t.Context(), false, 1, func() {}) }
		queue("1", ofA)
		queue("2", anyone)
		queue("3", ofA)
		s.release(b)
		expect("2 has b") // past who came first, and may not go there
		s.release(a)
		expect("1 has a")
		queue("4", anyone)
		s.release(a)
		expect("3 has a") // it came before 4
		s.release(a)
		expect("4 has a")

		ctx, cancel := context.WithCancel(t.Context())
		for range ownDepth {
			queue("5", func() (*target, error) { return s.waitFor(ctx, "a", 1) })
		}
		if _, err := s.waitFor(t.Context(), "a", 1); !errors.Is(err, errQueueFull) {
			t.Errorf("got %v behind %d others, want errQueueFull", err, ownDepth)
		}
		cancel()
		for range ownDepth {
			expect("5: " + context.Canceled.Error())
		}
		queue("6", ofA)
		s.remove("a")
		expect("6: " + errGone.Error())
		if s.held != 0 {
			t.Errorf("%d bytes are held by nobody", s.held)
		}
	})
}

func TestSlotsBoundWhatWaitersHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(queueLimits{depth: 10, bytes: 100})
		ctx, cancel := context.WithCancel(t.Context())
		go s.wait(ctx, false, 1000, func() {}) // the only one may be of any size
		synctest.Wait()
		if _, err := s.wait(ctx, false, 1, func() {}); !errors.Is(err, errQueueFull) {
			t.Errorf("got %v beside 1000 of 100 bytes, want errQueueFull", err)
		}
		s.add("a", 1, nothing, false)
		synctest.Wait()
		go s.wait(ctx, false, 60, func() {})
		synctest.Wait()
		if _, err := s.wait(ctx, false, 60, func() {}); !errors.Is(err, errQueueFull) {
			t.Errorf("got %v beside 60 of 100 bytes, want errQueueFull", err)
		}
		cancel()
		synctest.Wait()
		if s.held != 0 {
			t.Errorf("%d bytes are held by nobody", s.held)
		}
	})
}

func TestSlotsCountWhatHasAPod(t *testing.T) {
	s := newSlots(queueLimits{depth: 10, bytes: 1 << 20})
	s.add("early", 0, nothing, true)
	if got, want := s.occupancy(), (occupancy{targets: 1}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	s.adopted("early")
	s.setElsewhere(map[string]int{"a": 0})
	if got, want := s.occupancy(), (occupancy{targets: 1, pods: 2}); got != want {
		t.Errorf("after the adoption, got %+v, want %+v", got, want)
	}
}

// TestSlotsHammer lets many requests come, give up and go while targets come
// and go, and holds that no target ever has more than its concurrency and that
// no slot is lost.
func TestSlotsHammer(t *testing.T) {
	const concurrency = 3
	s := newSlots(queueLimits{depth: 1000, bytes: 1 << 20})
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
				s.add(id, concurrency, nothing, false)
				if i > 0 {
					s.remove(id)
				}
			}
		})
	}
	s.add(ids[0], concurrency, nothing, false)
	for range 16 {
		requests.Go(func() {
			for n := range 500 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(n%3)*time.Microsecond+time.Nanosecond)
				got, err := s.wait(ctx, false, 1, func() {})
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
		if s.try(false) == nil {
			t.Fatal("a slot was lost")
		}
	}
	if s.try(false) != nil {
		t.Fatal("a slot was gained")
	}
}
