package meter

import (
	"cmp"
	"slices"
)

// Active data segments are copied when a module is instantiated, by the engine,
// in one go. Where they have many bytes, the large ones, or all, are made passive,
// and a start function copies them in parts, between which there are checks.

const (
	// instantBytes, in all segments, is what isn't worth a start function.
	instantBytes = 1 << 20
	// smallSegment is the size of segments that the engine copies anyway, as long
	// as all of them are at most smallBytes: Go's linker makes up to 100,000.
	smallSegment, smallBytes = 4 << 10, 4 << 20
	// loaderBytes is how much code copies them in one function, so that none is
	// slow to compile.
	loaderBytes = 32 << 10
	// maxData bounds the segments, as in browsers.
	maxData = 100_000
)

// data is a data segment.
type data struct {
	offset []byte // an expression, or nil if it is passive
	bytes  []byte
}

func (m *module) readData(s *reader) error {
	n := s.count()
	if n > maxData {
		return &LimitError{What: "data segments", Got: uint64(n), Max: maxData}
	}
	m.data = make([]data, 0, n)
	for ; n > 0 && s.err == nil; n-- {
		at := s.pos
		var d data
		switch flags := s.u32(); flags {
		case 0:
			d.offset = s.expression()
		case 1:
		case 2:
			if memory := s.u32(); memory != 0 {
				s.fail(at, "memory %d isn't there", memory)
			}
			d.offset = s.expression()
		default:
			s.fail(at, "data segment %#x isn't known", flags)
		}
		d.bytes = s.take(s.u32())
		m.data = append(m.data, d)
	}
	m.dataSection = s.buf
	return s.err
}

// loaded returns the size from which on active segments are copied by a start
// function: 0 is all, and none is -1.
func (m *module) loaded() int {
	sum, small := 0, 0
	for _, d := range m.data {
		if d.offset == nil {
			continue
		}
		sum += len(d.bytes)
		if len(d.bytes) < smallSegment {
			small += len(d.bytes)
		}
	}
	if sum <= instantBytes {
		return -1
	}
	if _, free := m.dataExtents(); free && small <= smallBytes {
		return smallSegment
	}
	return 0
}

// joinedGap is how many zeros are copied rather than a segment more, which costs the
// engine as much as some hundred bytes.
const joinedGap = 64

// joinData makes one segment of active ones that lie close together: Go's linker
// leaves out every few zeros, and the engine evaluates an expression for each segment,
// for each instance. Nothing refers to segments where their number isn't declared.
func (m *module) joinData() {
	extents, ok := m.dataExtents()
	if !ok || m.memory == nil || m.dataCount != nil {
		return
	}
	joined := make([]data, 0, len(extents))
	for len(extents) > 0 {
		n := 1
		for n < len(extents) && extents[n].from-extents[n-1].to <= joinedGap {
			n++
		}
		first := m.data[extents[0].segment]
		if n > 1 {
			content := make([]byte, extents[n-1].to-extents[0].from)
			for _, s := range extents[:n] {
				copy(content[s.from-extents[0].from:], m.data[s.segment].bytes)
			}
			first.bytes = content
		}
		joined = append(joined, first)
		extents = extents[n:]
	}
	if len(joined) < len(m.data) {
		m.data, m.dataSection = joined, nil
	}
}

// extent is where an active segment goes.
type extent struct {
	from, to uint64
	segment  int
}

// dataExtents returns where active segments go, the lowest first. It says no where one
// overwrites another one, as far as can be told from their offsets: else their order is
// free.
func (m *module) dataExtents() ([]extent, bool) {
	extents := make([]extent, 0, len(m.data))
	for i, d := range m.data {
		if d.offset == nil {
			continue
		}
		r := reader{buf: d.offset}
		in := r.instr()
		if in.op != opI32Const || r.pos != len(d.offset)-1 {
			return nil, false
		}
		extents = append(extents, extent{uint64(in.a), uint64(in.a) + uint64(len(d.bytes)), i})
	}
	slices.SortFunc(extents, func(a, b extent) int {
		return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
	})
	for i := range extents {
		if i > 0 && extents[i].from < extents[i-1].to {
			return nil, false
		}
	}
	return extents, true
}

// addLoader makes active segments passive, from the given size on, adds what
// copies them, in their order, and then does what the module's own start function
// did, and returns its index.
func (m *module) addLoader(least int, o Options) uint32 {
	start, locals := asm{0}, asm{1, 1, valueI32}
	code := locals
	add := func(name string, code asm) uint32 {
		m.added.helpers = append(m.added.helpers, helper{name, m.typeOf(values(), values()), code.end()})
		return m.helperIndex(uint32(len(m.added.helpers) - 1))
	}
	flush := func(size int) {
		if len(code) > size {
			start = start.call(add("load-data", code))
			code = locals
		}
	}
	for i := range m.data {
		d := &m.data[i]
		if d.offset == nil || len(d.bytes) < least {
			continue
		}
		code = m.appendFits(code, d)
		for from := 0; from < len(d.bytes); from += partBytes {
			size := min(partBytes, len(d.bytes)-from)
			code = m.appendOffset(code, d).i32(int32(from)).op(i32Add)
			code = code.i32(int32(from)).i32(int32(size)).misc(opMemoryInit, uint32(i), 0)
			code = m.appendPay(code.i32(int32(size)>>bytesShift+16), 0) // 16 for the instruction
			flush(loaderBytes)
		}
		code = code.misc(opDataDrop, uint32(i))
		d.offset = nil
	}
	flush(len(locals))
	if m.hasStart {
		start = start.call(m.entry(m.start, o.Stack))
	}
	m.dataSection = nil
	m.dataCount = appendU32(nil, uint32(len(m.data)))
	return add("start", start)
}

// appendFits traps if a segment doesn't fit, before any of it is written: the
// offset of a part would wrap around at 4 GiB, that of a segment doesn't.
func (m *module) appendFits(a asm, d *data) asm {
	a = m.appendOffset(a, d).op(i64ExtendU).i32(int32(len(d.bytes))).op(i64ExtendU, i64Add)
	a = a.op(byte(opMemorySize), 0, i64ExtendU, byte(opI64Const), 16, i64Shl, i64GtU)
	return a.block(opIf).op(byte(opUnreachable)).end()
}

// appendOffset appends a segment's offset without its end.
func (m *module) appendOffset(a asm, d *data) asm {
	return m.appendExpressions(a, d.offset)[:len(a)+len(d.offset)-1]
}

func (m *module) encodeData() []byte {
	size := 8
	for _, d := range m.data {
		size += len(d.offset) + len(d.bytes) + 8
	}
	const active, passive = 0, 1
	out := appendU32(make([]byte, 0, size), uint32(len(m.data)))
	for _, d := range m.data {
		if d.offset == nil {
			out = append(out, passive)
		} else {
			out = m.appendExpressions(append(out, active), d.offset)
		}
		out = append(appendU32(out, uint32(len(d.bytes))), d.bytes...)
	}
	return out
}
