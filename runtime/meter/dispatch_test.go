package meter_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
	"github.com/wisp-serving/wisp/runtime/meter"
)

// dispatching is a module that exports f(P, n), in which there is a dispatch.
func dispatching(pieces ...[]byte) []byte { return function(dispatch(pieces...)) }

// again is the same in a loop, whose second turn is if n isn't 0.
func again(pieces ...[]byte) []byte {
	return function(join([]byte{0x03, 0x40}, dispatch(pieces...), once(0x0c, 1), []byte{0x0b}))
}

// dispatch is a loop that begins with a br_table by P, into the pieces of code behind
// its blocks, or to a return. Each piece notes in global 0 that it ran.
func dispatch(pieces ...[]byte) []byte {
	count := byte(len(pieces))
	body := []byte{0x03, 0x40}
	body = append(body, bytes.Repeat([]byte{0x02, 0x40}, len(pieces)+1)...) // one for all other values
	body = append(body, 0x20, 0, 0x0e, count)
	for i := range count {
		body = append(body, i+1)
	}
	body = append(body, 0, 0x0b, 0x20, 2, 0x0f)
	for i, piece := range pieces {
		body = append(body, 0x0b, 0x23, 0, 0x41, 8, 0x6c, 0x41, byte(i+1), 0x6a, 0x24, 0)
		body = append(body, piece...)
	}
	return append(body, 0x0b)
}

// function is a module that exports f(P, n), which does what code says, and returns a
// local that code can set, with index 2.
func function(code []byte) []byte {
	body := join([]byte{1, 1, i32}, code, []byte{0x20, 2, 0x0b})
	code = append(binary.AppendUvarint([]byte{1}, uint64(len(body))), body...)
	return wasmtest.Module(
		wasmtest.Section(1, 1, 0x60, 2, i32, i32, 1, i32), wasmtest.Section(3, 1, 0),
		wasmtest.Section(6, 1, i32, 1, 0x41, 0, 0x0b),
		wasmtest.Section(7, 2, 1, 'f', 0, 0, 2, 'g', '0', 3, 0),
		wasmtest.Section(10, code...))
}

// jumpTo is a jump by the dispatch to the piece with the given number, from
// within so many blocks of the loop.
func jumpTo(piece, depth byte) []byte { return []byte{0x41, piece, 0x21, 0, 0x0c, depth} }

func join(code ...[]byte) []byte { return bytes.Join(code, nil) }

// set sets P.
func set(to byte) []byte { return []byte{0x41, to, 0x21, 0} }

// keep notes P in global 0.
var keep = []byte{0x23, 0, 0x41, 8, 0x6c, 0x20, 0, 0x6a, 0x24, 0}

// ifElse is what is done if n isn't 0, and what if it is.
func ifElse(then, otherwise []byte) []byte {
	if otherwise == nil {
		return join([]byte{0x20, 1, 0x04, 0x40}, then, []byte{0x0b})
	}
	return join([]byte{0x20, 1, 0x04, 0x40}, then, []byte{0x05}, otherwise, []byte{0x0b})
}

// jumpIf is a jump that is made if n isn't 0.
func jumpIf(piece, depth byte) []byte { return ifElse(jumpTo(piece, depth+1), nil) }

// once makes n 0, and goes on only if it was something else.
func once(code ...byte) []byte { return ifElse(join([]byte{0x41, 0, 0x21, 1}, code), nil) }

// TestDispatch compares, for each way in, what a function with a dispatch does plain
// and metered, and looks how many loops are left of it: none, if all its jumps lead ahead.
func TestDispatch(t *testing.T) {
	without, err := meter.Rewrite(wasmtest.Command(wasmtest.Nothing), meter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	added := countLoops(without) // in functions that the meter adds
	for _, tt := range []struct {
		name   string
		module []byte
		loops  bool // are left
	}{
		{"falls through", dispatching(nil, nil, nil), false},
		{"jumps ahead", dispatching(jumpTo(2, 2), nil, nil), false},
		{"jumps ahead or not", dispatching(jumpIf(2, 2), jumpIf(2, 1), nil), false},
		{"jumps by what all other values lead to", dispatching(jumpTo(9, 2), nil, nil), true},
		{"jumps back", dispatching(nil, once(jumpTo(0, 2)...), nil), true},
		{"jumps back and ahead", dispatching(jumpIf(2, 2), nil, once(jumpTo(1, 1)...)), true},
		{"jumps to where it is", dispatching(nil, once(jumpTo(1, 2)...), nil), true},
		{"jumps by a value that isn't known", dispatching([]byte{0x20, 1, 0x41, 1, 0x6a, 0x21, 0, 0x0c, 2}, nil, nil), true},
		{"jumps without setting the value", dispatching(once(0x0c, 3), nil, nil), true},
		{"jumps without setting the value, from where it wasn't", dispatching(jumpIf(2, 2), nil, once(0x0c, 1)), true},
		{"reads the value later", dispatching(jumpIf(2, 2), keep, keep), false},
		{"reads the value when it is set", dispatching(jumpIf(2, 2), join(set(5), keep), set(6)), false},
		{"reads the value where it may not be set", dispatching(jumpIf(2, 2), nil, join(ifElse(nil, set(5)), keep)), false},
		{"reads the value where it isn't set", dispatching(jumpIf(2, 2), nil, ifElse(keep, set(5))), false},
		{"reads the value, or sets it", dispatching(jumpIf(2, 2), nil, join([]byte{0x20, 1, 0x45, 0x04, 0x40}, set(5), []byte{0x05}, keep, []byte{0x0b})), false},
		{"jumps if, and does something else", dispatching(ifElse(jumpTo(2, 3), []byte{0x41, 7, 0x24, 0}), nil, nil), false},
		{"sets another local", dispatching(once(0x41, 2, 0x21, 2, 0x0c, 3), nil, nil), true},
		{"reads instead of setting", dispatching(once(0x41, 2, 0x20, 0, 0x0c, 3), nil, nil), true},
		{"sets the value and leaves a block of its own", dispatching(join([]byte{0x02, 0x40}, jumpTo(2, 0), []byte{0x0b}), nil, nil), false},
		{"sets the value and leaves a block of the dispatch", dispatching(ifElse(join(set(1), []byte{0x0c, 2}), nil), nil, nil), false},
		{"jumps out of blocks of its own", dispatching(join([]byte{0x02, 0x40, 0x02, 0x40}, jumpTo(2, 4), []byte{0x0b, 0x0b}), nil, nil), false},
		{"jumps into a block that has ended, behind one as deep", dispatching(nil, join([]byte{0x02, 0x40}, once(jumpTo(0, 3)...), []byte{0x0b}), nil), true},
		{"has a loop of its own", dispatching(join([]byte{0x03, 0x40}, once(0x0c, 1), []byte{0x0b}), jumpTo(2, 1), nil), true},
		{"is in a loop, for whose second turn a jump has set the value", again(jumpIf(2, 2), nil, nil), true},
		{"is before a block that is as deep", function(join(dispatch(jumpIf(1, 1), nil), []byte{0x02, 0x40, 0x0c, 0, 0x0b})), false},
		{"has code that is never reached", dispatching(join(jumpTo(1, 2), jumpTo(0, 2)), nil, nil), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rewritten, err := meter.Rewrite(tt.module, meter.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got := countLoops(rewritten) > added; got != tt.loops {
				t.Errorf("loops are left: %v, want %v", got, tt.loops)
			}
			plain, metered := newWorld(t, false), newWorld(t, true)
			if !plain.instantiate(tt.module) || !metered.instantiate(rewritten) {
				t.Fatal("it has no instance")
			}
			for p := range uint64(5) {
				for n := range uint64(2) {
					want, got := plain.run(p, n), metered.run(p, n)
					if got != want {
						t.Errorf("f(%d, %d) = %v metered, %v plain", p, n, got, want)
					}
				}
			}
		})
	}
}

// TestDispatchThatLeadsToItself is one that is endless.
func TestDispatchThatLeadsToItself(t *testing.T) {
	code := dispatch(jumpTo(9, 1), nil)
	table := []byte{0x0e, 2, 1, 2, 0} // to the pieces, and to the return
	h := newHost(t, 10_000, 100)
	m, err := h.instantiate(t, function(bytes.Replace(code, table, []byte{0x0e, 2, 1, 2, 3}, 1)), meter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.ExportedFunction("f").Call(t.Context(), 0, 0); !errors.Is(err, errSpent) {
		t.Errorf("got %v, want %v", err, errSpent)
	}
}

// TestDispatchWithoutLoopsCallsTheHost recurs from within one, 2^60 times.
func TestDispatchWithoutLoopsCallsTheHost(t *testing.T) {
	again := []byte{0x41, 0, 0x20, 1, 0x41, 1, 0x6b, 0x10, 0, 0x1a} // f(0, n-1)
	h := newHost(t, 10_000, 100)
	m, err := h.instantiate(t, dispatching(ifElse(join(again, again), nil)), meter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.ExportedFunction("f").Call(t.Context(), 0, 60); !errors.Is(err, errSpent) {
		t.Errorf("got %v, want %v", err, errSpent)
	}
}

func countLoops(module []byte) int { return bytes.Count(module, []byte{0x03, 0x40}) }

// ran is what f has returned, and in which order its pieces ran and what they kept, in
// octal.
type ran struct{ result, order uint64 }

func (w *world) run(args ...uint64) ran {
	w.t.Helper()
	results, err := w.module.ExportedFunction("f").Call(w.t.Context(), args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return ran{results[0], w.module.ExportedGlobal("g0").Get()}
}
