package meter

import (
	"fmt"
	"math"
)

// opcode is an instruction's code: one byte, or a prefix in the high byte and
// the code after it in the low one.
type opcode uint16

const (
	opUnreachable        opcode = 0x00
	opBlock              opcode = 0x02
	opLoop               opcode = 0x03
	opIf                 opcode = 0x04
	opElse               opcode = 0x05
	opThrow              opcode = 0x08
	opThrowRef           opcode = 0x0a
	opEnd                opcode = 0x0b
	opBr                 opcode = 0x0c
	opBrIf               opcode = 0x0d
	opBrTable            opcode = 0x0e
	opReturn             opcode = 0x0f
	opCall               opcode = 0x10
	opCallIndirect       opcode = 0x11
	opReturnCall         opcode = 0x12
	opReturnCallIndirect opcode = 0x13
	opCallRef            opcode = 0x14
	opReturnCallRef      opcode = 0x15
	opSelectTyped        opcode = 0x1c
	opTryTable           opcode = 0x1f
	opTableGet           opcode = 0x25
	opTableSet           opcode = 0x26
	opDrop               opcode = 0x1a
	opLocalGet           opcode = 0x20
	opLocalSet           opcode = 0x21
	opLocalTee           opcode = 0x22
	opGlobalGet          opcode = 0x23
	opGlobalSet          opcode = 0x24
	opI32Load            opcode = 0x28
	opI32Load8U          opcode = 0x2d
	opI32Store           opcode = 0x36
	opI64Store32         opcode = 0x3e
	opMemorySize         opcode = 0x3f
	opMemoryGrow         opcode = 0x40
	opI32Const           opcode = 0x41
	opI64Const           opcode = 0x42
	opI32Add             opcode = 0x6a
	opI32Sub             opcode = 0x6b
	opI64Add             opcode = 0x7c
	opI32Wrap            opcode = 0xa7
	opI64ExtendI32U      opcode = 0xad
	opRefNull            opcode = 0xd0
	opRefFunc            opcode = 0xd2
	opRefAsNonNull       opcode = 0xd4
	opBrOnNull           opcode = 0xd5
	opBrOnNonNull        opcode = 0xd6

	prefixMisc   = 0xfc
	prefixVector = 0xfd
	prefixAtomic = 0xfe

	opMemoryInit opcode = prefixMisc<<8 | 8
	opDataDrop   opcode = prefixMisc<<8 | 9
	opMemoryCopy opcode = prefixMisc<<8 | 10
	opMemoryFill opcode = prefixMisc<<8 | 11
	opTableInit  opcode = prefixMisc<<8 | 12
	opElemDrop   opcode = prefixMisc<<8 | 13
	opTableCopy  opcode = prefixMisc<<8 | 14
	opTableGrow  opcode = prefixMisc<<8 | 15
	opTableSize  opcode = prefixMisc<<8 | 16
	opTableFill  opcode = prefixMisc<<8 | 17
)

func (o opcode) String() string {
	if o > 0xff {
		return fmt.Sprintf("%#x %#x", uint16(o>>8), uint16(o&0xff))
	}
	return fmt.Sprintf("%#x", uint16(o))
}

// emptyBlock is the type of a block without parameters or results.
const emptyBlock = 0x40

// shape is what follows an opcode.
type shape byte

const (
	unknown  shape = iota
	plain          // nothing
	index          // an index or label
	twoIndex       // two of them
	memArg         // alignment and offset
	memLane        // that, and a lane
	lane           // a lane
	bytes4
	bytes8
	bytes16
	zero    // a reserved zero byte
	twoZero // two of them
	constI32
	constI64
	block    // a block type
	tryTable // a block type and catch clauses
	brTable  // labels
	typed    // the types of a select
	heap     // a heap type
	waiting  // known, but can't be interrupted
)

// shapes and costs hold, per prefix (0 for none) and code, what follows an
// opcode and what it costs: in units of about the time of an addition.
var shapes, costs = opcodeTables()

// The tables' rows.
const (
	rowPlain = iota
	rowMisc
	rowVector
	rowAtomic
	rows
)

func opcodeTables() (s [rows][256]shape, c [rows][256]uint16) {
	set := func(row, from, to int, is shape, cost uint16) {
		for code := from; code <= to; code++ {
			s[row][code], c[row][code] = is, cost
		}
	}
	plainOpcodes(set)
	miscOpcodes(set)
	vectorOpcodes(set)
	atomicOpcodes(set)
	return s, c
}

func plainOpcodes(set func(row, from, to int, is shape, cost uint16)) {
	const (
		division = 8
		call     = 6
		// raise is a call of the engine that copies the stack.
		raise = 1000
	)
	one := func(code int, is shape, cost uint16) { set(rowPlain, code, code, is, cost) }
	one(0x00, plain, 0)
	one(0x01, plain, 0)
	set(rowPlain, 0x02, 0x03, block, 0)
	one(0x04, block, 1)
	one(0x05, plain, 0)
	one(0x08, index, raise)
	one(0x0a, plain, raise)
	one(0x0b, plain, 0)
	set(rowPlain, 0x0c, 0x0d, index, 1)
	one(0x0e, brTable, 4)
	one(0x0f, plain, 1)
	one(0x10, index, call) // see hostCall
	one(0x11, twoIndex, call+4)
	one(0x12, index, call)
	one(0x13, twoIndex, call+4)
	set(rowPlain, 0x14, 0x15, index, call+2)
	one(0x1a, plain, 0)
	one(0x1b, plain, 1)
	one(0x1c, typed, 1)
	one(0x1f, tryTable, raise)
	set(rowPlain, 0x20, 0x22, index, 0) // registers, as often as not
	set(rowPlain, 0x23, 0x24, index, 1)
	set(rowPlain, 0x25, 0x26, index, 4)
	set(rowPlain, 0x28, 0x3e, memArg, 2)
	one(0x3f, zero, 1)
	one(0x40, zero, 1000) // a call of the engine, and of the kernel
	one(0x41, constI32, 0)
	one(0x42, constI64, 0)
	one(0x43, bytes4, 1)
	one(0x44, bytes8, 1)
	set(rowPlain, 0x45, 0xc4, plain, 1)
	set(rowPlain, 0x6d, 0x70, plain, division)
	set(rowPlain, 0x7f, 0x82, plain, division)
	set(rowPlain, 0x91, 0x91, plain, division) // square root
	set(rowPlain, 0x95, 0x95, plain, division)
	set(rowPlain, 0x9f, 0x9f, plain, division)
	set(rowPlain, 0xa3, 0xa3, plain, division)
	set(rowPlain, 0xa8, 0xb1, plain, 2) // truncations
	one(0xd0, heap, 0)
	one(0xd1, plain, 1)
	one(0xd2, index, 4) // see reference
	one(0xd4, plain, 1)
	set(rowPlain, 0xd5, 0xd6, index, 1)
}

func miscOpcodes(set func(row, from, to int, is shape, cost uint16)) {
	// What bulk operations cost by size is charged where they run.
	const bulk = 20
	set(rowMisc, 0, 7, plain, 3)
	set(rowMisc, 8, 8, twoIndex, bulk)
	set(rowMisc, 9, 9, index, 2)
	set(rowMisc, 10, 10, twoZero, bulk)
	set(rowMisc, 11, 11, zero, bulk)
	set(rowMisc, 12, 12, twoIndex, bulk)
	set(rowMisc, 13, 13, index, 2)
	set(rowMisc, 14, 14, twoIndex, bulk)
	set(rowMisc, 15, 15, index, 500) // a call of the engine
	set(rowMisc, 16, 16, index, 2)
	set(rowMisc, 17, 17, index, bulk)
}

func vectorOpcodes(set func(row, from, to int, is shape, cost uint16)) {
	set(rowVector, 0x00, 0xff, plain, 2)
	set(rowVector, 0x00, 0x0b, memArg, 2)
	set(rowVector, 0x0c, 0x0c, bytes16, 1)
	set(rowVector, 0x0d, 0x0d, bytes16, 2) // shuffle
	set(rowVector, 0x15, 0x22, lane, 2)
	set(rowVector, 0x54, 0x5b, memLane, 3)
	set(rowVector, 0x5c, 0x5d, memArg, 2)
	for _, hole := range []int{0x9a, 0xa2, 0xa5, 0xa6, 0xaf, 0xb0, 0xb2, 0xb3, 0xb4, 0xbb, 0xc2, 0xc5, 0xc6, 0xcf, 0xd0, 0xd2, 0xd3, 0xd4, 0xe2, 0xee} {
		set(rowVector, hole, hole, unknown, 0)
	}
	for _, slow := range []int{0xe3, 0xe7, 0xef, 0xf3} { // roots and divisions
		set(rowVector, slow, slow, plain, 12)
	}
}

func atomicOpcodes(set func(row, from, to int, is shape, cost uint16)) {
	const locked = 30
	set(rowAtomic, 0x00, 0x00, memArg, 100) // notify: a call of the engine
	set(rowAtomic, 0x01, 0x02, waiting, 0)
	set(rowAtomic, 0x03, 0x03, zero, locked)
	set(rowAtomic, 0x10, 0x4e, memArg, locked)
}

// instr is one instruction.
type instr struct {
	op    opcode
	start int // in the reader
	// a and b are what follows the opcode where it is indices; a is the value of
	// an i32.const, as bits.
	a, b uint32
	cost uint32
}

// instr reads an instruction. What has a variable length, the labels of a
// br_table and the clauses of a try_table, is checked and stepped over; targets
// reads it again.
func (r *reader) instr() instr {
	in := instr{start: r.pos}
	code, row := r.byte(), rowPlain
	in.op = opcode(code)
	switch code {
	case prefixMisc, prefixVector, prefixAtomic:
		row = rowMisc + int(code-prefixMisc)
		in.op = opcode(code)<<8 | r.suffix(code)
		code = byte(in.op)
	}
	in.cost = uint32(costs[row][code])
	switch s := shapes[row][code]; s {
	case plain:
	case index:
		in.a = r.u32()
	case memArg:
		if in.a = r.u32(); in.a >= 32 {
			r.fail(in.start, "alignment of more than 2^31")
		}
		in.b = r.u32()
	default:
		r.rest(&in, s)
	}
	return in
}

// suffix reads the code after a prefix. The engine takes one byte for those of
// vectors, and a second as an instruction of its own: a nop, since all codes
// that it knows are below 256 and have 1 there. Anything else would be read
// differently here and there.
func (r *reader) suffix(prefix byte) opcode {
	at := r.pos
	code := r.u32()
	if code > 0xff || prefix != prefixMisc && r.pos-at != sizeU32(code) || prefix == prefixAtomic && code > 0x7f {
		r.fail(at-1, "opcode %#x %#x isn't known", prefix, code)
		return 0
	}
	return opcode(code)
}

func (r *reader) rest(in *instr, s shape) {
	switch s {
	case twoIndex:
		in.a = r.u32()
		in.b = r.u32()
	case memLane:
		if r.u32() >= 32 {
			r.fail(in.start, "alignment of more than 2^31")
		}
		r.u32()
		r.byte()
	case lane:
		r.byte()
	case bytes4:
		r.take(4)
	case bytes8:
		r.take(8)
	case bytes16:
		r.take(16)
	case zero:
		r.zero(in)
	case twoZero:
		r.zero(in)
		r.zero(in)
	case constI32:
		in.a = uint32(r.signed(32))
	case constI64:
		in.a = uint32(min(uint64(r.signed(64)), math.MaxUint32))
	case block:
		r.blockType()
	case tryTable:
		r.blockType()
		r.catches(nil)
	case brTable:
		in.a = r.count() // and the default label
		for range in.a + 1 {
			r.u32()
		}
	case typed:
		if r.byte() != 1 {
			r.fail(in.start, "select of more than one type")
		}
		r.valueType()
	case heap:
		// Not a heap type in full: the engine takes bytes of its own here.
		if b := r.byte(); b != 0x70 && b != 0x6f && b != 0x69 {
			r.pos--
			at := r.pos
			r.isType(at, r.u32())
		}
	case waiting:
		r.fail(in.start, "opcode %v, memory.atomic.wait, can't be interrupted", in.op)
	default:
		r.fail(in.start, "opcode %v isn't known", in.op)
	}
}

func (r *reader) zero(in *instr) {
	if r.byte() != 0 {
		r.fail(in.start, "opcode %v of a memory other than 0", in.op)
	}
}

func (r *reader) blockType() {
	at := r.pos
	switch b := r.byte(); b {
	case 0x40:
	case refNull, refNonNull:
		r.heapType()
	default:
		r.pos = at
		if b >= 0x40 && b < 0x80 {
			r.valueType()
		} else if t := r.signed(33); t < 0 {
			r.fail(at, "block type %d isn't known", t)
		} else {
			r.isType(at, uint32(t))
		}
	}
}

// catches reads the clauses of a try_table and gives their labels to each, if
// it isn't nil.
func (r *reader) catches(each func(label uint32)) {
	for n := r.count(); n > 0; n-- {
		at := r.pos
		switch kind := r.byte(); kind {
		case 0, 1:
			r.u32() // the tag
		case 2, 3:
		default:
			r.fail(at, "catch clause %#x isn't known", kind)
		}
		label := r.u32()
		if each != nil {
			each(label)
		}
	}
}

// targets gives each label that in, which r has just read, can branch to.
// Labels of a try_table's clauses count from the block around it.
func (r *reader) targets(in instr, each func(label uint32)) {
	again := reader{buf: r.buf[:r.pos], pos: in.start + 1, base: r.base, types: r.types}
	switch in.op {
	case opBr, opBrIf, opBrOnNull, opBrOnNonNull:
		each(in.a)
	case opBrTable:
		for n := again.u32() + 1; n > 0; n-- {
			each(again.u32())
		}
	case opTryTable:
		again.blockType()
		again.catches(each)
	}
}
