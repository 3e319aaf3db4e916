package meter

import (
	"cmp"
	"slices"
)

// The engine checks each access to memory against the memory's size, unless it has
// checked the same value as an address before, for as much or more. A check is a
// branch that is taken, around some 45 bytes. Go's code has its variables in memory, so
// that checks take most of its time. So where a stretch of such code accesses memory
// by one local with several offsets, there is one check for all of them.
//
// Sums of the local and a constant count as offsets as well. That is wrong for an
// address that is less than the constant since it has wrapped around at 4 GiB: such an
// access traps. Go's compiler, to whose modules all this is limited, makes none: it is the
// stack pointer of which it makes sums.

// run is a stretch of code that is executed from its beginning to its end, unless an
// access to memory in it traps.
type run struct {
	end   int    // where it ends, in the function's code
	edits []edit // what is to be written otherwise, in order
	next  int    // the first of them that isn't written

	stack    []operand // what is known of the values that the run has put there
	locals   []local
	groups   int32
	accesses []access
}

// place is a value: how far it is behind that of its group. Groups are counted from 1.
type place struct{ group, far int32 }

// local is what is known of a local's value.
type local struct {
	index uint32
	place
}

// operand is a value on the stack. Its group is 0 if it isn't an address.
type operand struct {
	place
	// source is where the instruction is that has read it from a local, less more;
	// negative if there is none.
	source int
	more   int32
	skip   int // where the code that adds more ends, if there is any
	// constant says that far is the value of one.
	constant bool
}

// base is how far behind its group's value the local was.
func (o operand) base() int32 { return o.far - o.more }

// access is one to memory.
type access struct {
	operand
	at    int
	reach int32 // how far behind its group's value it ends
}

// edit is how an instruction is written.
type edit struct {
	at int
	// more is added to its offset.
	more uint32
	// address is what it puts on the stack.
	address address
	// shift is how far the base is behind its value, if it is made of it.
	shift int32
	// check is how much memory there must be behind the address, if it isn't 0.
	check uint32
	// skip is where the code goes on after it, if it isn't 0.
	skip int
}

type address byte

const (
	asItIs   address = iota
	makeBase         // of its value
	useBase          // in place of its value
)

const (
	// farthest bounds offsets and sums.
	farthest = 1 << 20
	// longestRun is how many instructions of a run are looked at, and mostLocals of how
	// many locals something is known at a time.
	longestRun, mostLocals = 256, 16
)

// read finds the run that r is at the beginning of.
func (n *run) read(r reader) {
	n.edits, n.next = n.edits[:0], 0
	n.stack, n.locals, n.accesses, n.groups = n.stack[:0], n.locals[:0], n.accesses[:0], 0
	for range longestRun {
		if !r.more() || !n.step(r.instr(), &r) {
			break
		}
	}
	n.end = r.pos
	slices.SortStableFunc(n.accesses, func(a, b access) int { return cmp.Compare(a.group, b.group) })
	based := false
	for rest := n.accesses; len(rest) > 0; {
		size := 1
		for size < len(rest) && rest[size].group == rest[0].group {
			size++
		}
		based = n.share(rest[:size], based)
		rest = rest[size:]
	}
	slices.SortFunc(n.edits, func(a, b edit) int { return cmp.Compare(a.at, b.at) })
}

// share makes the accesses of a group, which are in order, share a check. If the local had
// several values, these are replaced by a base, unless the run has one already.
// It returns whether it has one then.
func (n *run) share(group []access, based bool) bool {
	first := group[0]
	low, high, source, several := first.base(), first.reach, first.source, false
	for _, a := range group[1:] {
		several = several || a.base() != first.base()
		low, high, source = min(low, a.base()), max(high, a.reach), min(source, a.source)
	}
	if several && based {
		return based
	}
	for _, a := range group {
		e := edit{at: a.source, skip: a.skip}
		if several {
			e.address = useBase
		}
		if a.source == source {
			if several {
				e.address, e.shift = makeBase, low-a.base()
			}
			if first.reach < high {
				e.check = uint32(high - low)
			}
		}
		if e != (edit{at: a.source}) {
			n.edits = append(n.edits, e)
		}
		if more := a.far - low; more > 0 {
			n.edits = append(n.edits, edit{at: a.at, more: uint32(more)})
		}
	}
	return based || several
}

// step follows an instruction that r has just read, and says whether the run goes on
// behind it.
func (n *run) step(in instr, r *reader) bool {
	switch {
	case in.op == opLocalGet:
		n.push(sum(operand{place: n.place(in.a), source: in.start}, r))
	case in.op == opLocalSet:
		n.set(in.a, n.pop().place)
	case in.op == opLocalTee:
		n.set(in.a, n.pop().place)
		n.push(sum(operand{place: n.place(in.a), source: in.start}, r))
	case in.op == opI32Const:
		n.push(operand{place: place{far: int32(in.a)}, constant: true})
	case in.op == opI32Add:
		b, a := n.pop(), n.pop()
		n.push(a.plus(b, int64(b.far)))
	case in.op == opI32Sub:
		b, a := n.pop(), n.pop()
		n.push(a.plus(b, -int64(b.far)))
	case in.op >= opI32Load && in.op <= opI64Store32:
		n.access(in)
	default:
		pops, pushes, ok := effect(in.op)
		if !ok {
			return false
		}
		for range pops {
			n.pop()
		}
		for range pushes {
			n.push(operand{})
		}
	}
	return true
}

// plus is what comes of adding c, which is so far, to an operand.
func (o operand) plus(c operand, far int64) operand {
	if o.group == 0 || !c.constant || !near(int64(o.far)+far) {
		return operand{}
	}
	return operand{place: place{o.group, o.far + int32(far)}, source: -1}
}

func near(far int64) bool { return -farthest <= far && far <= farthest }

// place is where the value of a local is. If that isn't known, a group begins with
// it.
func (n *run) place(index uint32) place {
	for _, l := range n.locals {
		if l.index == index {
			return l.place
		}
	}
	if len(n.locals) == mostLocals {
		return place{}
	}
	n.groups++
	p := place{group: n.groups}
	n.locals = append(n.locals, local{index, p})
	return p
}

// set gives a local a value, which may be nowhere.
func (n *run) set(index uint32, p place) {
	n.locals = slices.DeleteFunc(n.locals, func(l local) bool { return l.index == index })
	if p.group > 0 && len(n.locals) < mostLocals {
		n.locals = append(n.locals, local{index, p})
	}
}

func (n *run) push(o operand) { n.stack = append(n.stack, o) }

func (n *run) pop() operand {
	last := len(n.stack) - 1
	if last < 0 {
		return operand{} // from before the run
	}
	o := n.stack[last]
	n.stack = n.stack[:last]
	return o
}

// sum is an operand that was read from a local, and what the code that follows adds to
// it, if it does so as Go's compiler does: in 64 bits. It steps over that.
func sum(o operand, r *reader) operand {
	ahead := *r
	if ahead.instr().op != opI64ExtendI32U {
		return o
	}
	c, add, wrap := ahead.instr(), ahead.instr(), ahead.instr()
	if o.group == 0 || c.op != opI64Const || c.a > farthest || !near(int64(o.far)+int64(c.a)) || add.op != opI64Add || wrap.op != opI32Wrap {
		return o
	}
	o.more, o.skip = int32(c.a), ahead.pos
	o.far += o.more
	r.pos = ahead.pos
	return o
}

// access notes an access to memory.
func (n *run) access(in instr) {
	if in.op >= opI32Store {
		n.pop()
	}
	o := n.pop()
	if in.op < opI32Store {
		n.push(operand{})
	}
	if o.group > 0 && o.source >= 0 && in.b <= farthest {
		n.accesses = append(n.accesses, access{o, in.start, o.far + int32(in.b) + int32(sizes[in.op-opI32Load])})
	}
}

// sizes are how many bytes loads and stores access, from i32.load on.
var sizes = [...]byte{4, 8, 4, 8, 1, 1, 2, 2, 1, 1, 2, 2, 4, 4, 4, 8, 4, 8, 1, 2, 1, 2, 4}

// effect is how many values an instruction takes off the stack and how many it puts
// there, if that is all it does besides setting a global: if it doesn't trap or branch.
func effect(op opcode) (pops, pushes int, ok bool) {
	const (
		nop, pick                    = 0x01, 0x1b
		i32Eqz, i64Eqz               = 0x45, 0x50
		i32Clz, i32Popcnt            = 0x67, 0x69
		i64Clz, i64Popcnt            = 0x79, 0x7b
		f32Abs, f32Sqrt              = 0x8b, 0x91
		f64Abs, f64Sqrt              = 0x99, 0x9f
		i32DivS, i32RemU             = 0x6d, 0x70
		i64DivS, i64RemU             = 0x7f, 0x82
		i32TruncF32S, i32TruncF64U   = 0xa8, 0xab
		i64TruncF32S, i64TruncF64U   = 0xae, 0xb1
		firstBinary, lastBinary      = 0x46, 0xa6
		firstConversion, lastNumeric = opI32Wrap, 0xc4
	)
	in := func(from, to opcode) bool { return from <= op && op <= to }
	switch {
	case op == nop:
		return 0, 0, true
	case in(opI32Const, 0x44), op == opGlobalGet:
		return 0, 1, true
	case op == opDrop, op == opGlobalSet:
		return 1, 0, true
	case op == pick:
		return 3, 1, true
	case in(i32DivS, i32RemU), in(i64DivS, i64RemU), in(i32TruncF32S, i32TruncF64U), in(i64TruncF32S, i64TruncF64U):
		return 0, 0, false
	case op == i32Eqz, op == i64Eqz, in(i32Clz, i32Popcnt), in(i64Clz, i64Popcnt), in(f32Abs, f32Sqrt), in(f64Abs, f64Sqrt),
		in(firstConversion, lastNumeric):
		return 1, 1, true
	case in(firstBinary, lastBinary):
		return 2, 1, true
	}
	return 0, 0, false
}

// edited writes an instruction for which there is an edit, if it is.
func (e *emitter) edited(in instr) bool {
	n := &e.run
	for n.next < len(n.edits) && n.edits[n.next].at < in.start {
		n.next++
	}
	if n.next == len(n.edits) || n.edits[n.next].at != in.start {
		return false
	}
	d := n.edits[n.next]
	if d.more > 0 {
		e.out = appendU32(appendU32(append(e.out, byte(in.op)), in.a), in.b+d.more)
		return true
	}
	base := in.a
	if d.address != asItIs {
		base = e.base
	}
	switch {
	case d.address == makeBase:
		e.copy(in)
		e.out = asm(e.out).i32(d.shift).op(byte(opI32Add)).tee(base)
	case d.address == useBase && in.op == opLocalTee:
		e.out = asm(e.out).set(in.a).get(base)
	case d.address == useBase:
		e.out = asm(e.out).get(base)
	default:
		e.copy(in)
	}
	if d.check > 0 {
		e.out = asm(e.out).get(base).op(byte(opI32Load8U), 0)
		e.out = append(appendU32(e.out, d.check-1), byte(opDrop))
	}
	if d.skip > 0 {
		e.r.pos = d.skip
	}
	return true
}
