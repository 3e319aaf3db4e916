package meter

import "fmt"

func (m *module) limitOf(i int, what string, got, most uint64) error {
	return &LimitError{What: fmt.Sprintf("function %d: %s", m.yield()+uint32(i), what), Got: got, Max: most}
}

// clamp gives the module's tables and memory their maxima, and holds it to them.
func (m *module) clamp(o Options) error {
	table := uint64(o.Table)
	if table == 0 {
		table = min(tableBefore+uint64(len(m.functions)), maxTable)
	}
	var entries, growing uint64
	own := m.tables[m.importedTables:]
	for i, t := range own {
		entries += uint64(t.min)
		if !t.hasMax || t.max > t.min {
			growing++
		}
		if t.hasMax && t.max < t.min {
			return &DecodeError{What: fmt.Sprintf("table %d has a maximum below its minimum", i)}
		}
	}
	if entries > table {
		return &LimitError{What: "entries of all tables", Got: entries, Max: table}
	}
	var elements uint64
	for _, e := range m.elements {
		elements += uint64(e.count)
	}
	if elements > table {
		return &LimitError{What: "entries of all element segments", Got: elements, Max: table}
	}
	room := min(table-entries, uint64(o.TableGrowth))
	for i := range own {
		t := &own[i]
		if !t.hasMax || t.max > t.min {
			most := t.min + uint32(room/growing)
			if !t.hasMax || t.max > most {
				t.hasMax, t.max = true, most
			}
		}
	}
	if m.memory == nil {
		return nil
	}
	if m.memory.min > o.MemoryPages {
		return &MemoryError{Minimum: m.memory.min, Limit: o.MemoryPages}
	}
	if bounded := o.MemoryPages < 1<<16; bounded && (!m.memory.hasMax || m.memory.max > o.MemoryPages) {
		m.memory.hasMax, m.memory.max = true, o.MemoryPages
	}
	return nil
}

// encode returns the rewritten module.
func (m *module) encode(o Options) ([]byte, error) {
	m.addHelpers()
	yieldType := m.typeOf(values(valueI32), values(valueI32))
	code, err := m.encodeCode()
	if err != nil {
		return nil, err
	}
	exports := m.encodeExports(o)
	m.joinData()
	start := m.encodeStart(o)
	data := m.dataSection
	if data == nil && len(m.data) > 0 {
		data = m.encodeData()
	}
	helpers := m.added.helpers
	if len(helpers) > maxHelpers+len(m.exports) {
		return nil, &LimitError{What: "different bulk operations", Got: uint64(len(helpers)), Max: maxHelpers}
	}
	size := len(code) + len(data) + len(m.typeData) + len(m.importData) + len(exports) + 4*len(m.functions)
	out := make([]byte, 0, size+size/8+1024)
	out = append(out, "\x00asm\x01\x00\x00\x00"...)
	section := func(id byte, content ...[]byte) {
		n := 0
		for _, c := range content {
			n += len(c)
		}
		out = appendU32(append(out, id), uint32(n))
		for _, c := range content {
			out = append(out, c...)
		}
	}
	types := appendU32(nil, m.typeElements+uint32(len(m.added.types)))
	section(sectionType, append([][]byte{types, m.typeData}, m.added.types...)...)
	section(sectionImport, appendU32(nil, m.importCount+1), m.importData, importOf(yieldType))
	section(sectionFunction, m.encodeFunctions())
	own := m.tables[m.importedTables:]
	if n := uint32(len(m.graph.inOrder)); n > 0 && !m.typed {
		own = append(own, table{typ: []byte{valueFuncref}, limits: limits{min: n, max: n, hasMax: true}})
	}
	if len(own) > 0 {
		section(sectionTable, m.encodeTables(own))
	}
	if m.memory != nil {
		section(sectionMemory, m.memory.append([]byte{1}))
	}
	if m.tagCount > 0 {
		section(sectionTag, appendU32(nil, m.tagCount), m.tagData)
	}
	section(sectionGlobal, m.encodeGlobals(o))
	if len(m.exports) > 0 {
		section(sectionExport, exports)
	}
	if start != nil {
		section(sectionStart, start)
	}
	if elements := m.encodeElements(); len(elements) > 0 {
		section(sectionElement, elements)
	}
	if m.dataCount != nil {
		section(sectionDataCount, m.dataCount)
	}
	count := appendU32(nil, uint32(len(m.functions)+len(helpers)))
	added := []byte(nil)
	for _, h := range helpers {
		added = append(appendU32(added, uint32(len(h.code))), h.code...)
	}
	section(sectionCode, count, code, added)
	if data != nil {
		section(sectionData, data)
	}
	return m.encodeNames(out, helpers), nil
}

func importOf(yieldType uint32) []byte {
	i := appendName(appendName(nil, HostModule), Yield)
	return appendU32(append(i, kindFunction), yieldType)
}

func (m *module) encodeFunctions() []byte {
	out := appendU32(nil, uint32(len(m.functions)+len(m.added.helpers)))
	for i := range m.functions {
		out = appendU32(out, m.functions[i].typ)
	}
	for _, h := range m.added.helpers {
		out = appendU32(out, h.typ)
	}
	return out
}

func (l limits) append(out []byte) []byte {
	flags := byte(0)
	if l.hasMax {
		flags |= 1
	}
	if l.shared {
		flags |= 2
	}
	out = appendU32(append(out, flags), l.min)
	if l.hasMax {
		out = appendU32(out, l.max)
	}
	return out
}

func (m *module) encodeTables(own []table) []byte {
	out := appendU32(nil, uint32(len(own)))
	for _, t := range own {
		if t.init != nil {
			out = append(out, 0x40, 0)
		}
		out = t.limits.append(append(out, t.typ...))
		out = m.appendExpressions(out, t.init)
	}
	return out
}

// appendExpressions appends constant expressions, whose functions have other
// indices now.
func (m *module) appendExpressions(out, expressions []byte) []byte {
	r := reader{buf: expressions, types: uint32(len(m.types))}
	for r.more() {
		in := r.instr()
		if in.op == opRefFunc {
			out = appendU32(append(out, byte(opRefFunc)), m.shift(in.a))
		} else {
			out = append(out, r.buf[in.start:r.pos]...)
		}
	}
	return out
}

// encodeGlobals appends three: the balance, of nothing, the stack, and how much
// the host has added to that.
func (m *module) encodeGlobals(o Options) []byte {
	out := appendU32(nil, uint32(len(m.globals)+3))
	for _, g := range m.globals {
		out = m.appendExpressions(append(out, g.typ...), g.init)
	}
	const mutable = 1
	out = asm(append(out, valueI32, mutable)).i32(0).end()
	out = asm(append(out, valueI32, mutable)).i32(int32(o.Stack)).end()
	return asm(append(out, valueI32, mutable)).i32(0).end()
}

func (m *module) encodeExports(o Options) []byte {
	out := appendU32(nil, uint32(len(m.exports)))
	for _, e := range m.exports {
		index := e.index
		if e.kind == kindFunction {
			index = m.entry(index, o.Stack)
		}
		out = appendU32(append(appendName(out, e.name), e.kind), index)
	}
	return out
}

func (m *module) encodeStart(o Options) []byte {
	if least := m.loaded(); least >= 0 {
		return appendU32(nil, m.addLoader(least, o))
	}
	if m.hasStart {
		return appendU32(nil, m.entry(m.start, o.Stack))
	}
	return nil
}

// encodeElements appends the functions that code refers to: to the table for
// these, or, if the code refers to them itself, as a declaration, since code may
// refer only to what something else does, and exports now are of others.
func (m *module) encodeElements() []byte {
	references := m.graph.inOrder
	n := uint32(len(m.elements))
	if len(references) > 0 {
		n++
	}
	if n == 0 {
		return nil
	}
	out := appendU32(nil, n)
	for _, e := range m.elements {
		out = m.appendElement(out, e)
	}
	if len(references) == 0 {
		return out
	}
	if m.typed {
		out = append(out, elementInactive|elementExplicit, 0)
	} else {
		out = appendU32(append(out, elementExplicit), uint32(len(m.tables)))
		out = append(asm(out).i32(0).end(), 0)
	}
	out = appendU32(out, uint32(len(references)))
	for _, index := range references {
		out = appendU32(out, m.shift(index))
	}
	return out
}

func (m *module) appendElement(out []byte, e element) []byte {
	out = appendU32(out, e.flags)
	if e.flags&elementInactive == 0 {
		if e.flags&elementExplicit != 0 {
			out = appendU32(out, e.table)
		}
		out = m.appendExpressions(out, e.offset)
	}
	out = appendU32(append(out, e.typ...), e.count)
	if e.flags&elementExpressions != 0 {
		return m.appendExpressions(out, e.items)
	}
	for r := (reader{buf: e.items}); r.more(); {
		out = appendU32(out, m.shift(r.u32()))
	}
	return out
}

// encodeCode returns the bodies of the module's own functions.
func (m *module) encodeCode() ([]byte, error) {
	total := 0
	for i := range m.functions {
		total += len(m.functions[i].body)
	}
	code := make([]byte, 0, total+total/2)
	e := newEmitter(m)
	for i := range m.functions {
		e.out = e.out[:0]
		if err := e.emit(i); err != nil {
			return nil, err
		}
		code = append(appendU32(code, uint32(len(e.out))), e.out...)
	}
	return code, nil
}
