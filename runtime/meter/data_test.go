package meter_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
	"github.com/wisp-serving/wisp/runtime/meter"
)

// segment is an active data segment at an offset.
func segment(offset string, content []byte) []byte {
	return append(binary.AppendUvarint(append([]byte{0}, offset...), uint64(len(content))), content...)
}

// heavy is a module whose segments overlap, and whose start function looks at
// what the last of them has written, writes itself, and would trap on segments
// that haven't been dropped.
func heavy(segments ...[]byte) []byte {
	body := []byte{
		0, 0x41, 5, 0x2d, 0, 0, 0x41, '2', 0x47, 0x04, 0x40, 0x00, 0x0b, // unless byte 5 is 2: unreachable
		0x41, 6, 0x41, '7', 0x3a, 0, 0, // byte 6 becomes 7
		0x41, 0, 0x41, 0, 0x41, 0, 0xfc, 8, 0, 0, // memory.init of nothing, from a segment that was dropped
		0x0b,
	}
	return wasmtest.Module(
		wasmtest.Section(1, 1, 0x60, 0, 0), wasmtest.Section(3, 1, 0), wasmtest.Section(5, 1, 0, 64),
		exportedMemory,
		wasmtest.Section(8, 0),
		wasmtest.Section(12, binary.AppendUvarint(nil, uint64(len(segments)))...),
		wasmtest.Section(10, append([]byte{1, byte(len(body))}, body...)...),
		dataSection(segments))
}

// exportedMemory is a section that exports a module's memory.
var exportedMemory = wasmtest.Section(7, append(append([]byte{1, 6}, "memory"...), 2, 0)...)

func dataSection(segments [][]byte) []byte {
	content := binary.AppendUvarint(nil, uint64(len(segments)))
	return wasmtest.Section(11, append(content, bytes.Join(segments, nil)...)...)
}

// loaded is the memory of an instance of module, as it is and rewritten, or the error
// of making one.
func loaded(t *testing.T, h *host, module []byte) (want, got []byte, wantErr, gotErr error) {
	t.Helper()
	plain := wazero.NewRuntime(t.Context())
	t.Cleanup(func() { _ = plain.Close(t.Context()) })
	of := func(m api.Module, err error) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		all, _ := m.Memory().Read(0, m.Memory().Size())
		return all, nil
	}
	want, wantErr = of(plain.InstantiateWithConfig(t.Context(), module, wazero.NewModuleConfig()))
	got, gotErr = of(h.instantiate(t, module, meter.Options{}))
	return want, got, wantErr, gotErr
}

// TestDataIsLoadedInParts compares the memory of modules with more data than is
// copied at once, after instantiation, with that of the modules as they were.
func TestDataIsLoadedInParts(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789abcde"), 100_000)
	atEnd := segment("\x41\x80\x80\xf8\x01\x0b", bytes.Repeat([]byte{'e'}, 128<<10))
	for name, module := range map[string][]byte{
		"one over another": heavy(
			segment("\x41\x00\x0b", large), segment("\x41\x04\x0b", []byte("123")), atEnd, segment("\x41\x00\x0b", nil)),
		"side by side": heavy(
			segment("\x41\x10\x0b", large), segment("\x41\x04\x0b", []byte("123")), atEnd),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, 1, 1<<20)
			want, got, wantErr, gotErr := loaded(t, h, module)
			if wantErr != nil || gotErr != nil || !bytes.Equal(want, got) {
				t.Errorf("the memories differ, or there are none: %v, %v", wantErr, gotErr)
			}
			if parts := len(large) >> 16; h.yields < parts {
				t.Errorf("the host was called %d times, want once for each of %d parts", h.yields, parts)
			}
		})
	}
}

// TestSmallSegmentsAreLeftAlone has as many as Go's linker makes, with a declared
// number of them, and one that is large.
func TestSmallSegmentsAreLeftAlone(t *testing.T) {
	segments := [][]byte{segment("\x41\x80\x80\x80\x01\x0b", make([]byte, 2<<20))} // at 2 MiB
	for i := range 50_000 {
		offset := append([]byte{0x41}, byte(i<<4)|0x80, byte(i>>3)|0x80, byte(i>>10)|0x80, 0, 0x0b) // 16 times i
		segments = append(segments, segment(string(offset), []byte("12345678")))
	}
	module := heavy(segments...)
	rewritten, err := meter.Rewrite(module, meter.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if more := len(rewritten) - len(module); more > 4<<10 {
		t.Errorf("it is %d bytes longer, want the loader of one segment", more)
	}
	if n := countSegments(rewritten); n != uint64(len(segments)) {
		t.Errorf("it has %d segments, want all %d, which are numbered", n, len(segments))
	}
}

// TestLoadingDataEnds ends an instance whose data is being copied.
func TestLoadingDataEnds(t *testing.T) {
	h := newHost(t, 10_000, 5)
	module := heavy(segment("\x41\x00\x0b", make([]byte, 4<<20)))
	if _, err := h.instantiate(t, module, meter.Options{}); !errors.Is(err, errSpent) {
		t.Errorf("got %v, want %v", err, errSpent)
	}
}

// TestDataThatDoesNotFit has segments whose ends are beyond the memory, one of
// them beyond 4 GiB.
func TestDataThatDoesNotFit(t *testing.T) {
	for _, offset := range []string{"\x41\x81\x80\xc0\x01\x0b", "\x41\x7f\x0b"} { // 3 MiB and 1, 2^32-1
		h := newHost(t, meter.MaxRation, 100)
		_, err := h.instantiate(t, heavy(segment(offset, make([]byte, 1<<20+1))), meter.Options{})
		if err == nil || !strings.Contains(err.Error(), "unreachable") {
			t.Errorf("got %v, want a trap before anything is written", err)
		}
	}
}

// countSegments returns how many data segments a module has.
func countSegments(module []byte) (count uint64) {
	for id, content := range sections(module) {
		if id == 11 {
			count, _ = binary.Uvarint(content)
		}
	}
	return count
}

// TestCloseSegmentsAreJoined compares memories too: what lies between segments is
// zero, in whatever order they come.
func TestCloseSegmentsAreJoined(t *testing.T) {
	at := func(offset int, content string) []byte {
		c := append([]byte{0x41}, byte(offset)|0x80, byte(offset>>7)|0x80, byte(offset>>14), 0x0b)
		return segment(string(c), []byte(content))
	}
	var many [][]byte
	for i := range 4000 {
		many = append(many, at(16*i, "12345678"))
	}
	for name, tt := range map[string]struct {
		segments [][]byte
		want     uint64
	}{
		"as Go's linker makes them": {many, 1},
		"not in order":              {[][]byte{at(40, "c"), at(0, "ab"), at(20, "d")}, 1},
		"far from one another":      {[][]byte{at(0, "a"), at(65, "b"), at(131, "c")}, 2},
		"one over another":          {[][]byte{at(0, "ab"), at(1, "c")}, 2},
		"an empty one":              {[][]byte{at(0, "a"), at(0, ""), at(1, "b")}, 1},
		"at the memory's end":       {[][]byte{at(65_534, "a"), at(65_535, "b"), at(65_536, "")}, 1},
		"beyond the memory's end":   {[][]byte{at(65_535, "a"), at(65_537, "")}, 1},
		"alone":                     {[][]byte{at(0, "a")}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			module := wasmtest.Module(wasmtest.Section(5, 1, 0, 1), exportedMemory, dataSection(tt.segments))
			want, got, wantErr, gotErr := loaded(t, newHost(t, meter.MaxRation, 100), module)
			if (wantErr == nil) != (gotErr == nil) || !bytes.Equal(want, got) {
				t.Errorf("the memories differ, or there are none: %v, %v", wantErr, gotErr)
			}
			rewritten, err := meter.Rewrite(module, meter.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if n := countSegments(rewritten); n != tt.want {
				t.Errorf("it has %d segments, want %d", n, tt.want)
			}
		})
	}
}
