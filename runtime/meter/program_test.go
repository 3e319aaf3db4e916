package meter_test

import "encoding/binary"

// program makes valid modules of arbitrary bytes: each byte is a choice, and
// when there are none left, everything ends. What they do is of no use, and may
// take for ever.
type program struct {
	choices []byte
	out     []byte
	// labels are the types of what the labels take, from the outermost: 0 for
	// nothing.
	labels []byte
	locals []byte // their types
	result byte
	// byGo says that the module looks as if Go's compiler had made it: each function
	// begins with a dispatch, has a local from which there are many accesses, and no
	// address has wrapped around.
	byGo     bool
	dispatch struct {
		at           int // the loop's place in labels; 0 is none
		blocks       int
		local, turns byte
	}
	base byte // the local
}

// The value types.
const (
	i32 = 0x7f
	i64 = 0x7e
	f32 = 0x7d
	f64 = 0x7c
)

// signature is a function type; all have one result.
type signature struct {
	params []byte
	result byte
}

var signatures = []signature{{nil, i32}, {[]byte{i32}, i32}, {[]byte{i32, i64}, i64}, {[]byte{f64}, f64}, {[]byte{i32, i32, i32}, i32}}

// producers is a section that says that Go's compiler has made the module.
const producers = "\x09producers\x01\x0cprocessed-by\x01\x0eGo cmd/compile\x06go1.26"

const programFunctions = 6

// programGlobals are mutable, of these types.
var programGlobals = []byte{i32, i64, f64}

func generate(choices []byte, byGo bool) []byte {
	p := &program{choices: choices, byGo: byGo}
	module := []byte("\x00asm\x01\x00\x00\x00")
	section := func(id byte, content []byte) {
		module = append(binary.AppendUvarint(append(module, id), uint64(len(content))), content...)
	}
	types := []byte{byte(len(signatures))}
	for _, s := range signatures {
		types = append(append(types, 0x60, byte(len(s.params))), s.params...)
		types = append(types, 1, s.result)
	}
	functions, exports, code := []byte{programFunctions}, []byte{programFunctions + 4}, []byte{programFunctions}
	for i := range programFunctions {
		functions = append(functions, byte(i%len(signatures)))
		exports = append(exports, 2, 'f', '0'+byte(i), 0, byte(i))
		body := p.function(signatures[i%len(signatures)])
		code = append(binary.AppendUvarint(code, uint64(len(body))), body...)
	}
	globals := []byte{byte(len(programGlobals)), i32, 1, 0x41, 7, 0x0b, i64, 1, 0x42, 9, 0x0b, f64, 1, 0x44, 0, 0, 0, 0, 0, 0, 0x10, 0x40, 0x0b}
	for i := range programGlobals {
		exports = append(exports, 2, 'g', '0'+byte(i), 3, byte(i))
	}
	exports = append(exports, 1, 'm', 2, 0)
	section(1, types)
	section(3, functions)
	section(4, []byte{1, 0x70, 1, programFunctions + 2, programFunctions + 2})
	section(5, []byte{1, 1, 3, 5})
	section(6, globals)
	section(7, exports)
	section(9, []byte{1, 0, 0x41, 0, 0x0b, programFunctions, 0, 1, 2, 3, 4, 5})
	section(12, []byte{1})
	section(10, code)
	section(11, append([]byte{1, 1, 40}, make([]byte, 40)...))
	if byGo {
		section(0, []byte(producers))
	}
	return module
}

// pick returns a number below n.
func (p *program) pick(n int) int {
	if len(p.choices) == 0 {
		return 0
	}
	c := p.choices[0]
	p.choices = p.choices[1:]
	return int(c) % n
}

func (p *program) emit(code ...byte) { p.out = append(p.out, code...) }

func (p *program) function(s signature) []byte {
	p.out = []byte{5, 2, i32, 1, i64, 1, f32, 1, f64, 3, i32}
	p.locals = append(append([]byte(nil), s.params...), i32, i32, i64, f32, f64)
	p.labels, p.result, p.dispatch.at = []byte{s.result}, s.result, 0
	p.base = byte(len(p.locals) + 2)
	if p.byGo {
		p.dispatches()
	}
	for range 1 + p.pick(6) {
		p.statement(0)
	}
	p.value(s.result, 0)
	p.emit(0x0b)
	return p.out
}

// local returns a local of the given type: there always is one.
func (p *program) local(typ byte) byte {
	var of []byte
	for i, t := range p.locals {
		if t == typ {
			of = append(of, byte(i))
		}
	}
	return of[p.pick(len(of))]
}

func (p *program) anyType() byte { return []byte{i32, i64, f32, f64}[p.pick(4)] }

const deepest = 6

// statement emits code that leaves nothing on the stack.
func (p *program) statement(depth int) {
	if len(p.choices) == 0 || depth > deepest {
		p.emit(0x01)
		return
	}
	if p.dispatch.at > 0 && p.pick(3) == 0 {
		p.jump(depth)
		return
	}
	if p.byGo && p.pick(3) == 0 {
		p.accesses(depth)
		return
	}
	switch p.pick(16) {
	case 0, 1, 2:
		t := p.anyType()
		p.value(t, depth+1)
		p.emit(0x21, p.local(t))
	case 3:
		g := p.pick(len(programGlobals))
		p.value(programGlobals[g], depth+1)
		p.emit(0x24, byte(g))
	case 4:
		p.value(i32, depth+1)
		p.value(i64, depth+1)
		p.emit(0x37, 3, byte(p.pick(128)))
	case 5, 6:
		p.block([]byte{0x02, 0x03}[p.pick(2)], 0x40, depth)
	case 7:
		p.value(i32, depth+1)
		p.block(0x04, 0x40, depth)
	case 8, 9:
		p.countedLoop(depth)
	case 10:
		p.branch(depth)
	case 11:
		p.bulk(depth)
	case 12:
		p.value(p.anyType(), depth+1)
		p.emit(0x1a)
	case 13:
		p.switches(depth)
	case 14:
		// Never reached behind.
		p.emit(0x02, 0x40)
		p.labels = append(p.labels, 0)
		p.emit(0x0c, 0)
		p.statement(depth + 1)
		p.labels = p.labels[:len(p.labels)-1]
		p.emit(0x0b)
	default:
		p.value(i32, depth+1)
		p.emit(0x04, 0x40)
		p.labels = append(p.labels, 0)
		p.value(p.result, depth+1)
		p.emit(0x0f, 0x05)
		p.statement(depth + 1)
		p.labels = p.labels[:len(p.labels)-1]
		p.emit(0x0b)
	}
}

// block emits a block, loop or if with statements in it, and a value if typ is
// one.
func (p *program) block(op, typ byte, depth int) {
	p.emit(op, typ)
	label := typ
	if typ == 0x40 || op == 0x03 {
		label = 0
	}
	p.labels = append(p.labels, label)
	for range p.pick(4) {
		p.statement(depth + 1)
	}
	if typ != 0x40 {
		p.value(typ, depth+1)
	}
	if op == 0x04 && (typ != 0x40 || p.pick(2) == 0) {
		p.emit(0x05)
		p.statement(depth + 1)
		if typ != 0x40 {
			p.value(typ, depth+1)
		}
	}
	p.labels = p.labels[:len(p.labels)-1]
	p.emit(0x0b)
}

// countedLoop ends, unless what is in it changes the count.
func (p *program) countedLoop(depth int) {
	count := p.local(i32)
	p.emit(0x41, byte(1+p.pick(60)), 0x21, count, 0x03, 0x40)
	p.labels = append(p.labels, 0)
	p.statement(depth + 1)
	p.emit(0x20, count, 0x41, 1, 0x6b, 0x22, count, 0x0d, 0)
	p.labels = p.labels[:len(p.labels)-1]
	p.emit(0x0b)
}

func (p *program) branch(depth int) {
	at := p.pick(len(p.labels))
	label := byte(len(p.labels) - 1 - at)
	if p.labels[at] != 0 {
		p.value(p.labels[at], depth+1)
	}
	p.value(i32, depth+1)
	p.emit(0x0d, label)
	if p.labels[at] != 0 {
		p.emit(0x1a)
	}
}

// switches emits a br_table within blocks.
func (p *program) switches(depth int) {
	n := 1 + p.pick(4)
	for range n {
		p.emit(0x02, 0x40)
		p.labels = append(p.labels, 0)
	}
	p.value(i32, depth+1)
	p.emit(0x0e, byte(n))
	for range n + 1 {
		p.emit(byte(p.pick(n)))
	}
	for range n {
		p.labels = p.labels[:len(p.labels)-1]
		p.emit(0x0b)
		p.statement(depth + 1)
	}
}

// dispatches emits code as Go's compiler makes it: a loop that begins with a jump
// by the value of a local, to where it goes on, and in it jumps back that set the
// local before.
func (p *program) dispatches() {
	n := 1 + p.pick(5)
	d := &p.dispatch
	d.blocks, d.local, d.turns = n, byte(len(p.locals)), byte(len(p.locals)+1)
	if p.pick(2) == 0 {
		p.locals = append(p.locals, i32) // all else can use it too
	}
	p.emit(0x41, byte(p.pick(n+2)), 0x21, d.local, 0x41, 20, 0x21, d.turns)
	p.emit(0x02, 0x40, 0x03, 0x40)
	d.at = len(p.labels) + 1
	for range n {
		p.emit(0x02, 0x40)
	}
	p.labels = append(p.labels, make([]byte, n+2)...)
	p.emit(0x20, d.local, 0x0e, byte(n))
	for range n + 1 {
		to := p.pick(n + 1)
		if to == n {
			to++ // to behind the loop, not to its beginning for ever
		}
		p.emit(byte(to))
	}
	for range n {
		p.labels = p.labels[:len(p.labels)-1]
		p.emit(0x0b)
		for range p.pick(4) {
			p.statement(1)
		}
	}
	p.labels = p.labels[:len(p.labels)-2]
	p.emit(0x0b, 0x0b)
	d.at = 0
}

// jump emits one by the dispatch, or what looks like it.
func (p *program) jump(depth int) {
	d := p.dispatch
	back := func(inner int) byte { return byte(len(p.labels) - 1 - d.at + inner) }
	to := byte(p.pick(d.blocks + 2))
	p.emit(0x20, d.turns, 0x41, 1, 0x6b, 0x22, d.turns, 0x45, 0x0d, back(1)) // no more turns: leave
	switch p.pick(8) {
	case 0, 1, 2:
		p.value(i32, depth+1)
		p.emit(0x04, 0x40, 0x41, to, 0x21, d.local, 0x0c, back(1), 0x0b)
	case 3:
		p.value(i32, depth+1)
		p.emit(0x04, 0x40, 0x41, to, 0x21, d.local, 0x0c, back(1), 0x05)
		p.labels = append(p.labels, 0)
		p.statement(depth + 1)
		p.labels = p.labels[:len(p.labels)-1]
		p.emit(0x0b)
	case 4:
		p.value(i32, depth+1)
		p.emit(0x41, to, 0x21, d.local, 0x0d, back(0))
	case 5:
		p.value(i32, depth+1)
		p.emit(0x21, d.local, 0x0c, back(0))
	case 6:
		p.value(p.anyType(), depth+1) // is left on the stack
		p.emit(0x41, to, 0x21, d.local, 0x0c, back(0))
	default:
		p.emit(0x41, to, 0x21, d.local, 0x0c, back(0))
	}
}

// accesses emits some by one local, whose value is anywhere in memory, or a bit
// behind it.
func (p *program) accesses(depth int) {
	p.value(i32, depth+1)
	p.emit(0x41, 0xfd, 0x1f, 0x6c, 0x41, 0xff, 0xff, 0x0f, 0x71, 0x41, 0x80, 0x20, 0x6a, 0x21, p.base) // times 4093, modulo 2^18, + 4096
	for range 2 + p.pick(6) {
		switch p.pick(6) {
		case 0, 1:
			p.address()
			load := p.pick(14)
			t := []byte{i32, i64, f32, f64, i32, i32, i32, i32, i64, i64, i64, i64, i64, i64}[load]
			p.emit(0x28+byte(load), 0, byte(p.pick(128)), 0x21, p.local(t))
		case 2, 3:
			p.address()
			store := p.pick(9)
			p.value([]byte{i32, i64, f32, f64, i32, i32, i64, i64, i64}[store], depth+3)
			p.emit(0x36+byte(store), 0, byte(p.pick(128)))
		case 4:
			p.emit(0x20, p.base, 0x41, 8, 0x6a+byte(p.pick(2)), 0x21, p.base)
		default:
			p.emit(0x20, p.base, 0x41, 24, 0x6a+byte(p.pick(2)), 0x22, p.base, 0x2d, 0, byte(p.pick(128)), 0x1a)
		}
	}
}

// address emits the base, or a sum as Go's compiler makes it.
func (p *program) address() {
	p.emit(0x20, p.base)
	if p.pick(2) == 0 {
		p.emit(0xad, 0x42, byte(p.pick(64)), 0x7c, 0xa7)
	}
}

func (p *program) bulk(depth int) {
	p.value(i32, depth+1)
	p.value(i32, depth+1)
	if p.pick(2) == 0 {
		p.value(i32, depth+1)
	} else {
		p.emit(0x41, 0x80|byte(p.pick(128)), 0x80|byte(p.pick(128)), byte(p.pick(6))) // up to 96 KiB and more
	}
	switch p.pick(5) {
	case 0, 1:
		p.emit(0xfc, 11, 0)
	case 2:
		p.emit(0xfc, 8, 0, 0)
	case 3:
		p.emit(0xfc, 12, 0, 0)
	default:
		p.emit(0xfc, 10, 0, 0)
	}
}

// value emits code that leaves one value of the given type.
func (p *program) value(typ byte, depth int) {
	if len(p.choices) == 0 || depth > deepest {
		p.constant(typ)
		return
	}
	switch p.pick(9) {
	case 0:
		p.constant(typ)
	case 1, 2:
		p.emit(0x20, p.local(typ))
	case 3:
		p.block([]byte{0x02, 0x03}[p.pick(2)], typ, depth)
	case 4:
		p.value(i32, depth+1)
		p.block(0x04, typ, depth)
	case 5:
		p.call(typ, depth)
	case 6:
		p.value(typ, depth+1)
		p.emit(0x22, p.local(typ))
	default:
		p.operation(typ, depth)
	}
}

func (p *program) constant(typ byte) {
	switch typ {
	case i32:
		p.emit(0x41, byte(p.pick(128)))
	case i64:
		p.emit(0x42, byte(p.pick(128)))
	case f32:
		p.emit(0x43, 0, 0, byte(p.pick(256)), byte(0x3f+p.pick(2)))
	default:
		p.emit(0x44, 0, 0, 0, 0, 0, 0, byte(p.pick(256)), 0x3f+byte(p.pick(2)))
	}
}

func (p *program) call(typ byte, depth int) {
	var of []int
	for i := range programFunctions {
		if signatures[i%len(signatures)].result == typ {
			of = append(of, i)
		}
	}
	if len(of) == 0 {
		p.constant(typ)
		return
	}
	f := of[p.pick(len(of))]
	for _, t := range signatures[f%len(signatures)].params {
		p.value(t, depth+1)
	}
	if p.pick(3) == 0 {
		p.value(i32, depth+2)
		p.emit(0x41, programFunctions, 0x70, 0x11, byte(f%len(signatures)), 0) // i32.rem_u
	} else {
		p.emit(0x10, byte(f))
	}
}

func (p *program) operation(typ byte, depth int) {
	two := func(op byte) {
		p.value(typ, depth+1)
		p.value(typ, depth+1)
		p.emit(op)
	}
	switch typ {
	case i32:
		switch p.pick(5) {
		case 0:
			p.value(i32, depth+1)
			p.emit(0x2d, 0, byte(p.pick(128))) // load8_u
		case 1:
			p.value(i64, depth+1)
			p.emit(0xa7)
		case 2:
			p.emit(0x23, 0)
		case 3:
			p.emit(0x41, byte(p.pick(3)), 0x40, 0) // memory.grow
		default:
			op := 0x6a + byte(p.pick(15))
			if p.byGo && op <= 0x6b {
				op = 0x73 // no sums, which might wrap around: xor
			}
			two(op)
		}
	case i64:
		switch p.pick(4) {
		case 0:
			p.value(i32, depth+1)
			p.emit(0xac)
		case 1:
			p.value(i32, depth+1)
			p.emit(0x29, 3, byte(p.pick(128)))
		case 2:
			p.emit(0x23, 1)
		default:
			two(0x7c + byte(p.pick(15)))
		}
	case f32:
		two(0x92 + byte(p.pick(4)))
	default:
		if p.pick(3) == 0 {
			p.emit(0x23, 2)
		} else {
			two(0xa0 + byte(p.pick(4)))
		}
	}
}
