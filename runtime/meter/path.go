package meter

// A function's code is charged ahead: a check takes, from the balance, what the
// code up to the next check can cost at most, whichever way it goes. The stretch
// that a check pays for is its region. Regions nest as blocks do: one begins
// where a check is, and ends with the block around it, where the region before
// goes on.

// pathCost is how much of a way through the code may be paid by one check, where
// another way may be shorter. More is more often paid for nothing; less is more
// checks.
const pathCost = 100

// stretchCost is the most that one check pays for where there is no other way.
// At about a third of a nanosecond a unit this is 5 µs.
const stretchCost = 16 << 10

// region is what one check pays for.
type region struct {
	patch int    // where in the output its cost goes
	cur   uint32 // what the way to here costs
	most  uint32 // the most of all ways
}

// frame is a block that isn't over.
type frame struct {
	op opcode
	// base is how many regions began before the block: the last of these goes on
	// after it.
	base int
	// joined is what the ways that branch to its end cost in that region, and
	// whether there are any.
	joined uint32
	joins  bool
	// start is the cost where an if parts.
	start uint32
	// sinceJoined and sinceStart are the same of path.since.
	sinceJoined, sinceStart uint32
	dead                    bool // at its start: nothing in it is ever reached
	// depth is how many blocks are around it in what is written.
	depth uint32
	// twice says that it is a loop that is written as two.
	twice bool
	// inner is the depth of what is directly in it.
	inner uint32
	// caught says that exceptions arrive at its end.
	caught bool
}

// path follows the ways through a function.
type path struct {
	frames  []frame
	regions []region
	dead    bool // no way leads here
	// since is the most that can have run since the host could last be called.
	since uint32
	// closed is told of each region that ends.
	closed func(region)
}

func (p *path) top() *frame { return &p.frames[len(p.frames)-1] }

// begin starts a function.
func (p *path) begin() {
	p.frames = append(p.frames[:0], frame{})
	p.regions = p.regions[:0]
	p.dead, p.since = false, 0
}

// enter begins a block.
func (p *path) enter(op opcode) {
	f := frame{op: op, base: len(p.regions), dead: p.dead, sinceStart: p.since, depth: p.top().inner + 1}
	f.inner = f.depth
	if f.base > 0 {
		f.start = p.regions[f.base-1].cur
	}
	p.frames = append(p.frames, f)
}

// open begins a region whose cost goes to patch. Others that began within the
// innermost block end.
func (p *path) open(patch int) {
	p.close(p.top().base)
	p.regions = append(p.regions, region{patch: patch})
}

// close ends all regions from base on.
func (p *path) close(base int) {
	for len(p.regions) > base {
		last := len(p.regions) - 1
		p.closed(p.regions[last])
		p.regions = p.regions[:last]
	}
}

// charge adds to the region at hand.
func (p *path) charge(cost uint32) {
	r := &p.regions[len(p.regions)-1]
	r.cur += cost
	r.most = max(r.most, r.cur)
}

// full says whether the region at hand, if there is one, has to leave cost to
// another.
func (p *path) full(cost uint32) bool {
	if len(p.regions) == 0 {
		return true
	}
	r := &p.regions[len(p.regions)-1]
	return r.cur > 0 && r.cur+cost > pathCost
}

// branch notes a way to a label.
func (p *path) branch(label uint32) {
	if p.dead || uint64(label) >= uint64(len(p.frames)) {
		return
	}
	f := &p.frames[len(p.frames)-1-int(label)]
	if f.op == opLoop {
		return // which has a check of its own
	}
	p.join(f)
}

// join notes that the way to here goes on at the end of f.
func (p *path) join(f *frame) {
	f.joins = true
	f.sinceJoined = max(f.sinceJoined, p.since)
	if f.base > 0 {
		f.joined = max(f.joined, p.regions[f.base-1].cur)
	}
}

// orElse ends the first half of an if.
func (p *path) orElse() {
	f := p.top()
	if !p.dead {
		p.branch(0)
	}
	p.close(f.base)
	if f.base > 0 {
		p.regions[f.base-1].cur = f.start
	}
	f.op = opElse
	p.dead, p.since = f.dead, f.sinceStart
}

// leave ends a block. It says whether exceptions arrive there.
func (p *path) leave() (caught bool) {
	f := p.top()
	if f.op == opIf && !f.dead { // the way around it
		f.joins = true
		f.joined = max(f.joined, f.start)
		f.sinceJoined = max(f.sinceJoined, f.sinceStart)
	}
	if !p.dead {
		p.join(f)
	}
	p.close(f.base)
	p.dead = !f.joins && !f.caught
	if f.joins {
		p.since = f.sinceJoined
		if f.base > 0 {
			p.regions[f.base-1].cur = f.joined
		}
	}
	p.frames = p.frames[:len(p.frames)-1]
	return f.caught
}

// catch notes that exceptions arrive at a label, from wherever they are thrown.
func (p *path) catch(label uint32) {
	if p.dead || uint64(label) >= uint64(len(p.frames)) {
		return
	}
	p.frames[len(p.frames)-1-int(label)].caught = true
}

// label returns what a label is in what is written, where some loops are two.
func (p *path) label(label uint32) uint32 {
	if uint64(label) >= uint64(len(p.frames)) {
		return label // which isn't valid, and stays so
	}
	return p.top().inner - p.frames[len(p.frames)-1-int(label)].depth
}
