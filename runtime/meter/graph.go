package meter

// facts are what analyse finds out about a function.
type facts struct {
	// cost is what the function costs at most, if it is light.
	cost uint32
	// frame estimates the native stack that an activation takes, in bytes.
	frame uint32
	// light says that it neither loops nor recurs and costs little: its callers
	// pay for it, and it has no check of its own.
	light bool
	// unchecked says that it, with what it calls, runs so shortly between checks
	// that it only pays, at its entry.
	unchecked bool
	// recurs says that it can be active more than once at a time. It checks the
	// stack that is left.
	recurs bool
	// counts says that it can call one that recurs, or does so itself: it knows
	// what stack is left and tells it to whom it calls.
	counts bool
	// calls are where in graph.edges its callees are.
	calls span
	// loops says that it has a loop, or what must check for itself otherwise.
	loops bool
	// flat says that it has a dispatch to which nothing jumps back, and private
	// that the local by which its dispatch jumps is nothing else.
	flat, private bool
}

type span struct{ from, to uint32 }

// graph is who can call whom. Its nodes are the module's own functions, by their
// place among these, and then, for each type of function that is called
// indirectly, all functions of that type that are referred to from anywhere.
type graph struct {
	edges []uint32
	// byType are the nodes of types, by the type's bytes.
	byType map[string]uint32
	// members are the functions behind each node of a type.
	members [][]uint32
	// referred says, by the index of an own function, whether there can be
	// references to it.
	referred []bool
	// costs are, by node of a type, what the functions behind it cost at most, if
	// they are light; it is 0 if one isn't.
	costs []uint32
	// gaps are, by node, what can run in it, at most, before the host can be
	// called.
	gaps []uint32
	// counts says, by node of a type, whether a function behind it counts.
	counts []bool
	// declared says, by a function's index, whether code may refer to it: whether
	// something outside of code does.
	declared []bool
	// references are the functions that code refers to, each with its place in
	// order; see reference.
	references map[uint32]uint32
	inOrder    []uint32
}

// lightCost is the most that a light function costs.
const lightCost = 60

// uncounted bounds the stack, in bytes, of all calls that don't count it,
// however deep they are nested.
const uncounted = 64 << 10

// analyse reads all code, finds out who can call whom, and from that what each
// function has to check.
func (m *module) analyse(o Options) error {
	m.graph = graph{byType: map[string]uint32{}, referred: make([]bool, len(m.functions)), references: map[uint32]uint32{}}
	if err := m.referredOutsideCode(); err != nil {
		return err
	}
	for i := range m.functions {
		if err := m.scan(i, o); err != nil {
			return err
		}
	}
	m.fillTypes()
	order, component := m.components()
	m.classify(order, component)
	return nil
}

// own returns the place of the function with the given index among the module's
// own.
func (m *module) own(index uint32) (place uint32, ok bool) {
	imported := uint32(len(m.importTypes))
	if index < imported || uint64(index-imported) >= uint64(len(m.functions)) {
		return 0, false
	}
	return index - imported, true
}

func (m *module) refer(index uint32) {
	if place, ok := m.own(index); ok {
		m.graph.referred[place] = true
	}
}

// referredOutsideCode finds the functions that tables, globals and element
// segments refer to, and those that code may refer to.
func (m *module) referredOutsideCode() error {
	m.graph.declared = make([]bool, len(m.importTypes)+len(m.functions))
	for _, e := range m.exports {
		if e.kind == kindFunction {
			m.graph.declared[e.index] = true
		}
	}
	for _, t := range m.tables {
		if err := m.referredIn(t.init, t.initBase, false); err != nil {
			return err
		}
	}
	for _, g := range m.globals {
		if err := m.referredIn(g.init, g.base, true); err != nil {
			return err
		}
	}
	for _, e := range m.elements {
		if err := m.referredInElement(e); err != nil {
			return err
		}
	}
	return nil
}

func (m *module) referredInElement(e element) error {
	if err := m.referredIn(e.offset, e.offsetBase, false); err != nil {
		return err
	}
	if e.flags&elementExpressions != 0 {
		return m.referredIn(e.items, e.itemsBase, true)
	}
	r := reader{buf: e.items, base: e.itemsBase}
	for r.more() {
		at := r.pos
		m.referTo(&r, at, r.u32(), true)
	}
	return r.err
}

// referredIn finds those that constant expressions refer to.
func (m *module) referredIn(expressions []byte, base int, declares bool) error {
	r := reader{buf: expressions, base: base, types: uint32(len(m.types))}
	for r.more() {
		switch in := r.instr(); in.op {
		case opRefFunc:
			m.referTo(&r, in.start, in.a, declares)
		case opGlobalGet:
			m.isGlobal(&r, in.start, in.a)
		}
	}
	return r.err
}

func (m *module) referTo(r *reader, at int, index uint32, declares bool) {
	if m.isFunction(r, at, index); r.err == nil {
		m.refer(index)
		m.graph.declared[index] = m.graph.declared[index] || declares
	}
}

// isElement refuses segments that aren't the module's own; see encodeElements.
func (m *module) isElement(r *reader, in instr) {
	if uint64(in.a) >= uint64(len(m.elements)) {
		r.fail(in.start, "element segment %d isn't there", in.a)
	}
}

// isLabel refuses a label beyond the function's: what is written has more
// blocks.
func (r *reader) isLabel(at int, label, nesting uint32) {
	if label > nesting {
		r.fail(at, "label %d isn't there", label)
	}
}

func (r *reader) areLabels(in instr, nesting uint32) {
	if in.op == opBrTable || in.op == opTryTable {
		r.targets(in, func(label uint32) { r.isLabel(in.start, label, nesting) })
	}
}

// isLocal refuses locals that aren't the function's own.
func (m *module) isLocal(r *reader, f *function, in instr) {
	if uint64(in.a) >= uint64(m.types[f.typ].paramCount)+uint64(f.count) {
		r.fail(in.start, "local %d isn't there", in.a)
	}
}

// scan reads the code of function i: whom it calls, what it costs, whether it
// loops, and whether it is within bounds.
func (m *module) scan(i int, o Options) error {
	f := &m.functions[i]
	f.calls.from = uint32(len(m.graph.edges))
	r := reader{buf: f.body, base: f.base, types: uint32(len(m.types))}
	var cost, nesting uint32
	m.jumps.begin()
	for r.more() {
		in := r.instr()
		if cost < 1<<20 {
			cost += in.cost
		}
		m.jumps.scan(&r, in, int(nesting))
		switch in.op {
		case opBr, opBrIf:
			r.isLabel(in.start, in.a, nesting)
		case opLocalGet, opLocalSet, opLocalTee:
			m.isLocal(&r, f, in)
		case opBlock, opLoop, opIf, opTryTable:
			r.areLabels(in, nesting)
			if nesting++; nesting > o.Nesting {
				return m.limitOf(i, "nested blocks", uint64(nesting), uint64(o.Nesting))
			}
			f.loops = f.loops || in.op == opLoop && !m.jumps.begins(in) || in.op == opTryTable
		case opEnd:
			nesting--
			if nesting == ^uint32(0) && r.more() {
				r.fail(r.pos, "code after the function's end")
			}
		case opBrTable:
			r.areLabels(in, nesting)
			if in.a > o.Branches {
				return m.limitOf(i, "labels of a br_table", uint64(in.a), uint64(o.Branches))
			}
		case opBrOnNull, opBrOnNonNull:
			r.isLabel(in.start, in.a, nesting)
			m.typed = true
		case opGlobalGet, opGlobalSet:
			m.isGlobal(&r, in.start, in.a)
		case opElemDrop:
			m.isElement(&r, in)
		default:
			m.edge(&r, f, in)
		}
	}
	if r.err == nil && nesting != ^uint32(0) {
		r.fail(r.pos, "function ends within a block")
	}
	f.flat, f.private = m.jumps.found() && !m.jumps.loops, !m.jumps.leaks
	f.loops = f.loops || m.jumps.found() && m.jumps.loops
	m.typed = m.typed || r.typed
	f.calls.to = uint32(len(m.graph.edges))
	f.cost = cost
	f.frame = m.frameOf(f)
	return r.err
}

// frameOf estimates the native stack of an activation of f.
func (m *module) frameOf(f *function) uint32 {
	const linkage, slot = 64, 8
	t := &m.types[f.typ]
	return linkage + slot*(t.paramCount+f.count) + uint32(len(f.body))/4
}

// edge notes what in does to the graph.
func (m *module) edge(r *reader, f *function, in instr) {
	g := &m.graph
	switch in.op {
	case opCall, opReturnCall:
		m.isFunction(r, in.start, in.a)
		if place, ok := m.own(in.a); ok {
			g.edges = append(g.edges, place)
		} else {
			f.loops = true // the host is asked for more than is light
		}
		f.loops = f.loops || in.op == opReturnCall
	case opCallIndirect, opReturnCallIndirect, opCallRef, opReturnCallRef:
		r.isType(in.start, in.a)
		if in.op == opCallIndirect || in.op == opReturnCallIndirect {
			m.isTable(r, in.start, in.b)
		} else {
			m.typed = true
		}
		g.edges = append(g.edges, m.typeNode(in.a))
		f.loops = f.loops || in.op == opReturnCallIndirect || in.op == opReturnCallRef
	case opRefFunc:
		if m.isFunction(r, in.start, in.a); r.err != nil {
			return
		}
		if !g.declared[in.a] {
			r.fail(in.start, "reference to function %d, which isn't declared", in.a)
		}
		m.refer(in.a)
		if _, known := g.references[in.a]; !known {
			g.references[in.a] = uint32(len(g.inOrder))
			g.inOrder = append(g.inOrder, in.a)
		}
	case opTableGet, opTableSet, opTableSize:
		m.isTable(r, in.start, in.a)
	case opTableInit:
		m.isElement(r, in)
		m.isTable(r, in.start, in.b)
		f.loops = true
	case opTableCopy:
		m.isTable(r, in.start, in.a)
		m.isTable(r, in.start, in.b)
		f.loops = true
	case opTableGrow, opTableFill:
		m.isTable(r, in.start, in.a)
		f.loops = true
	case opRefAsNonNull:
		m.typed = true
	case opMemoryGrow, opMemoryInit, opMemoryCopy, opMemoryFill:
		f.loops = true
	}
}

// typeNode returns the node of all functions that a call of type t can reach.
// Where types refer to types it is one for all, which is too many and so safe.
func (m *module) typeNode(t uint32) uint32 {
	var key string
	if !m.typesRefer && uint64(t) < uint64(len(m.types)) {
		key = string(m.types[t].raw)
	}
	node, ok := m.graph.byType[key]
	if !ok {
		node = uint32(len(m.functions) + len(m.graph.byType))
		m.graph.byType[key] = node
	}
	return node
}

// fillTypes finds the functions behind the nodes of types.
func (m *module) fillTypes() {
	g := &m.graph
	g.members = make([][]uint32, len(g.byType))
	for i := range m.functions {
		if !g.referred[i] {
			continue
		}
		key := ""
		if !m.typesRefer {
			key = string(m.types[m.functions[i].typ].raw)
		}
		if node, ok := g.byType[key]; ok {
			at := int(node) - len(m.functions)
			g.members[at] = append(g.members[at], uint32(i))
		}
	}
}

// callees returns the nodes that node can call.
func (m *module) callees(node uint32) []uint32 {
	if int(node) < len(m.functions) {
		calls := m.functions[node].calls
		return m.graph.edges[calls.from:calls.to]
	}
	return m.graph.members[int(node)-len(m.functions)]
}

// components returns all nodes, callees before their callers but for cycles, and
// the component of each: nodes that can reach one another have the same, and a
// component comes after all that it can reach. It is Tarjan's algorithm, with a
// stack of its own.
func (m *module) components() (order, component []uint32) {
	nodes := len(m.functions) + len(m.graph.members)
	t := tarjan{
		m:         m,
		index:     make([]uint32, nodes),
		low:       make([]uint32, nodes),
		component: make([]uint32, nodes),
		order:     make([]uint32, 0, nodes),
	}
	for node := range uint32(nodes) {
		if t.index[node] == 0 {
			t.visit(node)
		}
	}
	return t.order, t.component
}

type tarjan struct {
	m          *module
	index, low []uint32 // from 1; 0 is not visited
	component  []uint32 // from 1; 0 is none yet
	visited    uint32
	found      uint32
	open       []uint32 // visited, and in no component yet
	order      []uint32
	calls      []tarjanCall
}

// tarjanCall is an activation of the algorithm's recursion: a node, and how many
// of its callees were looked at.
type tarjanCall struct{ node, done uint32 }

func (t *tarjan) enter(node uint32) {
	t.visited++
	t.index[node], t.low[node] = t.visited, t.visited
	t.open = append(t.open, node)
	t.calls = append(t.calls, tarjanCall{node: node})
}

func (t *tarjan) visit(root uint32) {
	t.enter(root)
	for len(t.calls) > 0 {
		call := &t.calls[len(t.calls)-1]
		callees := t.m.callees(call.node)
		if int(call.done) == len(callees) {
			t.leave(call.node)
			continue
		}
		callee := callees[call.done]
		call.done++
		switch {
		case t.index[callee] == 0:
			t.enter(callee)
		case t.component[callee] == 0:
			t.low[call.node] = min(t.low[call.node], t.index[callee])
		}
	}
}

func (t *tarjan) leave(node uint32) {
	t.calls = t.calls[:len(t.calls)-1]
	if len(t.calls) > 0 {
		caller := t.calls[len(t.calls)-1].node
		t.low[caller] = min(t.low[caller], t.low[node])
	}
	if t.low[node] != t.index[node] {
		return
	}
	t.found++
	for {
		last := t.open[len(t.open)-1]
		t.open = t.open[:len(t.open)-1]
		t.component[last] = t.found
		t.order = append(t.order, last)
		if last == node {
			return
		}
	}
}

// classify decides what each function checks. order has callees first.
func (m *module) classify(order, component []uint32) {
	size := make([]uint32, len(order)+1) // of components, from 1
	for _, c := range component {
		size[c]++
	}
	m.graph.costs = make([]uint32, len(m.graph.members))
	gap := make([]uint32, len(order))
	m.graph.gaps = gap
	for _, node := range order {
		if int(node) < len(m.functions) {
			m.functions[node].recurs = size[component[node]] > 1
			m.weigh(node, gap)
		} else {
			m.weighType(node, gap)
		}
	}
	// Long chains of calls that don't recur take stack as well. Where they could
	// take much, those with large frames count, or all.
	for _, threshold := range []uint32{1 << 20, 4 << 10, 0} {
		for i := range m.functions {
			f := &m.functions[i]
			f.recurs = f.recurs || f.frame > threshold
		}
		if m.deepest(order, component, size) <= uncounted {
			break
		}
	}
	m.spread(order, component)
}

// weigh finds out whether a function is light, and whether it has to check at
// its entry; gap is what nodes can cost between checks.
func (m *module) weigh(node uint32, gap []uint32) {
	const most = 1 << 20
	f := &m.functions[node]
	f.light = !f.loops
	total := f.cost
	for _, callee := range m.callees(node) {
		f.recurs = f.recurs || callee == node
		total = min(total+gap[callee], most)
		if int(callee) >= len(m.functions) {
			at := int(callee) - len(m.functions)
			f.light = f.light && m.graph.costs[at] > 0
			f.cost = min(f.cost+m.graph.costs[at], most)
		} else if c := &m.functions[callee]; c.light {
			f.cost = min(f.cost+c.cost, most)
		} else {
			f.light = false
		}
	}
	f.light = f.light && !f.recurs && f.cost <= lightCost
	f.unchecked = !f.recurs && total <= stretchCost
	if f.unchecked {
		gap[node] = total
	}
}

func (m *module) weighType(node uint32, gap []uint32) {
	at := int(node) - len(m.functions)
	light := true
	for _, member := range m.callees(node) {
		gap[node] = max(gap[node], gap[member])
		light = light && m.functions[member].light
		m.graph.costs[at] = max(m.graph.costs[at], m.functions[member].cost)
	}
	if !light {
		m.graph.costs[at] = 0
	}
}

// deepest returns the most stack that nested calls of functions that don't check
// it can take: on a path each of them is there once.
func (m *module) deepest(order, component, size []uint32) uint64 {
	below := make([]uint64, len(size)) // by component
	most := uint64(0)
	for _, node := range order {
		c := component[node]
		deep := uint64(0)
		for _, callee := range m.callees(node) {
			if component[callee] != c {
				deep = max(deep, below[component[callee]])
			}
		}
		if int(node) < len(m.functions) && !m.functions[node].recurs {
			deep += uint64(m.functions[node].frame)
		}
		below[c] = max(below[c], deep)
		most = max(most, below[c])
	}
	return most
}

// spread finds the functions that can reach one that recurs. All nodes of a
// component can reach what one of them can.
func (m *module) spread(order, component []uint32) {
	reaches := make([]bool, len(order)+1) // by component
	for _, node := range order {
		c := component[node]
		for _, callee := range m.callees(node) {
			reaches[c] = reaches[c] || reaches[component[callee]]
		}
		if int(node) < len(m.functions) {
			reaches[c] = reaches[c] || m.functions[node].recurs
		}
	}
	m.graph.counts = make([]bool, len(m.graph.members))
	for _, node := range order {
		if int(node) < len(m.functions) {
			m.functions[node].counts = reaches[component[node]]
		} else {
			m.graph.counts[int(node)-len(m.functions)] = reaches[component[node]]
		}
	}
}
