package memory

import (
	"context"
	"errors"
	"testing"
)

// TestCommon is about memory that two sandboxes hold together.
func TestCommon(t *testing.T) {
	pool := NewPool(0)
	defer pool.Close()
	small, large := NewBudget(pool, 100), NewBudget(pool, 1000)
	c := NewCommon(500)
	if !c.Hold(50) {
		t.Fatal("no room without anybody who has joined")
	}
	leaveSmall, leaveLarge := c.Join(small), c.Join(large)
	if small.Used() != 50 || large.Used() != 50 {
		t.Errorf("got %d and %d used, want what is held counted in both", small.Used(), large.Used())
	}
	if c.Hold(51) {
		t.Error("more was held than the smaller budget has")
	}
	if large.Used() != 50 {
		t.Errorf("got %d used by the larger, want that a refusal counts nothing", large.Used())
	}
	limit := new(LimitError)
	if _, err := small.Reserve(t.Context(), Needs{Fixed: 60}); !errors.As(err, &limit) || limit.Common != 50 {
		t.Errorf("got %v, want an instance refused that has no room beside it", err)
	}
	instance, err := small.Reserve(t.Context(), Needs{Fixed: 40})
	if err != nil {
		t.Fatal(err)
	}
	if c.Hold(20) {
		t.Error("more was held than an instance leaves")
	}

	// One that waits for room gets it when less is held.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	got := make(chan error, 1)
	go func() {
		next, err := small.Reserve(ctx, Needs{Fixed: 30})
		if err == nil {
			next.Release()
		}
		got <- err
	}()
	c.Hold(-50)
	if err := <-got; err != nil {
		t.Error(err)
	}

	instance.Release()
	leaveSmall()
	if !c.Hold(500) || c.Hold(1) {
		t.Error("its own limit doesn't hold")
	}
	leaveLarge()
	if small.Used() != 0 || large.Used() != 0 {
		t.Errorf("got %d and %d used after all have left", small.Used(), large.Used())
	}
}
