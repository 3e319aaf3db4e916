package meter

// dispatch is a loop that begins with a jump by the value of a local:
//
//	loop
//	  block … block
//	    local.get P
//	    br_table …
//	  end
//	  …
//	  i32.const 3, local.set P, br to the loop
//	  …
//	end
//
// Go's compiler makes one of each function, for that is how a goroutine goes on
// where it was stopped, and all other jumps of the function go through it as well. To
// the engine each is an indirect one, where all locals meet. But where they lead is
// known: those that lead ahead become branches to there, and where all do, the loop
// is a block.
type dispatch struct {
	tried bool
	at    int    // where the loop is in the function's code
	loop  int    // the depth of the loop: how many blocks are around what is in it
	open  int    // how many of the blocks that it begins with haven't ended; negative behind it
	local uint32 // by whose value it jumps
	get   int    // where it reads it
	// depths are those of the blocks to whose ends it jumps, by value; the last
	// one is for all values beyond.
	depths []int
}

// begin forgets the dispatch of the function before.
func (d *dispatch) begin() { *d = dispatch{depths: d.depths[:0]} }

// found says whether there is one.
func (d *dispatch) found() bool { return len(d.depths) > 0 }

// inside says whether code is within the dispatch.
func (d *dispatch) inside() bool { return d.found() && d.open >= 0 }

// begins says whether in is the dispatch's loop.
func (d *dispatch) begins(in instr) bool { return d.found() && in.start == d.at }

// find looks whether the loop that r has just read, which is the given number
// of blocks deep, is the function's dispatch. Only the first loop can be: no other
// is around it.
func (d *dispatch) find(r reader, loop instr, depth int) {
	if d.tried {
		return
	}
	d.tried = true
	if r.buf[loop.start+1] != emptyBlock {
		return
	}
	blocks, in := 0, r.instr()
	for ; in.op == opBlock && r.buf[in.start+1] == emptyBlock; in = r.instr() {
		blocks++
	}
	table := r.instr()
	if blocks == 0 || in.op != opLocalGet || table.op != opBrTable || r.err != nil {
		return
	}
	d.at, d.loop, d.open, d.local, d.get = loop.start, depth, blocks, in.a, in.start
	r.targets(table, func(label uint32) { d.depths = append(d.depths, depth+blocks-int(label)) })
}

// end notes that the block of the given depth ends.
func (d *dispatch) end(depth int) {
	if d.inside() && depth <= d.loop+d.open {
		d.open = depth - d.loop - 1
	}
}

// ahead returns the depth of the block at whose end the code goes on after the
// three instructions, which are in as many blocks as depth says, if they jump by the
// dispatch to what comes after them.
func (d *dispatch) ahead(value, set, br instr, depth int) (target int, ok bool) {
	if !d.inside() || br.op != opBr || depth-int(br.a) != d.loop ||
		set.op != opLocalSet || set.a != d.local || value.op != opI32Const {
		return 0, false
	}
	target = d.depths[min(uint64(value.a), uint64(len(d.depths)-1))]
	return target, target > d.loop && target <= d.loop+d.open
}

// jumps follows the dispatch of a function as it is scanned.
type jumps struct {
	dispatch
	before [2]instr // the latest first
	// fresh says that the dispatch's local was set since code was last come to from
	// elsewhere.
	fresh bool
	// loops says that something jumps back to the dispatch.
	loops bool
	// leaks says that the local is read where it wasn't set just before: it is
	// more than the dispatch's.
	leaks bool
}

func (j *jumps) begin() { *j = jumps{dispatch: dispatch{depths: j.depths[:0]}} }

// scan notes an instruction that r has just read in code of the given depth.
func (j *jumps) scan(r *reader, in instr, depth int) {
	switch in.op {
	case opLoop:
		j.find(*r, in, depth+1)
	case opEnd:
		j.end(depth)
		j.fresh = false
	case opElse:
		j.fresh = false
	case opLocalGet:
		j.leaks = j.leaks || in.a == j.local && in.start != j.get && !j.fresh
	case opLocalSet, opLocalTee:
		j.fresh = j.fresh || in.a == j.local
	case opBr, opBrIf, opBrTable, opBrOnNull, opBrOnNonNull, opTryTable:
		if j.inside() {
			j.branch(r, in, depth)
		}
	}
	j.before = [2]instr{in, j.before[0]}
}

func (j *jumps) branch(r *reader, in instr, depth int) {
	if _, ok := j.ahead(j.before[1], j.before[0], in, depth); ok {
		return
	}
	r.targets(in, func(label uint32) {
		if depth-int(label) == j.loop {
			j.loops = true
			j.leaks = j.leaks || !j.fresh
		}
	})
}
