package outline_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
	"github.com/wisp-serving/wisp/runtime/outline"
)

func TestRead(t *testing.T) {
	got, err := outline.Read(wasmtest.Importing([2]string{"env", "f"}, [2]string{"wasi_snapshot_preview1", "proc_exit"}))
	if err != nil {
		t.Fatal(err)
	}
	want := []outline.Import{{"env", "f", "function"}, {"wasi_snapshot_preview1", "proc_exit", "function"}}
	if diff := cmp.Diff(want, got.Imports); diff != "" {
		t.Errorf("imports (-want +got):\n%s", diff)
	}
	command, err := outline.Read(wasmtest.Command(wasmtest.Nothing))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]outline.Export{{"_start", "function"}}, command.Exports); diff != "" {
		t.Errorf("exports (-want +got):\n%s", diff)
	}
	if command.Memory == nil || command.Memory.Min != 64<<10 || command.Functions == 0 {
		t.Errorf("got memory %+v and %d functions, want one page and a function", command.Memory, command.Functions)
	}
}

func TestReadOtherKinds(t *testing.T) {
	const module = "\x00asm\x01\x00\x00\x00" +
		"\x02\x1e\x04" + // imports
		"\x01m\x01t\x01\x70\x01\x02\x03" + // a table of funcref, 2 to 3
		"\x01m\x01r\x02\x00\x01" + // a memory of a page
		"\x01m\x01g\x03\x7f\x01" + // a global i32
		"\x01m\x01f\x00\x00" + // a function
		"\x05\x04\x01\x01\x02\x04" + // a memory of 2 to 4 pages
		"\x00\x06\x04note!" // a custom section
	got, err := outline.Read([]byte(module))
	if err != nil {
		t.Fatal(err)
	}
	want := outline.Module{
		Imports:  []outline.Import{{"m", "t", "table"}, {"m", "r", "memory"}, {"m", "g", "global"}, {"m", "f", "function"}},
		Memory:   &outline.Memory{Min: 128 << 10, Max: 256 << 10},
		Sections: []outline.Section{{"imports", 30}, {"memories", 4}, {"custom note", 6}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("outline (-want +got):\n%s", diff)
	}
}

func TestReadWhatIsBroken(t *testing.T) {
	const head = "\x00asm\x01\x00\x00\x00"
	tests := map[string]struct{ module, want string }{
		"empty":             {"", "not a core wasm module"},
		"a component":       {"\x00asm\x0d\x00\x01\x00", "not a core wasm module"},
		"a section too big": {head + "\x02\x05\x00", "section 2 at byte 8: it ends too early"},
		"imports that end":  {head + "\x02\x03\x01\x01m", "section 2 at byte 8: it ends too early"},
		"an unknown import": {head + "\x02\x06\x01\x01m\x01n\x09", "unknown kind"},
		"a name":            {head + "\x07\x05\x01\x01\xff\x00\x00", "isn't UTF-8"},
		"a count for ever":  {head + "\x07\x06\xff\xff\xff\xff\x0f\x00", "it ends too early"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := outline.Read([]byte(test.module)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

func FuzzRead(f *testing.F) {
	f.Add(wasmtest.Command(wasmtest.Nothing))
	f.Add(wasmtest.Importing([2]string{"env", "f"}))
	f.Add([]byte("\x00asm\x01\x00\x00\x00\x02\xff\xff\xff\xff\x0f"))
	f.Fuzz(func(t *testing.T, module []byte) {
		m, _ := outline.Read(module)
		if n := len(m.Imports) + len(m.Exports) + len(m.Sections); n > len(module) {
			t.Errorf("%d entries of %d bytes", n, len(module))
		}
	})
}
