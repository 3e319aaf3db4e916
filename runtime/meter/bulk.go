package meter

// Bulk operations on memory and tables are single instructions that may take
// milliseconds. Large ones run in parts, between which there are checks, in
// functions that are added to the module. Bounds are checked before anything is
// written, as wasm has it: an operation that is out of bounds runs as it is, and
// traps.

const (
	// inlineBytes is the most that isn't worth more than an instruction.
	inlineBytes = 256
	// partBytes, and entries of 8 bytes, are what runs without a check: 10 µs or
	// so, where the kernel has to give the pages.
	partBytes   = 64 << 10
	partEntries = partBytes / 8
	// bytesShift is how many bytes a unit of fuel is worth, as a power of 2.
	bytesShift = 3
)

// bulk writes an operation whose size is on top of the stack, in parts if it
// can be large.
func (e *emitter) bulk(in instr) {
	if !e.m.large(in) {
		small := e.last[0].op == opI32Const && e.last[0].a <= inlineBytes
		if !small {
			e.out = asm(e.out).call(e.m.helperIndex(helperCharge))
		}
		e.copy(in)
		return
	}
	if e.last[0].op == opI32Const && e.last[0].a <= inlineBytes {
		e.copy(in)
		return
	}
	index := e.m.helper(helperKey{in.op, in.a, in.b}, func() helper { return e.m.parts(in) })
	a := asm(e.out).tee(e.scratch).get(e.scratch).i32(inlineBytes).op(i32LeU, byte(opIf))
	a = appendS32(a, int32(e.m.added.helpers[index-e.m.helperIndex(0)].typ))
	a = append(a, e.f.body[in.start:e.r.pos]...)
	e.out = a.op(byte(opElse)).call(index).end()
}

// large says whether an operation can be of more than one part.
func (m *module) large(in instr) bool {
	switch in.op {
	case opMemoryCopy, opMemoryFill:
		return true
	case opMemoryInit:
		return uint64(in.a) < uint64(len(m.data)) && len(m.data[in.a].bytes) > partBytes
	case opTableInit:
		return uint64(in.a) < uint64(len(m.elements)) && m.elements[in.a].count > partEntries
	case opTableFill:
		return m.largeTable(in.a)
	case opTableCopy:
		return m.largeTable(in.a) && m.largeTable(in.b)
	}
	return false // opTableGrow, which the engine does in Go
}

func (m *module) largeTable(i uint32) bool {
	if uint64(i) >= uint64(len(m.tables)) {
		return false
	}
	return i < m.importedTables || m.tables[i].max > partEntries
}

// parts returns the helper for an operation. Its parameters are the
// instruction's: where to, where from or what with, how much.
func (m *module) parts(in instr) helper {
	what := []byte{valueI32}
	if in.op == opTableFill {
		what = m.tables[in.a].typ
	}
	params := append([]byte{3, valueI32}, what...)
	h := helper{name: in.op.name(), typ: m.typeOf(append(params, valueI32), values())}
	b := bulkCode{m: m, in: in, asm: asm{1, 1, valueI32}, part: partBytes, costShift: bytesShift}
	if in.op>>8 == prefixMisc && in.op >= opTableInit {
		b.part, b.costShift = partEntries, 0
	}
	h.code = b.write()
	return h
}

// The parameters of a helper, and its local.
const (
	paramTo = iota
	paramFrom
	paramSize
	localScratch
)

// bulkCode writes a helper.
type bulkCode struct {
	asm
	m    *module
	in   instr
	part int32
	// costShift says how many bytes or entries a unit of fuel is worth, as a
	// power of 2.
	costShift int32
}

func (b *bulkCode) write() asm {
	b.asm = b.block(opBlock) // the parts, unless …
	b.asm = b.get(paramSize).i32(b.part).op(i32LeU).brIf0()
	b.leaveIfOut()
	b.asm = b.block(opBlock) // from the front, unless …
	overlaps := b.in.op == opMemoryCopy || b.in.op == opTableCopy
	if overlaps { // … it would overwrite what is still to be read
		b.asm = b.get(paramTo).get(paramFrom).op(i32GtU).brIf0()
	}
	b.fromFront()
	b.asm = b.op(byte(opBr), 1).end()
	if overlaps {
		b.fromBack()
	}
	b.asm = b.end()
	// What is left, or all of it.
	b.asm = b.get(paramTo).get(paramFrom).get(paramSize)
	b.operation()
	b.asm = b.get(paramSize).i32(b.costShift).op(i32ShrU)
	b.pay()
	return b.asm.end()
}

// leaveIfOut leaves the parts to the operation itself if it is out of bounds.
func (b *bulkCode) leaveIfOut() {
	switch b.in.op {
	case opMemoryFill:
		b.outOfMemory(paramTo)
	case opMemoryCopy:
		b.outOfMemory(paramTo)
		b.outOfMemory(paramFrom)
	case opMemoryInit:
		b.outOfMemory(paramTo)
		b.outOfSegment(uint32(len(b.m.data[b.in.a].bytes)))
	case opTableFill:
		b.outOfTable(paramTo, b.in.a)
	case opTableCopy:
		b.outOfTable(paramTo, b.in.a)
		b.outOfTable(paramFrom, b.in.b)
	case opTableInit:
		b.outOfTable(paramTo, b.in.b)
		b.outOfSegment(b.m.elements[b.in.a].count)
	}
}

// last puts the end of what is at a parameter on the stack, as 64 bits.
func (b *bulkCode) last(param uint32) {
	b.asm = b.get(param).op(i64ExtendU).get(paramSize).op(i64ExtendU, i64Add)
}

func (b *bulkCode) outOfMemory(param uint32) {
	b.last(param)
	b.asm = b.op(byte(opMemorySize), 0, i64ExtendU, byte(opI64Const), 16, i64Shl, i64GtU).brIf0()
}

func (b *bulkCode) outOfTable(param, table uint32) {
	b.last(param)
	b.asm = b.misc(opTableSize, table).op(i64ExtendU, i64GtU).brIf0()
}

// outOfSegment looks at a segment, which has the given length or, once dropped,
// none: then an operation of no size at its end traps.
func (b *bulkCode) outOfSegment(length uint32) {
	b.last(paramFrom)
	b.asm = b.i32(int32(length)).op(i64ExtendU, i64GtU).brIf0()
	b.asm = b.i32(0).get(paramFrom).get(paramSize).op(i32Add).i32(0)
	b.operation()
}

func (b *bulkCode) operation() {
	switch b.in.op {
	case opMemoryFill:
		b.asm = b.misc(b.in.op, 0)
	case opMemoryCopy:
		b.asm = b.misc(b.in.op, 0, 0)
	case opTableFill:
		b.asm = b.misc(b.in.op, b.in.a)
	default:
		b.asm = b.misc(b.in.op, b.in.a, b.in.b)
	}
}

// fromFront does part after part, and leaves the last, or half of it.
func (b *bulkCode) fromFront() {
	b.asm = b.block(opLoop).get(paramTo).get(paramFrom).i32(b.part)
	b.operation()
	b.asm = b.get(paramTo).i32(b.part).op(i32Add).set(paramTo)
	if b.in.op != opMemoryFill && b.in.op != opTableFill {
		b.asm = b.get(paramFrom).i32(b.part).op(i32Add).set(paramFrom)
	}
	b.asm = b.get(paramSize).i32(b.part).op(i32Sub).set(paramSize)
	b.again()
}

// fromBack does part after part from the end, and leaves the first.
func (b *bulkCode) fromBack() {
	b.asm = b.block(opLoop)
	b.asm = b.get(paramSize).i32(b.part).op(i32Sub).set(paramSize)
	b.asm = b.get(paramTo).get(paramSize).op(i32Add)
	b.asm = b.get(paramFrom).get(paramSize).op(i32Add)
	b.asm = b.i32(b.part)
	b.operation()
	b.again()
}

// again pays for a part and ends the loop.
func (b *bulkCode) again() {
	b.asm = b.i32(b.part >> b.costShift)
	b.pay()
	b.asm = b.get(paramSize).i32(b.part).op(i32GtU).brIf0().end()
}

// pay takes what is on the stack from the balance, and checks it.
func (b *bulkCode) pay() { b.asm = b.m.appendPay(b.asm, localScratch) }

func (m *module) appendPay(a asm, scratch uint32) asm {
	fuel := m.fuelGlobal()
	a = a.set(scratch).getGlobal(fuel).get(scratch).op(i32Sub).tee(scratch).setGlobal(fuel)
	return a.get(scratch).i32(0).op(i32LtS).block(opIf).call(m.helperIndex(helperRefuel)).end()
}

func (o opcode) name() string {
	switch o {
	case opMemoryInit:
		return "memory.init"
	case opMemoryCopy:
		return "memory.copy"
	case opMemoryFill:
		return "memory.fill"
	case opTableInit:
		return "table.init"
	case opTableCopy:
		return "table.copy"
	default:
		return "table.fill"
	}
}
