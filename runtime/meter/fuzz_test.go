package meter_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"

	"github.com/wisp-serving/wisp/runtime/meter"
)

const allFeatures = api.CoreFeaturesV2 | experimental.CoreFeaturesExtendedConst | experimental.CoreFeaturesTailCall |
	experimental.CoreFeaturesThreads | experimental.CoreFeaturesExceptionHandling | experimental.CoreFeaturesTypedFunctionReferences

// FuzzRewrite holds that what the engine takes before it takes after, that what
// it refuses it still refuses, and that both then do the same.
func FuzzRewrite(f *testing.F) {
	dir, err := wazeroDir()
	if err != nil {
		f.Fatal(err)
	}
	seeds, err := filepath.Glob(filepath.Join(dir, "*/testdata/*.wasm"))
	if err != nil || len(seeds) == 0 {
		f.Fatalf("found %d modules: %v", len(seeds), err)
	}
	for _, path := range seeds {
		module, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		if len(module) < 4<<10 {
			f.Add(module)
		}
	}
	f.Fuzz(func(t *testing.T, module []byte) {
		if !meter.Decodes(module) {
			// The engine might take it, and gigabytes.
			return
		}
		rewritten, err := meter.Rewrite(module, meter.Options{})
		if err != nil {
			if !meant(err) && !hasCustom(module) && compiles(t, module) {
				t.Errorf("got %v, of a module that the engine takes", err)
			}
			return
		}
		if hasCustom(module) {
			// The engine refuses what wasm ignores, and takes what names say there
			// is of them, which may be gigabytes.
			return
		}
		before, after := compiles(t, module), compiles(t, rewritten)
		if before != after {
			t.Fatalf("the engine takes it: before %v, after %v", before, after)
		}
		if before {
			compare(t, module, rewritten)
		}
	})
}

// hasCustom says whether a module that decodes has a custom section.
func hasCustom(module []byte) bool {
	for id := range sections(module) {
		if id == 0 {
			return true
		}
	}
	return false
}

// sections are those of a module that decodes, by their ids.
func sections(module []byte) iter.Seq2[byte, []byte] {
	return func(yield func(byte, []byte) bool) {
		for rest := module[8:]; len(rest) > 0; {
			size, n := binary.Uvarint(rest[1:])
			content := rest[1+n:][:size]
			if !yield(rest[0], content) {
				return
			}
			rest = rest[1+n+len(content):]
		}
	}
}

// meant says whether a module that is valid is refused for a reason.
func meant(err error) bool {
	var decode *meter.DecodeError
	if !errors.As(err, &decode) {
		return true // a bound
	}
	// The last two are encodings that the specification doesn't have.
	for _, what := range []string{"can't be interrupted", "import from module", "opcode 0xfd", "block type -"} {
		if strings.Contains(decode.What, what) {
			return true
		}
	}
	return false
}

// compiles says whether the engine takes a module. A panic of the engine, of
// which some are known, is as good as no.
func compiles(t *testing.T, module []byte) (ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	ctx := t.Context()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().WithCoreFeatures(allFeatures).WithMemoryLimitPages(fuzzPages))
	defer func() { _ = r.Close(ctx) }()
	_, err := r.CompileModule(ctx, module)
	return err == nil
}

const fuzzPages = 64

// FuzzPrograms compares what programs do plain and metered.
func FuzzPrograms(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 400 {
		choices := make([]byte, 20+random.IntN(400))
		for i := range choices {
			choices[i] = byte(random.Uint32())
		}
		f.Add(choices, i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, choices []byte, byGo bool) {
		module := generate(choices, byGo)
		rewritten, err := meter.Rewrite(module, meter.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if !compiles(t, module) {
			t.Fatal("the program isn't valid")
		}
		compare(t, module, rewritten)
	})
}

// compare runs each export of a module, plain and metered, until one differs or
// takes too long. The metered one goes first: only what it ends is run plain,
// since nothing ends that.
func compare(t *testing.T, module, rewritten []byte) {
	if bytes.Contains(module, []byte{0xfc, 0x0f}) {
		return // table.grow, whose plain maximum may be gigabytes
	}
	byGo := bytes.Contains(module, []byte(producers))
	metered := newWorld(t, true)
	plain := newWorld(t, false)
	if !metered.instantiate(rewritten) {
		return
	}
	if !plain.instantiate(module) {
		t.Fatal("only the metered module has an instance")
	}
	for _, name := range metered.exports() {
		got, ended := metered.call(name)
		if !ended {
			return // its state is of no use any more
		}
		want, _ := plain.call(name)
		if got != want {
			t.Fatalf("%s: got %s metered, want %s as plain", name, got, want)
		}
		if byGo && strings.Contains(got, "out of bounds memory access") {
			return // which may have come before a store
		}
		if got, want := metered.state(), plain.state(); got != want {
			t.Fatalf("after %s: got %s metered, want %s as plain", name, got, want)
		}
	}
}

// world is an instance, plain or metered.
type world struct {
	t       *testing.T
	runtime wazero.Runtime
	module  api.Module
	spent   int
}

func newWorld(t *testing.T, metered bool) *world {
	w := &world{t: t}
	ctx := t.Context()
	w.runtime = wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().WithCoreFeatures(allFeatures).WithMemoryLimitPages(fuzzPages))
	t.Cleanup(func() { _ = w.runtime.Close(context.Background()) })
	if metered {
		yield := func(_ context.Context, reason uint32) uint32 {
			if w.spent++; w.spent > 200 || reason == meter.Exhausted {
				panic(errSpent)
			}
			return 5000
		}
		if _, err := w.runtime.NewHostModuleBuilder(meter.HostModule).NewFunctionBuilder().WithFunc(yield).Export(meter.Yield).Instantiate(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) instantiate(module []byte) (ok bool) {
	defer func() {
		if recover() != nil { // of the engine, on modules that it shouldn't take
			ok = false
		}
	}()
	m, err := w.runtime.InstantiateWithConfig(w.t.Context(), module, wazero.NewModuleConfig().WithStartFunctions())
	w.module = m
	return err == nil
}

func (w *world) exports() (names []string) {
	for name := range w.module.ExportedFunctionDefinitions() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// call returns what a call came to, and whether it ended by itself.
func (w *world) call(name string) (outcome string, ended bool) {
	f := w.module.ExportedFunction(name)
	var args []uint64
	for i, typ := range f.Definition().ParamTypes() {
		switch typ {
		case api.ValueTypeI32, api.ValueTypeI64, api.ValueTypeF32, api.ValueTypeF64:
			args = append(args, uint64(i)*3+1)
		case 0x7b:
			args = append(args, 1, 2)
		default:
			args = append(args, 0)
		}
	}
	results, err := f.Call(w.t.Context(), args...)
	if err != nil {
		text, _, _ := strings.Cut(err.Error(), "\n")
		return text, !errors.Is(err, errSpent)
	}
	types := f.Definition().ResultTypes()
	if slices.Contains(types, 0x7b) {
		return "vectors", true
	}
	for i, typ := range types {
		results[i] = comparable(typ, results[i])
	}
	return fmt.Sprint(results), true
}

// comparable makes equal what may differ: which NaN it is depends on the order
// of operands, and references are addresses.
func comparable(typ api.ValueType, bits uint64) uint64 {
	switch typ {
	case api.ValueTypeI32, api.ValueTypeI64:
		return bits
	case api.ValueTypeF32:
		if f := math.Float32frombits(uint32(bits)); f != f {
			return 1
		}
		return bits
	case api.ValueTypeF64:
		if f := math.Float64frombits(bits); f != f {
			return 1
		}
		return bits
	default:
		return min(bits, 1)
	}
}

func (w *world) state() string {
	var state strings.Builder
	for i := range programGlobals {
		if g := w.module.ExportedGlobal(fmt.Sprintf("g%d", i)); g != nil {
			fmt.Fprintf(&state, "%x ", comparable(g.Type(), g.Get()))
		}
	}
	for name := range w.module.ExportedMemoryDefinitions() {
		m := w.module.ExportedMemory(name)
		whole, _ := m.Read(0, m.Size())
		sum := uint64(14695981039346656037)
		for _, b := range whole {
			if b != 0 {
				sum = (sum ^ uint64(b)) * 1099511628211
			}
		}
		fmt.Fprintf(&state, "%d bytes of %x ", m.Size(), sum)
	}
	return state.String()
}
