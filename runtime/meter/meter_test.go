package meter_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	goruntime "runtime"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
	"github.com/wisp-serving/wisp/runtime/meter"
)

// errSpent ends a guest in these tests, as a deadline would.
var errSpent = errors.New("the guest's time is up")

// host runs rewritten modules and counts what they ask for. It ends a guest at
// the given number of rations.
type host struct {
	runtime wazero.Runtime
	ration  uint32
	most    int
	yields  int
	// stack is what is added, one after the other; then the guest ends.
	stack []uint32
}

func newHost(t *testing.T, ration uint32, most int) *host {
	h := &host{ration: ration, most: most}
	h.runtime = wazero.NewRuntime(t.Context())
	t.Cleanup(func() { _ = h.runtime.Close(context.Background()) })
	yield := func(_ context.Context, reason uint32) uint32 {
		if reason == meter.Exhausted {
			if len(h.stack) == 0 {
				panic(errExhausted)
			}
			more := h.stack[0]
			h.stack = h.stack[1:]
			return more
		}
		if h.yields++; h.yields > h.most {
			panic(errSpent)
		}
		return h.ration
	}
	_, err := h.runtime.NewHostModuleBuilder(meter.HostModule).NewFunctionBuilder().WithFunc(yield).Export(meter.Yield).Instantiate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) instantiate(t *testing.T, module []byte, o meter.Options) (api.Module, error) {
	t.Helper()
	rewritten, err := meter.Rewrite(module, o)
	if err != nil {
		t.Fatal(err)
	}
	return h.runtime.InstantiateWithConfig(t.Context(), rewritten, wazero.NewModuleConfig().WithStartFunctions().WithName(""))
}

// TestGuestsCallTheHost runs what would hold a thread, or take all stack, for
// ever.
func TestGuestsCallTheHost(t *testing.T) {
	const (
		table  = "\x04\x04\x01\x70\x00\x01"             // one function reference
		filled = "\x09\x07\x01\x00\x41\x00\x0b\x01\x00" // which is to function 0
	)
	indirect := []byte{0x41, 0, 0x11, 0, 0} // i32.const 0; call_indirect
	for _, tt := range []struct {
		name   string
		module []byte
		want   error
	}{
		{"a loop", wasmtest.Command(wasmtest.Loop), errSpent},
		{"recursion", wasmtest.Command(wasmtest.Recurse), errExhausted},
		{"recursion through a table", indirectly(table, filled, indirect), errExhausted},
		{"a loop of calls through a table", indirectly(table, filled, append([]byte{0x03, 0x40, 0x41, 1, 0x04, 0x40, 0x0c, 1, 0x0b}, 0x0b)), errSpent},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t, 10_000, 100)
			m, err := h.instantiate(t, tt.module, meter.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := m.ExportedFunction("_start").Call(t.Context()); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// indirectly is a command with a table, whose _start, function 0, is body.
func indirectly(table, elements string, body []byte) []byte {
	code := append([]byte{1, byte(len(body) + 2), 0}, body...)
	return wasmtest.Module(
		wasmtest.Section(1, 1, 0x60, 0, 0), wasmtest.Section(3, 1, 0), []byte(table),
		wasmtest.Section(7, append(append([]byte{1, 6}, "_start"...), 0, 0)...),
		[]byte(elements), wasmtest.Section(10, append(code, 0x0b)...))
}

func TestStartFunctionsCallTheHost(t *testing.T) {
	h := newHost(t, 10_000, 100)
	if _, err := h.instantiate(t, wasmtest.Starting(wasmtest.Loop), meter.Options{}); !errors.Is(err, errSpent) {
		t.Errorf("got %v, want %v", err, errSpent)
	}
}

// TestStackIsWholeForEachCall calls an export that has used up its stack before.
func TestStackIsWholeForEachCall(t *testing.T) {
	h := newHost(t, meter.MaxRation, 100)
	m, err := h.instantiate(t, wasmtest.Command(wasmtest.Recurse), meter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := m.ExportedFunction("_start").Call(t.Context()); !errors.Is(err, errExhausted) {
			t.Errorf("got %v, want %v", err, errExhausted)
		}
	}
}

// TestStackIsAddedTo grants more stack, for as long as the instance lives.
func TestStackIsAddedTo(t *testing.T) {
	// _start calls itself as often as the global says that is left of 1000 times.
	deep := wasmtest.Module(
		wasmtest.Section(1, 1, 0x60, 0, 0), wasmtest.Section(3, 1, 0),
		wasmtest.Section(6, 1, i32, 1, 0x41, 0xe8, 7, 0x0b),
		wasmtest.Section(7, append(append([]byte{1, 6}, "_start"...), 0, 0)...),
		wasmtest.Section(10, 1, 20, 0,
			0x23, 0, 0x41, 1, 0x6b, 0x24, 0, // one less
			0x23, 0, 0x04, 0x40, 0x10, 0, 0x0b, // again, unless that is all
			0x41, 1, 0x24, 0, // the next call ends at once
			0x0b))
	h := newHost(t, meter.MaxRation, 100)
	h.stack = []uint32{10 << 10, 10 << 10, 1 << 20, 0}
	m, err := h.instantiate(t, deep, meter.Options{Stack: 10 << 10})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := m.ExportedFunction("_start").Call(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if len(h.stack) != 1 {
		t.Errorf("got %d grants left, want one", len(h.stack))
	}
	h.stack = []uint32{0}
	m, err = h.instantiate(t, deep, meter.Options{Stack: 10 << 10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.ExportedFunction("_start").Call(t.Context()); err == nil || !strings.Contains(err.Error(), "unreachable") {
		t.Errorf("got %v when nothing is added, want a trap", err)
	}
}

// TestStackOfLargeFrames recurs with many values kept across the call, of which
// the code says little: it has to end before the engine gives up.
func TestStackOfLargeFrames(t *testing.T) {
	const values = 1000
	var body []byte
	for range values {
		body = append(body, 0x20, 0, 0x41, 0, 0xfd, 0x1c, 0) // local.get 0; i32.const 0; i32x4.replace_lane 0
		body = append(body, 0x22, 0)                         // local.tee 0
	}
	body = append(body, 0x20, 0, 0x10, 0) // local.get 0; call 0
	for range values {
		body = append(body, 0xfd, 0x51) // v128.xor
	}
	body = append(body, 0x0b)
	start := []byte{0, 0xfd, 0x0c, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0x10, 0, 0x1a, 0x0b}
	code := binary.AppendUvarint([]byte{2}, uint64(len(body)+1))
	code = append(append(code, 0), body...)
	code = append(append(code, byte(len(start))), start...)
	module := wasmtest.Module(
		wasmtest.Section(1, 2, 0x60, 1, 0x7b, 1, 0x7b, 0x60, 0, 0), wasmtest.Section(3, 2, 0, 1),
		wasmtest.Section(7, append(append([]byte{1, 6}, "_start"...), 0, 1)...), wasmtest.Section(10, code...))
	h := newHost(t, meter.MaxRation, 100)
	m, err := h.instantiate(t, module, meter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.ExportedFunction("_start").Call(t.Context()); !errors.Is(err, errExhausted) || strings.Contains(err.Error(), "wasm error") {
		t.Errorf("got %v, want %v", err, errExhausted)
	}
}

// TestBulkOperationsYield fills memory of 6 MiB with one instruction.
func TestBulkOperationsYield(t *testing.T) {
	const pages, ration = 100, 10_000
	fill := []byte{0x41, 0, 0x41, 7, 0x41, 0x80, 0x80, 0x80, 3, 0xfc, 11, 0} // 6 MiB of 7
	body := append([]byte{1, byte(len(fill) + 2), 0}, fill...)
	module := wasmtest.Module(
		wasmtest.Section(1, 1, 0x60, 0, 0), wasmtest.Section(3, 1, 0), wasmtest.Section(5, 1, 0, pages),
		wasmtest.Section(7, append(append([]byte{2, 6}, "_start"...), 0, 0, 1, 'm', 2, 0)...),
		wasmtest.Section(10, append(body, 0x0b)...))
	h := newHost(t, ration, 1000)
	m, err := h.instantiate(t, module, meter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.ExportedFunction("_start").Call(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := 6 << 20 / 8 / ration; h.yields < want {
		t.Errorf("got %d calls of the host, want at least %d", h.yields, want)
	}
	filled, _ := m.ExportedMemory("m").Read(0, pages<<16)
	if got := strings.Count(string(filled), "\x07"); got != 6<<20 {
		t.Errorf("got %d bytes written, want %d", got, 6<<20)
	}
}

// TestTablesAreBoundedTogether grows two tables until they don't any more, and looks at
// how many entries they have come to.
func TestTablesAreBoundedTogether(t *testing.T) {
	grow := func(table byte) []byte { // by 10, until that fails
		return []byte{0x03, 0x40, 0xd0, 0x70, 0x41, 10, 0xfc, 15, table, 0x41, 0x7f, 0x47, 0x0d, 0, 0x0b}
	}
	body := append(grow(0), grow(1)...)
	body = append(body, 0xfc, 16, 0, 0xfc, 16, 1, 0x6a) // table.size, both; i32.add
	module := wasmtest.Module(
		wasmtest.Section(1, 1, 0x60, 0, 1, 0x7f), wasmtest.Section(3, 1, 0),
		wasmtest.Section(4, 3, 0x70, 0, 5, 0x70, 0, 1, 0x70, 1, 4, 4),
		wasmtest.Section(7, append(append([]byte{1, 6}, "_start"...), 0, 0)...),
		wasmtest.Section(10, append(append([]byte{1, byte(len(body) + 2), 0}, body...), 0x0b)...))
	for _, tt := range []struct {
		options meter.Options
		want    uint64
	}{
		{meter.Options{Table: 1000}, 5 + 490 + 1 + 490},
		{meter.Options{TableGrowth: 100}, 5 + 50 + 1 + 50},
	} {
		h := newHost(t, meter.MaxRation, 1000)
		m, err := h.instantiate(t, module, tt.options)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.ExportedFunction("_start").Call(t.Context())
		if err != nil {
			t.Fatal(err) // it would loop for ever
		}
		if got[0] != tt.want {
			t.Errorf("%+v: got %d entries, want %d", tt.options, got[0], tt.want)
		}
	}
	var limit *meter.LimitError
	if _, err := meter.Rewrite(module, meter.Options{Table: 9}); !errors.As(err, &limit) || limit.Got != 10 || limit.Max != 9 {
		t.Errorf("got %v, want 10 entries of 9", err)
	}
}

// TestTablesAreBoundedByFunctions declares as many entries as are allowed without
// options, for a module with two functions, and one more.
func TestTablesAreBoundedByFunctions(t *testing.T) {
	const most = 1<<16 + 2
	for entries, want := range map[byte]uint64{2: 0, 3: most + 1} {
		module := wasmtest.Module(
			wasmtest.Section(1, 1, 0x60, 0, 0), wasmtest.Section(3, 2, 0, 0),
			wasmtest.Section(4, 1, 0x70, 0, 0x80|entries, 0x80, 0x04),
			wasmtest.Section(10, 2, 2, 0, 0x0b, 2, 0, 0x0b))
		var got uint64
		var limit *meter.LimitError
		if _, err := meter.Rewrite(module, meter.Options{}); errors.As(err, &limit) {
			got = limit.Got
		} else if err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%d entries: refused for %d, want %d", most-2+int(entries), got, want)
		}
	}
}

// TestReferencesTakeNoMemory makes a million references to a function, each of
// which the engine would keep.
func TestReferencesTakeNoMemory(t *testing.T) {
	body := []byte{0x03, 0x40, 0xd2, 0, 0x1a, 0x0c, 0, 0x0b} // loop; ref.func 0; drop; br 0; end
	h := newHost(t, 100_000, 100)
	m, err := h.instantiate(t, wasmtest.Command(body), meter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var before, after goruntime.MemStats
	goruntime.ReadMemStats(&before)
	if _, err := m.ExportedFunction("_start").Call(t.Context()); !errors.Is(err, errSpent) {
		t.Fatal(err)
	}
	goruntime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
		t.Errorf("got %d bytes allocated", got)
	}
}

func TestRewriteIsDeterministic(t *testing.T) {
	module, err := wasmtest.Puppet()
	if err != nil {
		t.Fatal(err)
	}
	first, err := meter.Rewrite(module, meter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		again, err := meter.Rewrite(module, meter.Options{})
		if err != nil || !bytes.Equal(first, again) {
			t.Fatalf("got another module: %v", err)
		}
	}
}

func TestMemoryAboveItsLimit(t *testing.T) {
	_, err := meter.Rewrite(wasmtest.Memory(100), meter.Options{MemoryPages: 99})
	var got *meter.MemoryError
	if !errors.As(err, &got) || *got != (meter.MemoryError{Minimum: 100, Limit: 99}) {
		t.Errorf("got %v, want 100 pages of 99", err)
	}
	if _, err := meter.Rewrite(wasmtest.Memory(100), meter.Options{MemoryPages: 100}); err != nil {
		t.Errorf("got %v at the limit", err)
	}
}

func TestRewriteRefuses(t *testing.T) {
	types, functions := wasmtest.Section(1, 1, 0x60, 0, 0), wasmtest.Section(3, 1, 0)
	code := func(body ...byte) []byte {
		return wasmtest.Module(types, functions, wasmtest.Section(10, append([]byte{1, byte(len(body) + 1), 0}, body...)...))
	}
	again, err := meter.Rewrite(wasmtest.Command(wasmtest.Nothing), meter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		module []byte
		want   string
	}{
		{"a component", wasmtest.Component, "not a core wasm module"},
		{"what is rewritten", again, `import from module "wisp"`},
		{"a section", wasmtest.Module([]byte{14, 0}), "offset 0x8: section 14 isn't known"},
		{"an opcode", code(0xff, 0x0b), "opcode 0xff isn't known"},
		{"a relaxed vector opcode", code(0xfd, 0x80, 0x02, 0x0b), "opcode 0xfd 0x100 isn't known"},
		{"a vector opcode that the engine reads as another", code(0xfd, 0x80, 0x00, 0x0b), "opcode 0xfd 0x0 isn't known"},
		{"the meter's function", code(0x10, 1, 0x0b), "function 1 isn't there"},
		{"the meter's global", code(0x23, 0, 0x1a, 0x0b), "global 0 isn't there"},
		{"the meter's local", code(0x20, 0, 0x1a, 0x0b), "local 0 isn't there"},
		{"a label that the meter would add", code(0x03, 0x40, 0x0c, 2, 0x0b, 0x0b), "label 2 isn't there"},
		{"the meter's table", code(0x41, 0, 0x25, 0, 0x1a, 0x0b), "table 0 isn't there"},
		{"code behind the end", code(0x0b, 0x01, 0x0b), "code after the function's end"},
		{"a block without end", code(0x02, 0x40, 0x0b), "function ends within a block"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := meter.Rewrite(tt.module, meter.Options{}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want %q", err, tt.want)
			}
		})
	}
}
