package meter

// emitter writes the code of one function after the other.
type emitter struct {
	m   *module
	out []byte
	path
	r reader
	f *function
	// scratch is a local for the balance, left one for the stack that is left, and base
	// one for the base of a run's accesses.
	scratch, left, base uint32
	// charged is where, in the function's code, the block of instructions ends
	// that is paid for.
	charged int
	// last are the instructions before, the latest first.
	last     [2]instr
	dispatch dispatch
	run      run
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
	e.last, e.charged = [2]instr{}, 0
	e.dispatch.begin()
	e.run.end = 0
	if e.f.counts {
		e.takeStack()
	}
	if e.f.recurs {
		e.checkBoth()
	} else if !e.f.light && !e.f.unchecked {
		e.check()
	}
	for e.r.more() {
		if e.r.pos >= e.charged && !e.dead {
			e.pay()
		}
		if e.m.byGo && e.r.pos >= e.run.end && !e.dead {
			e.run.read(e.r)
		}
		in := e.r.instr()
		if e.r.err != nil {
			return e.r.err
		}
		e.instr(in)
		e.last = [2]instr{in, e.last[0]}
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
	e.base = e.scratch + added
	if e.m.byGo {
		added++
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
	cost, gap, end := e.ahead()
	e.charged = end
	if e.f.light || e.r.pos == 0 && e.loopsAtOnce() {
		return
	}
	switch {
	case e.since > 0 && e.since+cost > stretchCost:
		e.check()
	case e.full(cost):
		e.only()
	}
	e.charge(cost)
	e.since += cost + gap
}

// hostCall is what leaving the guest's code costs, in units.
const hostCall = 300

// ahead returns what the instructions up to the next branch cost, and what the
// functions that they call can besides, without a check. It returns where that
// branch is, or where the stretch gets too long.
func (e *emitter) ahead() (cost, gap uint32, end int) {
	r := e.r
	for r.more() && cost+gap < stretchCost {
		in := r.instr()
		cost += in.cost
		switch in.op {
		case opCall, opReturnCall:
			if place, ok := e.m.own(in.a); ok && e.m.functions[place].light {
				cost += e.m.functions[place].cost
			} else if ok {
				gap += e.m.graph.gaps[place]
			} else {
				cost += hostCall
			}
		case opCallIndirect, opCallRef:
			node := e.m.typeNode(in.a)
			cost += e.m.graph.costs[int(node)-len(e.m.functions)]
			gap += e.m.graph.gaps[node]
		case opBlock, opLoop, opIf, opElse, opEnd, opTryTable,
			opBr, opBrIf, opBrTable, opBrOnNull, opBrOnNonNull,
			opReturn, opUnreachable, opThrow, opThrowRef, opReturnCallIndirect, opReturnCallRef:
			return cost, gap, r.pos
		}
	}
	return cost, gap, r.pos
}

// check writes a check and begins the region that it pays for.
func (e *emitter) check() {
	var at int
	e.out, at = e.m.appendCheck(e.out, e.scratch)
	e.open(at)
	e.since = 0
}

// only writes a charge without a check, and begins the region that it pays for:
// the next check, which isn't far, will see it.
func (e *emitter) only() {
	a := asm(e.out).getGlobal(e.m.fuelGlobal()).op(byte(opI32Const))
	e.out = append(a, 0x80, 0x80, 0).op(i32Sub).setGlobal(e.m.fuelGlobal())
	e.open(len(a))
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
	e.out = appendU32(append(e.out, byte(opLocalSet)), e.left)
}

// checkBoth writes the check of a function that recurs: of its fuel and of the
// stack that is left, which are negative if they are used up.
func (e *emitter) checkBoth() {
	fuel := e.m.fuelGlobal()
	a := asm(e.out)
	at := -1
	if e.loopsAtOnce() {
		a = a.get(e.left)
	} else {
		a = a.getGlobal(fuel).op(byte(opI32Const))
		at = len(a)
		a = append(a, 0x80, 0x80, 0).op(i32Sub).tee(e.scratch).setGlobal(fuel).get(e.scratch).get(e.left).op(i32Or)
	}
	e.out = a.i32(0).op(i32GeS).block(opIf).op(byte(opElse)).get(e.left).call(e.m.helperIndex(helperExhausted)).end()
	if at >= 0 {
		e.open(at)
	}
}

// loopsAtOnce says whether the function begins with a loop, which has a check.
func (e *emitter) loopsAtOnce() bool {
	r := e.r
	r.pos = 0
	for cost := uint32(0); r.more() && cost < lightCost; {
		in := r.instr()
		cost += in.cost
		switch in.op {
		case opLoop:
			return !e.f.flat
		case opBlock, opIf, opElse, opEnd, opTryTable,
			opBr, opBrIf, opBrTable, opBrOnNull, opBrOnNonNull, opCall, opCallIndirect, opCallRef,
			opReturn, opUnreachable, opThrow, opThrowRef, opReturnCallIndirect, opReturnCallRef:
			return false
		}
	}
	return false
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
	if e.edited(in) {
		return
	}
	switch in.op {
	case opBlock, opIf, opLoop, opTryTable, opElse, opEnd:
		e.structure(in)
	case opBr, opBrTable, opBrIf, opBrOnNull, opBrOnNonNull:
		if depth, ok := e.dispatch.ahead(e.last[1], e.last[0], in, e.depth()); ok {
			e.branchTo(opBr, depth)
			e.dead = true
			return
		}
		e.labels(in)
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
		e.reference(in)
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
		twice := e.top().twice
		e.dispatch.end(e.depth())
		caught := e.leave()
		if twice {
			e.out = append(e.out, byte(opElse), byte(opBr), 3, byte(opEnd), byte(opEnd), byte(opElse))
			e.out = asm(e.out).call(e.m.helperIndex(helperRefuel)).op(byte(opBr), 1).end()
		}
		e.copy(in)
		if caught && !last && !e.dead {
			// From where in the block they came isn't known.
			e.check()
		}
		return
	}
	if in.op == opLoop {
		e.dispatch.find(e.r, in, e.depth()+1)
	}
	switch {
	case in.op == opLoop && e.dispatch.begins(in) && e.f.flat:
		e.out = append(e.out, byte(opBlock), emptyBlock)
		e.enter(opBlock)
		return
	case in.op == opLoop && !e.dead:
		e.loop(in)
		return
	}
	if in.op == opIf && e.jumpIf() {
		return
	}
	if in.op == opTryTable {
		e.clauses(in)
		e.r.targets(in, e.catch)
	} else {
		e.copy(in)
	}
	e.enter(in.op)
}

// depth is how many blocks are around the instruction at hand.
func (e *emitter) depth() int { return len(e.frames) - 1 }

// branchTo writes a branch to the block of the given depth.
func (e *emitter) branchTo(op opcode, depth int) {
	label := uint32(e.depth() - depth)
	e.out = appendU32(append(e.out, byte(op)), e.label(label))
	e.branch(label)
}

// jumpIf writes a branch in place of an if in which there is nothing but a jump
// ahead by the dispatch.
func (e *emitter) jumpIf() bool {
	if !e.f.private {
		return false
	}
	r := e.r
	value, set, br, end := r.instr(), r.instr(), r.instr(), r.instr()
	depth, ok := e.dispatch.ahead(value, set, br, e.depth()+1)
	if !ok || end.op != opEnd {
		return false
	}
	e.branchTo(opBrIf, depth)
	e.r.pos = r.pos
	return true
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

// loop writes a loop's beginning. Its check has no call of the host in it, for
// whose sake values would be moved out of registers: it branches to the
// beginning of a second loop around it, where the call is.
func (e *emitter) loop(in instr) {
	fuel := e.m.fuelGlobal()
	blockType := e.f.body[in.start+1 : e.r.pos]
	e.copy(in)
	e.out = asm(e.out).getGlobal(fuel).i32(0).op(i32GeS, byte(opIf)).op(blockType...)
	e.copy(in)
	e.enter(in.op)
	e.top().depth += 2
	e.top().inner = e.top().depth + 1
	e.top().twice = true
	a := asm(e.out).getGlobal(fuel).op(byte(opI32Const))
	at := len(a)
	a = append(a, 0x80, 0x80, 0)
	a = a.op(i32Sub).tee(e.scratch).setGlobal(fuel).get(e.scratch).i32(0).op(i32GeS, byte(opIf))
	e.out = append(a, blockType...)
	e.open(at)
	e.since = 0
}

// labels writes a branch.
func (e *emitter) labels(in instr) {
	e.out = append(e.out, byte(in.op))
	if in.op == opBrTable {
		e.out = appendU32(e.out, in.a)
	}
	e.r.targets(in, func(label uint32) { e.out = appendU32(e.out, e.label(label)) })
}

// clauses writes the beginning of a try_table.
func (e *emitter) clauses(in instr) {
	r := reader{buf: e.r.buf[:e.r.pos], pos: in.start + 1, types: e.r.types}
	r.blockType()
	e.out = append(e.out, r.buf[in.start:r.pos]...)
	n := r.u32()
	e.out = appendU32(e.out, n)
	for range n {
		start := r.pos
		if kind := r.byte(); kind < 2 {
			r.u32() // the tag
		}
		e.out = append(e.out, r.buf[start:r.pos]...)
		e.out = appendU32(e.out, e.label(r.u32()))
	}
}

// reference writes a reference to a function. The engine makes a new one each
// time ref.func is executed and keeps them all until the instance ends: a loop
// would take all memory. So they are made once, in a table that is added.
//
// Where types are told apart more finely than a table of functions does, the
// instruction stays. The engine doesn't take such modules unless it is told to.
func (e *emitter) reference(in instr) {
	if e.m.typed {
		e.out = appendU32(append(e.out, byte(opRefFunc)), e.m.shift(in.a))
		return
	}
	a := asm(e.out).i32(int32(e.m.graph.references[in.a]))
	e.out = appendU32(append(a, byte(opTableGet)), uint32(len(e.m.tables)))
}
