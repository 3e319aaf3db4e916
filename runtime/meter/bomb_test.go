package meter_test

import (
	"bytes"
	"encoding/binary"
	goruntime "runtime"
	"testing"

	"github.com/wisp-serving/wisp/runtime/meter"
)

// TestRewritingTakesMemoryInProportion rewrites modules of a megabyte that are
// as much of one thing as that allows.
func TestRewritingTakesMemoryInProportion(t *testing.T) {
	const size, perByte = 1 << 20, 128
	section := func(id byte, content ...[]byte) []byte {
		whole := bytes.Join(content, nil)
		return append(binary.AppendUvarint([]byte{id}, uint64(len(whole))), whole...)
	}
	count := func(n int) []byte { return binary.AppendUvarint(nil, uint64(n)) }
	many := func(what string) (n []byte, items []byte) {
		return count(size / len(what)), bytes.Repeat([]byte(what), size/len(what))
	}
	header := []byte("\x00asm\x01\x00\x00\x00")
	one := section(1, []byte{1, 0x60, 0, 0})
	body := func(code string) []byte { // a module with one function, of that code over and over
		whole := append(append([]byte{0}, bytes.Repeat([]byte(code), size/len(code))...), 0x0b)
		return bytes.Join([][]byte{header, one, section(3, []byte{1, 0}), section(10, []byte{1}, count(len(whole)), whole)}, nil)
	}
	of := func(id byte, what string, before ...[]byte) []byte {
		n, items := many(what)
		return bytes.Join(append(append([][]byte{header, one}, before...), section(id, n, items)), nil)
	}
	n, bodies := many("\x02\x00\x0b")
	types := bytes.Repeat([]byte{0}, size/3)
	for _, tt := range []struct {
		name   string
		module []byte
	}{
		{"functions", bytes.Join([][]byte{header, one, section(3, n, types), section(10, n, bodies)}, nil)},
		{"calls", body("\x10\x00")},
		{"loops", body("\x03\x40\x0b")},
		{"branches", body("\x02\x40\x0c\x00\x0b")},
		{"tables of branches", body("\x02\x40\x41\x00\x0e\x04\x00\x00\x00\x00\x00\x0b")},
		{"references", body("\xd2\x00\x1a")},
		{"nothing", body("\x01")},
		{"globals", of(6, "\x7f\x00\x41\x00\x0b")},
		{"element segments", of(9, "\x03\x00\x00")},
		{"data segments", of(11, "\x01\x00")},
		{"exports", of(7, "\x00\x00\x00", section(3, []byte{1, 0}))},
		{"types", bytes.Join([][]byte{header, section(1, count(size/3), bytes.Repeat([]byte{0x60, 0, 0}, size/3))}, nil)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var before, after goruntime.MemStats
			goruntime.ReadMemStats(&before)
			rewritten, err := meter.Rewrite(tt.module, meter.Options{})
			goruntime.ReadMemStats(&after)
			got := after.TotalAlloc - before.TotalAlloc
			if limit := uint64(len(tt.module)) * perByte; got > limit {
				t.Errorf("got %d bytes allocated for %d (%v), want at most %d", got, len(tt.module), err, limit)
			}
			t.Logf("%d bytes to %d, %d allocated: %v", len(tt.module), len(rewritten), got, err)
		})
	}
}
