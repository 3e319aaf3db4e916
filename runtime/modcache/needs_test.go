package modcache

import (
	"encoding/binary"
	"testing"

	"github.com/wisp-serving/wisp/runtime/compile"
	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
	"github.com/wisp-serving/wisp/runtime/memory"
)

// What an instance holds beside its memory is counted, whichever section it is of.
func TestNeeds(t *testing.T) {
	const fixed = instanceSize + compile.Stack
	section := func(id byte, content ...byte) []byte {
		return append(binary.AppendUvarint([]byte{id}, uint64(len(content))), content...)
	}
	for name, tt := range map[string]struct {
		sections [][]byte
		want     memory.Needs
	}{
		"nothing":             {nil, memory.Needs{Fixed: fixed}},
		"memory":              {[][]byte{section(5, 1, 1, 2, 3)}, memory.Needs{Min: 2 * pageSize, Max: 3 * pageSize, Fixed: fixed}},
		"memory without most": {[][]byte{section(5, 1, 0, 2)}, memory.Needs{Min: 2 * pageSize, Max: maxPages * pageSize, Fixed: fixed}},
		"globals":             {[][]byte{section(6, 3)}, memory.Needs{Fixed: fixed + 3*globalSize}},
		"data":                {[][]byte{section(11, 7)}, memory.Needs{Fixed: fixed + 7*segmentSize}},
		"a table that grows": {
			[][]byte{section(3, 5, 0, 0, 0, 0, 0), section(4, 1, funcref, 1, 10, 100)},
			memory.Needs{Fixed: fixed + 100*entrySize},
		},
		"a table that is empty": {
			[][]byte{section(3, 5, 0, 0, 0, 0, 0), section(4, 2, funcref, 1, 100, 100, externref, 1, 10, 10)},
			memory.Needs{Fixed: fixed + 110*entrySize, Empty: 100 * entrySize},
		},
		"elements": {
			// Active at 300: functions 200 and 1; passive: function 2.
			[][]byte{section(9, 2, 0, i32Const, 0xac, 2, 0x0b, 2, 0xc8, 1, 1, 1, 0, 1, 2)},
			memory.Needs{Fixed: fixed + 5*elementSize},
		},
		"elements of another form": {
			[][]byte{section(9, 1, 4, i32Const, 0, 0x0b, 1, 0xd2, 0, 0x0b)},
			memory.Needs{Fixed: fixed + 9*elementSize},
		},
	} {
		if got := needsOf(wasmtest.Module(tt.sections...)); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", name, got, tt.want)
		}
	}
}
