package meter_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
	"github.com/wisp-serving/wisp/runtime/meter"
)

// TestAccessesShareACheck looks for the one that is for all of them.
func TestAccessesShareACheck(t *testing.T) {
	const to = 100 // from base-8, which is the lowest
	code := []byte{
		0x20, first, 0x20, number, 0x36, 2, 0, // base[0] = n
		0x20, first, 0xad, 0x42, 40, 0x7c, 0xa7, 0x20, number, 0x36, 2, 48, // base[88] = n
		0x20, first, 0x41, 8, 0x6b, 0x22, first, 0x28, 2, 96, // base -= 8, base[96]
	}
	check := []byte{0x2d, 0, to - 1, 0x1a}
	for _, byGo := range []bool{true, false} {
		module := accesses(code, byGo)
		rewritten, err := meter.Rewrite(module, meter.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Contains(rewritten, check); got != byGo {
			t.Errorf("by Go: %v: a check for %d bytes is there: %v", byGo, to, got)
		}
		w := newWorld(t, true)
		if !w.instantiate(rewritten) {
			t.Fatal("it has no instance")
		}
		if got := w.outcome(256, 7); got != "7" {
			t.Errorf("by Go: %v: got %s, want what was stored", byGo, got)
		}
	}
}

// TestAddressesWrapAround at 4 GiB, as ever, unless Go's compiler made them.
func TestAddressesWrapAround(t *testing.T) {
	module := accesses([]byte{0x20, first, 0xad, 0x42, 16, 0x7c, 0xa7, 0x28, 2, 0}, false)
	rewritten, err := meter.Rewrite(module, meter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	plain, metered := newWorld(t, false), newWorld(t, true)
	if !plain.instantiate(module) || !metered.instantiate(rewritten) {
		t.Fatal("it has no instance")
	}
	if got, want := metered.outcome(1<<32-8, 0), plain.outcome(1<<32-8, 0); got != want {
		t.Errorf("got %s metered, %s as plain", got, want)
	}
}

// FuzzAccesses compares what code with many accesses to memory by few locals, as Go's
// compiler makes it, does plain and metered: well within memory, and at its end.
func FuzzAccesses(f *testing.F) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		choices := make([]byte, 10+random.IntN(300))
		for i := range choices {
			choices[i] = byte(random.Uint32())
		}
		f.Add(choices)
	}
	f.Fuzz(func(t *testing.T, choices []byte) {
		module := accessing(choices)
		rewritten, err := meter.Rewrite(module, meter.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, base := range []uint64{16 << 10, 65536 - 200, 65536 - 60, 65536 - 10} {
			plain, metered := newWorld(t, false), newWorld(t, true)
			if !plain.instantiate(module) {
				t.Fatal("the module isn't valid")
			}
			if !metered.instantiate(rewritten) {
				t.Fatal("only the plain module has an instance")
			}
			want, got := plain.outcome(base, uint64(len(choices))), metered.outcome(base, uint64(len(choices)))
			if got != want {
				t.Fatalf("f(%d, %d): got %s metered, want %s as plain", base, len(choices), got, want)
			}
			if strings.Contains(got, "out of bounds") {
				continue // the trap may have come before a store
			}
			if got, want := metered.state(), plain.state(); got != want {
				t.Fatalf("after f(%d, %d): got %s metered, want %s as plain", base, len(choices), got, want)
			}
		}
	})
}

func (w *world) outcome(args ...uint64) string {
	results, err := w.module.ExportedFunction("f").Call(w.t.Context(), args...)
	if err != nil {
		text, _, _ := strings.Cut(err.Error(), "\n")
		return text
	}
	return fmt.Sprint(results[0])
}

// The locals of what accessing makes.
const (
	first  = iota // a parameter: the base
	number        // one that isn't 0
	second        // another base
	sum           // what all that is read comes to
)

// accessing is a module with a function f(base, n), which ends soon. It is valid
// whatever the choices are.
func accessing(choices []byte) []byte {
	p := &program{choices: choices}
	p.emit(0x20, first, 0x21, second)
	for len(p.choices) > 0 {
		p.accessing(0)
	}
	p.emit(0x20, sum, 0xa7, 0x20, sum, 0x42, 32, 0x88, 0xa7, 0x73) // both halves
	return accesses(p.out, true)
}

// accesses is a module with a function f(base, n), which does what code says.
func accesses(code []byte, byGo bool) []byte {
	body := append(append([]byte{2, 1, i32, 1, i64}, code...), 0x0b)
	bodies := append(binary.AppendUvarint([]byte{2}, uint64(len(body))), body...)
	bodies = append(bodies, 10, 0, 0x20, 0, 0x04, 0x40, 0x00, 0x0b, 0x20, 0, 0x0b) // traps unless it is given 0
	data := append([]byte{1, 0, 0x41, 0, 0x0b}, binary.AppendUvarint(nil, 1<<16)...)
	for i := range 1 << 16 {
		data = append(data, byte(i*i>>3))
	}
	sections := [][]byte{
		wasmtest.Section(1, 2, 0x60, 2, i32, i32, 1, i32, 0x60, 1, i32, 1, i32), wasmtest.Section(3, 2, 0, 1),
		wasmtest.Section(5, 1, 1, 1, 2), wasmtest.Section(7, 2, 1, 'f', 0, 0, 1, 'm', 2, 0),
		wasmtest.Section(10, bodies...), wasmtest.Section(11, data...),
	}
	if byGo {
		sections = append(sections, wasmtest.Section(0, []byte(producers)...))
	}
	return wasmtest.Module(sections...)
}

// accessing emits a statement.
func (p *program) accessing(depth int) {
	base := []byte{first, second}[p.pick(4)/3]
	switch p.pick(16) {
	case 0, 1, 2, 3:
		p.from(base)
		load := p.pick(14)
		p.emit(0x28+byte(load), 0, byte(p.pick(128)))
		p.emit([][]byte{{0xad}, {}, {0xbc, 0xad}, {0xbd}, {0xad}, {0xad}, {0xad}, {0xad}, {}, {}, {}, {}, {}, {}}[load]...)
		p.emit(0x20, sum, 0x42, 33, 0x7e, 0x7c, 0x21, sum)
	case 4, 5, 6:
		p.from(base)
		p.emit(0x20, sum)
		store := p.pick(9)
		p.emit([][]byte{{0xa7}, {}, {0xa7, 0xbe}, {0xbf}, {0xa7}, {0xa7}, {}, {}, {}}[store]...)
		p.emit(0x36+byte(store), 0, byte(p.pick(128)))
	case 7, 8:
		p.emit(0x20, base, 0x41, 8, 0x6a+byte(p.pick(2)), 0x21, base)
	case 9:
		p.emit(0x20, base, 0x41, 24, 0x6a+byte(p.pick(2)), 0x22, base, 0x28, 0, byte(p.pick(128)), 0xad, 0x20, sum, 0x7c, 0x21, sum)
	case 10:
		p.emit(0x20, base, 0x21, first+second-base)
	case 11:
		p.emit(0x20, base, 0x41, 0xff, 1, 0x71, 0x21, base) // somewhere in the first 256 bytes
		p.emit(0x20, base, 0x41, 0x80, 0x80, 1, 0x6a, 0x21, base)
	case 12:
		p.emit(0x20, number, 0x20, sum, 0x42, byte(p.pick(64)), 0x88, 0xa7, 0x41, 1, 0x71, 0x6e, 0x1a) // may divide by 0
	case 13:
		p.emit(0x20, sum, 0x42, byte(p.pick(64)), 0x88, 0xa7, 0x41, 7, 0x71, 0x45, 0x10, 1, 0x1a) // may trap there
	case 14:
		p.emit(0x41, byte(p.pick(2)), 0x40, 0, 0x1a) // memory.grow
	default:
		p.emit(0x20, sum, 0x42, byte(p.pick(64)), 0x88, 0xa7, 0x41, 1, 0x71, 0x04, 0x40)
		for range p.pick(4) {
			if depth < deepest {
				p.accessing(depth + 1)
			}
		}
		if p.pick(4) == 0 {
			p.emit(0x41, 0, 0x0f) // return 0
		}
		p.emit(0x0b)
	}
}

// from emits a base, or a sum as Go's compiler makes it.
func (p *program) from(base byte) {
	p.emit(0x20, base)
	switch p.pick(4) {
	case 0, 1:
	case 2:
		p.emit(0xad, 0x42, byte(p.pick(64)), 0x7c, 0xa7)
	default:
		p.emit(0x41, byte(p.pick(64)), 0x6a)
	}
}
