package meter_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"

	"github.com/wisp-serving/wisp/runtime/meter"
)

// suites are the folders of wazero's spectest, with the features that each
// needs. The interpreter's results aren't looked at: guests are compiled.
var suites = []struct {
	name     string
	features api.CoreFeatures
}{
	{"v1", api.CoreFeaturesV1},
	{"v2", api.CoreFeaturesV2},
	{"extended-const", api.CoreFeaturesV2 | experimental.CoreFeaturesExtendedConst},
	{"tail-call", api.CoreFeaturesV2 | experimental.CoreFeaturesTailCall},
	{"threads", api.CoreFeaturesV2 | experimental.CoreFeaturesThreads},
	{"exception-handling", api.CoreFeaturesV2 | experimental.CoreFeaturesExceptionHandling | experimental.CoreFeaturesTailCall | experimental.CoreFeaturesTypedFunctionReferences},
	{"typed-function-references", api.CoreFeaturesV2 | experimental.CoreFeaturesTypedFunctionReferences | experimental.CoreFeaturesTailCall},
}

// wazeroDir is where wazero's source is, with the compiled spec tests in it.
var wazeroDir = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/tetratelabs/wazero").Output()
	return filepath.Join(strings.TrimSpace(string(out)), "internal/integration_test/spectest"), err
})

// script is what wast2json makes of a spec test.
type script struct {
	Commands []command `json:"commands"`
}

type command struct {
	Type       string `json:"type"`
	Line       int    `json:"line"`
	Name       string `json:"name"`
	Filename   string `json:"filename"`
	As         string `json:"as"`
	ModuleType string `json:"module_type"`
	Action     struct {
		Type   string  `json:"type"`
		Field  string  `json:"field"`
		Module string  `json:"module"`
		Args   []value `json:"args"`
	} `json:"action"`
}

type value struct {
	Type     string `json:"type"`
	LaneType string `json:"lane_type"`
	Value    any    `json:"value"`
}

// TestSpec runs wazero's spec tests twice, plain and metered, and holds what
// comes out of one against the other. That the plain ones are right is wazero's
// to test.
func TestSpec(t *testing.T) {
	dir, err := wazeroDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, suite := range suites {
		scripts, err := filepath.Glob(filepath.Join(dir, suite.name, "testdata", "*.json"))
		if err != nil || len(scripts) == 0 {
			t.Fatalf("%s: found %d scripts: %v", suite.name, len(scripts), err)
		}
		for _, path := range scripts {
			name := strings.TrimSuffix(filepath.Base(path), ".json")
			t.Run(suite.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				runScript(t, path, suite.features)
			})
		}
	}
}

func runScript(t *testing.T, path string, features api.CoreFeatures) {
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var s script
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	plain := newSide(t, dir, features, false)
	metered := newSide(t, dir, features, true)
	skip := false
	modules := 0
	for i := 0; i < len(s.Commands); i++ {
		c := s.Commands[i]
		if c.ModuleType == "text" {
			continue
		}
		registered := ""
		if next := i + 1; c.Type == "module" && next < len(s.Commands) && s.Commands[next].Type == "register" {
			registered = s.Commands[next].As
		}
		want := plain.run(c, registered)
		if c.Type == "module" {
			modules++
			if reason, ok := refused[filepath.Base(c.Filename)]; ok {
				if got := metered.run(c, registered); !strings.Contains(got, reason) {
					t.Errorf("line %d: got %s, want an error with %q", c.Line, got, reason)
				}
				skip = true // what follows calls it
				continue
			}
			skip = false
		}
		if skip {
			continue
		}
		if got := metered.run(c, registered); got != want {
			t.Errorf("line %d, %s %s: got %s metered, want %s as plain", c.Line, c.Type, c.Filename+c.Action.Field, got, want)
		}
	}
	if modules == 0 && len(s.Commands) > 0 && s.Commands[0].Type == "module" {
		t.Error("no module was run")
	}
}

// refused are the modules that Rewrite doesn't take, and the reason, which is
// meant.
var refused = map[string]string{
	"atomic.1.wasm": "memory.atomic.wait, can't be interrupted",
	"atomic.2.wasm": "memory.atomic.wait, can't be interrupted",
	"atomic.3.wasm": "memory.atomic.wait, can't be interrupted",
}

// side is one of the two worlds that a script runs in.
type side struct {
	t       *testing.T
	dir     string
	metered bool
	runtime wazero.Runtime
	modules map[string]api.Module
	last    api.Module
}

func newSide(t *testing.T, dir string, features api.CoreFeatures, metered bool) *side {
	ctx := t.Context()
	s := &side{t: t, dir: dir, metered: metered, modules: map[string]api.Module{}}
	s.runtime = wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigCompiler().WithCoreFeatures(features))
	t.Cleanup(func() { _ = s.runtime.Close(context.Background()) })
	if metered {
		hostYield(t, s.runtime, 1000)
	}
	if _, err := s.instantiate(filepath.Join(dir, "../../testdata/spectest.wasm"), "spectest"); err != nil {
		t.Fatal(err)
	}
	return s
}

var errExhausted = errors.New("stack overflow")

// hostYield adds the host function that a rewritten module imports, which gives
// ration after ration.
func hostYield(tb testing.TB, r wazero.Runtime, ration uint32) {
	yield := func(_ context.Context, reason uint32) uint32 {
		if reason == meter.Exhausted {
			panic(errExhausted)
		}
		return ration
	}
	_, err := r.NewHostModuleBuilder(meter.HostModule).NewFunctionBuilder().WithFunc(yield).Export(meter.Yield).Instantiate(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
}

func (s *side) instantiate(path, name string) (api.Module, error) {
	module, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.metered {
		if module, err = meter.Rewrite(module, meter.Options{Table: 1 << 27, TableGrowth: 1 << 27}); err != nil {
			return nil, err
		}
	}
	return s.runtime.InstantiateWithConfig(s.t.Context(), module, wazero.NewModuleConfig().WithName(name))
}

// run returns what a command came to, as far as it has to be the same in both
// worlds.
func (s *side) run(c command, registered string) string {
	switch c.Type {
	case "module":
		m, err := s.instantiate(filepath.Join(s.dir, c.Filename), registered)
		if err != nil {
			return "module: " + err.Error()
		}
		s.last, s.modules[c.Name] = m, m
		return "module"
	case "register":
		return ""
	case "assert_return", "action", "assert_trap", "assert_exhaustion", "assert_exception":
		return s.act(c)
	case "assert_malformed", "assert_invalid", "assert_unlinkable", "assert_uninstantiable":
		_, err := s.instantiate(filepath.Join(s.dir, c.Filename), "")
		return fmt.Sprintf("refused: %v", err != nil)
	}
	s.t.Fatalf("line %d: command %q isn't known", c.Line, c.Type)
	return ""
}

func (s *side) act(c command) string {
	m := s.last
	if c.Action.Module != "" {
		m = s.modules[c.Action.Module]
	}
	if m == nil {
		return "no module"
	}
	if c.Action.Type == "get" {
		return fmt.Sprint(m.ExportedGlobal(c.Action.Field).Get())
	}
	var args []uint64
	for _, a := range c.Action.Args {
		args = append(args, a.bits(s.t)...)
	}
	f := m.ExportedFunction(c.Action.Field)
	if f == nil {
		return "no function"
	}
	results, err := f.Call(s.t.Context(), args...)
	if err != nil {
		text, _, _ := strings.Cut(err.Error(), "\n")
		if errors.Is(err, errExhausted) {
			text = "stack overflow"
		}
		return text
	}
	for i, t := range f.Definition().ResultTypes() {
		if t == api.ValueTypeExternref || t == 0x70 || t > 0x7f { // addresses
			results[i] = min(results[i], 1)
		}
	}
	return fmt.Sprint(results)
}

// bits returns a value as wazero takes it.
func (v value) bits(t *testing.T) []uint64 {
	lanes, ok := v.Value.([]any)
	if !ok {
		return []uint64{scalar(t, v.Type, v.Value)}
	}
	var bits [2]uint64
	for i, lane := range lanes {
		width := 128 / len(lanes)
		at := i * width
		bits[at/64] |= scalar(t, v.LaneType, lane) << (at % 64)
	}
	return bits[:]
}

func scalar(t *testing.T, typ string, v any) uint64 {
	text, ok := v.(string)
	wide := strings.HasSuffix(typ, "64")
	switch {
	case !ok || text == "null":
		return 0
	case strings.HasPrefix(text, "nan") && wide:
		return math.Float64bits(math.NaN())
	case strings.HasPrefix(text, "nan"):
		return 0x7fc00000
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		var signed int64
		if signed, err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatalf("value %q: %v", text, err)
		}
		n = uint64(signed)
	}
	switch {
	case typ == "externref":
		return n + 1 // 0 is null
	case !wide:
		return uint64(uint32(n))
	}
	return n
}
