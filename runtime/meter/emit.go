package meter

// emitter writes the code of one function after the other.
type emitter struct {
	m   *module
	out []byte
	path
	r reader
	f *function
	// scratch is a local for the balance, and left one for the stack that is
	// left.
	scratch, left uint32
	// charged is where, in the function's code, the block of instructions ends
	// that is paid for.
	charged int
	// last is the instruction before.
	last instr
}

func newEmitter(m *module) *emitter {
	e := &emitter{m: m}
	e.closed = e.patch
	return e
}

// emit appends the code of function i, with its size.
func (e *emitter) emit(i int) error {
	e.f = &e.m.functions[i]
	e.r = reader{buf: e.f.body, base: e.f.base, types: uint32(len(e.m.types))}
	e.locals()
	e.begin()
	e.last, e.charged = instr{}, 0
	if e.f.counts {
		e.takeStack()
	}
	for e.r.more() {
		if e.r.pos >= e.charged && !e.dead {
			e.pay()
		}
		in := e.r.instr()
		if e.r.err != nil {
			return e.r.err
		}
		e.instr(in)
		e.last = in
	}
	return nil
}

// locals writes the declarations of the function's locals and of ours.
func (e *emitter) locals() {
	f := e.f
	e.scratch = e.m.types[f.typ].paramCount + f.count
	e.left = e.scratch + 1
	added := uint32(1)
	if f.counts {
		added = 2
	}
	if f.light && !f.counts {
		added = 0
	}
	groups := f.groups
	if added > 0 {
		groups++
	}
	e.out = appendU32(e.out, groups)
	e.out = append(e.out, f.locals...)
	if added > 0 {
		e.out = append(appendU32(e.out, added), 0x7f)
	}
}

// pay sees to it that the instructions from here to the next branch are paid
// for: by the region at hand, or by a check here.
func (e *emitter) pay() {
	cost, end := e.ahead()
	e.charged = end
	if e.f.light {
		return
	}
	if e.full(cost) {
		e.check()
	}
	e.charge(cost)
}

// ahead returns what the instructions up to the next branch cost, and where that
// is, or where the stretch gets too long.
func (e *emitter) ahead() (cost uint32, end int) {
	r := e.r
	for r.more() && cost < stretchCost {
		in := r.instr()
		cost += in.cost
		switch in.op {
		case opCall, opReturnCall:
			if place, ok := e.m.own(in.a); ok && e.m.functions[place].light {
				cost += e.m.functions[place].cost
			}
		case opBlock, opLoop, opIf, opElse, opEnd, opTryTable,
			opBr, opBrIf, opBrTable, opBrOnNull, opBrOnNonNull,
			opReturn, opUnreachable, opThrow, opThrowRef, opReturnCallIndirect, opReturnCallRef:
			return cost, r.pos
		}
	}
	return cost, r.pos
}

// check writes a check and begins the region that it pays for.
func (e *emitter) check() {
	var at int
	e.out, at = e.m.appendCheck(e.out, e.scratch)
	e.open(at)
}

// patch writes what a region costs into its check.
func (e *emitter) patch(r region) {
	putPadded(e.out[r.patch:], max(r.most, 1))
}

// takeStack takes the function's frame from the stack that its caller left.
func (e *emitter) takeStack() {
	e.out = appendU32(append(e.out, byte(opGlobalGet)), e.m.stackGlobal())
	e.out = appendS32(append(e.out, byte(opI32Const)), int32(e.f.frame))
	e.out = append(e.out, 0x6b) // i32.sub
	if !e.f.recurs {
		e.out = appendU32(append(e.out, byte(opLocalSet)), e.left)
		return
	}
	e.out = appendU32(append(e.out, byte(opLocalTee)), e.left)
	e.out = append(e.out, byte(opI32Const), 0, 0x48, byte(opIf), 0x40) // i32.lt_s
	e.out = appendU32(append(e.out, byte(opCall)), e.m.helperIndex(helperExhausted))
	e.out = append(e.out, byte(opEnd))
}

// leaveStack tells a callee what stack is left, which calls before may have
// changed. A tail call leaves its caller's frame too.
func (e *emitter) leaveStack(tail bool) {
	e.out = appendU32(append(e.out, byte(opLocalGet)), e.left)
	if tail {
		e.out = appendS32(append(e.out, byte(opI32Const)), int32(e.f.frame))
		e.out = append(e.out, 0x6a) // i32.add
	}
	e.out = appendU32(append(e.out, byte(opGlobalSet)), e.m.stackGlobal())
}

func (e *emitter) copy(in instr) {
	e.out = append(e.out, e.f.body[in.start:e.r.pos]...)
}

// instr writes one instruction.
func (e *emitter) instr(in instr) {
	switch in.op {
	case opBlock, opIf, opLoop, opTryTable, opElse, opEnd:
		e.structure(in)
	case opBr, opBrTable, opBrIf, opBrOnNull, opBrOnNonNull:
		e.copy(in)
		e.r.targets(in, e.branch)
		e.dead = e.dead || in.op == opBr || in.op == opBrTable
	case opReturn, opUnreachable, opThrow, opThrowRef:
		e.copy(in)
		e.dead = true
	case opCall, opReturnCall:
		e.call(in)
	case opCallIndirect, opReturnCallIndirect, opCallRef, opReturnCallRef:
		e.callType(in)
	case opRefFunc:
		e.out = appendU32(append(e.out, byte(opRefFunc)), e.m.shift(in.a))
	case opMemoryInit, opMemoryCopy, opMemoryFill, opTableInit, opTableCopy, opTableGrow, opTableFill:
		e.bulk(in)
	default:
		e.copy(in)
	}
}

// structure writes what begins, parts or ends a block.
func (e *emitter) structure(in instr) {
	switch in.op {
	case opElse:
		e.orElse()
		e.copy(in)
		return
	case opEnd:
		last := len(e.frames) == 1
		caught := e.leave()
		e.copy(in)
		if caught && !last && !e.dead {
			// From where in the block they came isn't known.
			e.check()
		}
		return
	}
	e.copy(in)
	e.r.targets(in, e.catch)
	e.enter(in.op)
	if in.op == opLoop && !e.dead {
		e.check()
	}
}

func (e *emitter) call(in instr) {
	if place, ok := e.m.own(in.a); ok && e.m.functions[place].counts {
		e.leaveStack(in.op == opReturnCall)
	}
	e.out = appendU32(append(e.out, byte(in.op)), e.m.shift(in.a))
	e.dead = e.dead || in.op == opReturnCall
}

// callType writes a call that names a type.
func (e *emitter) callType(in instr) {
	tail := in.op == opReturnCallIndirect || in.op == opReturnCallRef
	if e.m.graph.counts[int(e.m.typeNode(in.a))-len(e.m.functions)] {
		e.leaveStack(tail)
	}
	e.copy(in)
	e.dead = e.dead || tail
}
