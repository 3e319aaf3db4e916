package instance

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tetratelabs/wazero"
	"go.uber.org/goleak"

	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
	"github.com/wisp-serving/wisp/runtime/memory"
	"github.com/wisp-serving/wisp/runtime/meter"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A ration follows what the guest does down at once, and up slowly.
func TestRations(t *testing.T) {
	for _, tt := range []struct {
		name string
		last int64
		used time.Duration
		want int64
	}{
		{"the first", 0, 0, firstRation},
		{"as long as it should be", 100_000, rationTime, 100_000},
		{"ten times too long", 200_000, 10 * rationTime, 20_000},
		{"ten times too short", 100_000, rationTime / 10, 200_000},
		{"in no time", 100_000, 0, 200_000},
		{"far too long", 20_000, time.Second, leastRation},
		{"never too much", mostRation, rationTime / 10, mostRation},
	} {
		if got := nextRation(tt.last, tt.used); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}

// page is what the modules here have of memory.
const page = 64 << 10

// guest runs a module's _start in an instance of g, and returns how it ended.
func guest(t *testing.T, ctx context.Context, g *Group, module []byte) error {
	t.Helper()
	module, err := meter.Rewrite(module, meter.Options{Stack: firstStack})
	if err != nil {
		t.Fatal(err)
	}
	r := wazero.NewRuntime(t.Context())
	defer r.Close(t.Context())
	if err := Link(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	compiled, err := r.CompileModule(t.Context(), module)
	if err != nil {
		t.Fatal(err)
	}
	i, err := g.Start(ctx, memory.Needs{Min: page, Max: page})
	if err != nil {
		return err
	}
	defer i.End()
	m, err := r.InstantiateModule(i.Context(), compiled, wazero.NewModuleConfig())
	if err == nil {
		_ = m.Close(t.Context())
		return nil
	}
	if i.Err() == nil {
		t.Errorf("it ended by %v, want that the instance knows why", err)
	}
	return i.Err()
}

// What ends a guest is known afterwards, and nothing of it is left.
func TestEnds(t *testing.T) {
	h := NewHost(HostConfig{Cores: 1})
	defer h.Close()
	g := h.Group(Limits{Memory: 64 << 20})
	gone := errors.New("the client has gone")
	for _, tt := range []struct {
		name   string
		module []byte
		ctx    func() (context.Context, context.CancelFunc)
		want   error
	}{
		{"by itself", wasmtest.Command(wasmtest.Nothing), func() (context.Context, context.CancelFunc) {
			return context.WithCancel(t.Context())
		}, nil},
		{"by its deadline", wasmtest.Command(wasmtest.Loop), func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 5*time.Millisecond)
		}, context.DeadlineExceeded},
		{"by its client", wasmtest.Command(wasmtest.Loop), func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancelCause(t.Context())
			timer := time.AfterFunc(5*time.Millisecond, func() { cancel(gone) })
			return ctx, func() { timer.Stop(); cancel(nil) }
		}, gone},
		{"by its stack", wasmtest.Command(wasmtest.Recurse), func() (context.Context, context.CancelFunc) {
			return context.WithCancel(t.Context())
		}, ErrStack},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := tt.ctx()
			defer cancel()
			if err := guest(t, ctx, g, tt.module); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if used := g.Usage().Memory; used != 0 {
				t.Errorf("%d bytes are charged after the end", used)
			}
			if !free(t, h) {
				t.Error("it has kept its core")
			}
		})
	}
}

// A stack that the group's memory has no room for is none.
func TestStackIsCharged(t *testing.T) {
	h := NewHost(HostConfig{Cores: 1})
	defer h.Close()
	small := h.Group(Limits{Memory: firstStack + page + firstStack/2}) // no room for a second part of the stack
	if err := guest(t, t.Context(), small, wasmtest.Command(wasmtest.Recurse)); !errors.Is(err, ErrStack) {
		t.Errorf("got %v, want %v", err, ErrStack)
	}
	if used := small.Usage().Memory; used != 0 {
		t.Errorf("%d bytes are charged after the end", used)
	}
}

// Guests that nest their calls deeply get on no faster than their garbage may be
// made, and hold no core while they wait. Others don't notice.
func TestStacksHaveARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHost(HostConfig{Cores: 1})
		defer h.Close()
		deep, neighbour := h.Group(Limits{Memory: 64 << 20}), h.Group(Limits{Memory: 64 << 20})
		began := time.Now()
		const n = 50
		var all sync.WaitGroup
		for range n {
			all.Go(func() {
				if err := guest(t, t.Context(), deep, wasmtest.Command(wasmtest.Recurse)); !errors.Is(err, ErrStack) {
					t.Errorf("got %v, want %v", err, ErrStack)
				}
			})
		}
		synctest.Wait() // all of them wait
		if err := guest(t, t.Context(), neighbour, wasmtest.Command(wasmtest.Nothing)); err != nil {
			t.Error(err)
		}
		if waited := time.Since(began); waited > 0 {
			t.Errorf("a neighbour waited %s", waited)
		}
		all.Wait()
		const want = (n*2*mostStack - garbageBurst) * time.Second / garbageRate
		if took := time.Since(began); took < want-time.Second/10 || took > want+time.Second/10 {
			t.Errorf("all took %s, want %s", took, want)
		}
	})
}

// So do those that have large tables for nothing.
func TestStartsHaveARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHost(HostConfig{Cores: 1})
		defer h.Close()
		g := h.Group(Limits{Memory: 1 << 30})
		began := time.Now()
		for range 200 {
			i, err := g.Start(t.Context(), memory.Needs{Fixed: 1 << 20, Empty: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			i.End()
		}
		const want = (200<<20 - garbageBurst) * time.Second / garbageRate
		if took := time.Since(began); took < want-time.Second/10 || took > want+time.Second/10 {
			t.Errorf("200 starts took %s, want %s", took, want)
		}
		asked := time.Now()
		for range 1000 {
			i, err := g.Start(t.Context(), memory.Needs{Fixed: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			i.End()
		}
		if waited := time.Since(asked); waited > 0 {
			t.Errorf("others waited %s", waited)
		}
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(gone) })
		if _, err := g.Start(ctx, memory.Needs{Fixed: 512 << 20, Empty: 512 << 20}); !errors.Is(err, gone) {
			t.Errorf("got %v, want the cause", err)
		}
		if used := g.Usage().Memory; used != 0 {
			t.Errorf("%d bytes are charged after the end", used)
		}
	})
}

// A guest whose deadline comes while it waits for more stack ends then.
func TestEndsWhileItWaitsForStack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHost(HostConfig{Cores: 1})
		defer h.Close()
		g := h.Group(Limits{Memory: 64 << 20})
		if !g.garbage.Try(garbageBurst) {
			t.Fatal("there is no burst")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		began := time.Now()
		if err := guest(t, ctx, g, wasmtest.Command(wasmtest.Recurse)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
		}
		if late := time.Since(began) - time.Millisecond; late != 0 {
			t.Errorf("it ended %s after its deadline", late)
		}
		if !free(t, h) {
			t.Error("it has kept its core")
		}
	})
}

// Whoever waits for something else lends its core to others.
func TestReleaseAndAcquire(t *testing.T) {
	h := NewHost(HostConfig{Cores: 1})
	defer h.Close()
	g := h.Group(Limits{Memory: 64 << 20})
	ctx, cancel := context.WithCancel(t.Context())
	first, err := g.Start(ctx, memory.Needs{})
	if err != nil {
		t.Fatal(err)
	}
	first.Release()
	second, err := g.Start(t.Context(), memory.Needs{}) // would wait for ever
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	first.Acquire() // without a core: its context has ended
	first.End()
	second.End()
	if !free(t, h) {
		t.Error("a core is missing, or there is one too many")
	}
}

// free is whether a host's one core can be had, and no other.
func free(t *testing.T, h *Host) bool {
	t.Helper()
	g := h.Group(Limits{Memory: 1 << 20})
	i, err := g.Start(t.Context(), memory.Needs{})
	if err != nil {
		t.Fatal(err)
	}
	defer i.End()
	gone, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err = g.Start(gone, memory.Needs{})
	return err != nil
}
