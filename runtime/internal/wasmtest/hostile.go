package wasmtest

import "encoding/binary"

// Hostile are guests that try to harm their node, by what they do. All are WASI
// commands whose _start does it at once. What a guest needs arguments for is in
// test/guests/puppet.
func Hostile() map[string][]byte {
	return map[string][]byte{
		"loop":            Command(Loop),
		"start loop":      Starting(Loop),
		"recursion":       Command(Recurse),
		"wide recursion":  module{bodies: [][]byte{{0x10, 0x00}}, locals: []uint32{10_000}}.encode(),
		"fib":             fib(),
		"table recursion": module{tableMin: 2, elements: []byte{0, 1}, bodies: [][]byte{callIndirect(1), callIndirect(0)}}.encode(),
		"table bomb":      module{tableMin: 1, bodies: [][]byte{endless(0xd0, 0x70, 0x41, 0xe4, 0x00, 0xfc, 0x0f, 0x00, 0x1a)}}.encode(), // ref.null; 100; table.grow; drop
		// Its table takes half a MiB of the engine's, each time.
		"large table":      Module(types, functions, Section(4, 1, 0x70, 0, 0x80, 0x80, 0x04), memory, exports, code(Trap)),
		"memory bomb":      Command(endless(0x41, 0x10, 0x40, 0x00, 0x41, 0x7f, 0x46, 0x04, 0x40, 0x00, 0x0b)), // grow by 16 pages; trap at -1
		"patient bomb":     Command(endless(0x41, 0x01, 0x40, 0x00, 0x1a)),                                     // grow; drop, for ever
		"fill":             module{pages: 512, bodies: [][]byte{endless(fill(512 << 16)...)}}.encode(),
		"fill beyond":      module{pages: 1, bodies: [][]byte{fill(1<<16 + 1)}}.encode(),
		"copy":             module{pages: 512, bodies: [][]byte{endless(0x41, 0x01, 0x41, 0x00, 0x41, 0xff, 0xff, 0xff, 0x0f, 0xfc, 0x0a, 0x00, 0x00)}}.encode(), // 32 MiB - 1, by one byte
		"function objects": module{tableMin: 1, elements: []byte{0}, bodies: [][]byte{endless(0xd2, 0x00, 0x1a)}}.encode(),                                       // ref.func; drop
	}
}

// endless is a loop around code.
func endless(code ...byte) []byte {
	return append(append([]byte{0x03, 0x40}, code...), 0x0c, 0x00, 0x0b)
}

// fill fills n bytes of memory from 0 on.
func fill(n int32) []byte {
	body := []byte{0x41, 0x00, 0x41, 0x01, 0x41}
	return append(appendS32(body, n), 0xfc, 0x0b, 0x00)
}

func callIndirect(entry byte) []byte { return []byte{0x41, entry, 0x11, 0x00, 0x00} }

func appendS32(b []byte, n int32) []byte {
	for {
		low := byte(n & 0x7f)
		n >>= 7
		if n == 0 && low&0x40 == 0 || n == -1 && low&0x40 != 0 {
			return append(b, low)
		}
		b = append(b, low|0x80)
	}
}

// fib returns a command that computes fib(60), which takes hours.
func fib() []byte {
	fib := []byte{
		0x20, 0x00, 0x42, 0x02, 0x54, 0x04, 0x7e, 0x20, 0x00, 0x05, // n < 2: n, else
		0x20, 0x00, 0x42, 0x01, 0x7d, 0x10, 0x01, // fib(n-1)
		0x20, 0x00, 0x42, 0x02, 0x7d, 0x10, 0x01, 0x7c, 0x0b, // + fib(n-2)
	}
	return Module(
		Section(1, 2, 0x60, 0, 0, 0x60, 1, 0x7e, 1, 0x7e),
		Section(3, 2, 0, 1),
		memory, exports,
		section(10, bodies([][]byte{{0x42, 60, 0x10, 0x01, 0x1a}, fib}, nil)))
}

// module is a module whose functions take and return nothing, the first one
// _start.
type module struct {
	pages    uint64
	tableMin byte
	elements []byte
	bodies   [][]byte
	locals   []uint32
}

func (m module) encode() []byte {
	n := byte(len(m.bodies))
	out := Module(types, Section(3, append([]byte{n}, make([]byte, n)...)...))
	if m.tableMin > 0 {
		out = append(out, Section(4, 1, 0x70, 0, m.tableMin)...)
	}
	out = append(out, section(5, binary.AppendUvarint([]byte{1, 0}, max(m.pages, 1)))...)
	out = append(out, exports...)
	if len(m.elements) > 0 {
		segment := append([]byte{1, 0, 0x41, 0, 0x0b, byte(len(m.elements))}, m.elements...)
		out = append(out, Section(9, segment...)...)
	}
	return append(out, section(10, bodies(m.bodies, m.locals))...)
}

// bodies encodes function bodies; the i-th has locals[i] locals, as far as there
// are any.
func bodies(code [][]byte, locals []uint32) []byte {
	out := binary.AppendUvarint(nil, uint64(len(code)))
	for i, c := range code {
		body := []byte{0}
		if i < len(locals) {
			body = append(binary.AppendUvarint([]byte{1}, uint64(locals[i])), 0x7e)
		}
		body = append(append(body, c...), 0x0b)
		out = append(binary.AppendUvarint(out, uint64(len(body))), body...)
	}
	return out
}

// section is Section for any size.
func section(id byte, content []byte) []byte {
	return append(binary.AppendUvarint([]byte{id}, uint64(len(content))), content...)
}
