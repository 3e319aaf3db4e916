package meter

// The sections by id.
const (
	sectionCustom = iota
	sectionType
	sectionImport
	sectionFunction
	sectionTable
	sectionMemory
	sectionGlobal
	sectionExport
	sectionStart
	sectionElement
	sectionCode
	sectionData
	sectionDataCount
	sectionTag
)

// order is the place of each section in a module, by id.
var order = [...]int{
	sectionType: 1, sectionImport: 2, sectionFunction: 3, sectionTable: 4, sectionMemory: 5, sectionTag: 6, sectionGlobal: 7,
	sectionExport: 8, sectionStart: 9, sectionElement: 10, sectionDataCount: 11, sectionCode: 12, sectionData: 13,
}

// The kinds of imports and exports.
const (
	kindFunction = iota
	kindTable
	kindMemory
	kindGlobal
	kindTag
)

// module is what a module holds. What is []byte is part of the input.
type module struct {
	types    []funcType
	typeData []byte // the section's elements
	// typeElements is how many those are, fewer than types with recursion groups.
	typeElements uint32
	// typesRefer says that types refer to types: they have to be compared
	// otherwise than by their bytes.
	typesRefer bool

	importCount uint32
	importData  []byte
	// importTypes holds the types of imported functions. yield is the next one.
	importTypes     []uint32
	importedTables  uint32
	importedGlobals uint32
	// tables holds all tables, the imported ones first.
	tables   []table
	memory   *limits // of its own
	tagData  []byte
	tagCount uint32

	globals  []constant
	exports  []export
	start    uint32
	hasStart bool
	elements []element
	// dataSection holds data as it was read, and is nil once data is another.
	dataCount   []byte
	dataSection []byte
	data        []data
	functions   []function
	// typed says that typed references are used, which the engine has only on
	// request.
	typed bool
	names *names
	// byGo says that Go's compiler has made the module.
	byGo bool

	graph graph
	jumps jumps
	added added
}

// funcType is a function's type.
type funcType struct {
	raw        []byte // with its leading 0x60
	paramCount uint32
}

// limits of a table or memory.
type limits struct {
	min, max uint32
	hasMax   bool
	shared   bool
}

type table struct {
	typ []byte
	limits
	init     []byte // an expression, or nil
	initBase int
}

// constant is a global: its type and expression.
type constant struct {
	typ  []byte
	init []byte
	base int // of init in the module
}

type export struct {
	name  string
	kind  byte
	index uint32
}

// element is an element segment.
type element struct {
	// head is what precedes the offset's expression, and typ what follows it.
	flags, table uint32
	offset       []byte // an expression, or nil
	offsetBase   int
	typ          []byte // kind or type, or nil
	count        uint32
	// items are indices, or expressions.
	items     []byte
	itemsBase int
}

// function is one of the module's own.
type function struct {
	typ    uint32
	locals []byte // the declarations, without their number
	groups uint32
	count  uint32 // of locals
	body   []byte
	base   int // of body in the module

	facts
}

// decode splits a module into what it consists of.
func decode(input []byte, o Options) (*module, error) {
	const magic = "\x00asm\x01\x00\x00\x00"
	r := reader{buf: input}
	if head := r.take(8); string(head) != magic {
		return nil, &DecodeError{What: "not a core wasm module of version 1"}
	}
	m := &module{}
	for last := 0; r.more() && r.err == nil; {
		at := r.pos
		id := r.byte()
		s := r.sub(r.u32())
		if s.err != nil {
			return nil, s.err
		}
		s.types = uint32(len(m.types))
		if id == sectionType {
			s.types = maxTypes // which refer to one another
		}
		if id == sectionCustom {
			if m.custom(&s); s.err != nil {
				return nil, s.err
			}
			continue
		}
		if int(id) >= len(order) {
			r.fail(at, "section %d isn't known", id)
			return nil, r.err
		}
		if order[id] <= last {
			r.fail(at, "section %d is out of order", id)
			return nil, r.err
		}
		last = order[id]
		if err := m.section(id, &s, o); err != nil {
			return nil, err
		}
		if s.more() {
			s.fail(s.pos, "section %d is longer than what is in it", id)
		}
		m.typed = m.typed || s.typed
		if s.err != nil {
			return nil, s.err
		}
	}
	if r.err == nil && len(m.functions) > 0 && m.functions[len(m.functions)-1].body == nil {
		r.fail(r.pos, "functions without code")
	}
	return m, r.err
}

func (m *module) section(id byte, s *reader, o Options) error {
	switch id {
	case sectionType:
		return m.readTypes(s)
	case sectionImport:
		return m.readImports(s)
	case sectionFunction:
		return m.readFunctions(s, o)
	case sectionTable:
		return m.readTables(s)
	case sectionMemory:
		m.readMemory(s)
	case sectionTag:
		m.readTags(s)
	case sectionGlobal:
		return m.readGlobals(s)
	case sectionExport:
		m.readExports(s)
	case sectionStart:
		m.start, m.hasStart = s.u32(), true
		m.isFunction(s, 0, m.start)
	case sectionElement:
		m.readElements(s)
	case sectionDataCount:
		s.u32()
		m.dataCount = s.buf
	case sectionCode:
		return m.readCode(s, o)
	case sectionData:
		return m.readData(s)
	}
	return nil
}

func (m *module) readTypes(s *reader) error {
	m.typeElements = s.count()
	m.types = make([]funcType, 0, s.room(m.typeElements, 3))
	start := s.pos
	for range m.typeElements {
		members := uint32(1)
		if s.more() && s.buf[s.pos] == 0x4e { // a recursion group
			s.byte()
			members = s.count()
			m.typesRefer = true
		}
		for range members {
			if len(m.types) == maxTypes {
				return &LimitError{What: "types", Got: maxTypes + 1, Max: maxTypes}
			}
			t, err := m.readType(s)
			if err != nil {
				return err
			}
			m.types = append(m.types, t)
		}
	}
	m.typeData = s.buf[min(start, s.pos):s.pos]
	return s.err
}

func (m *module) readType(s *reader) (funcType, error) {
	start := s.pos
	if form := s.byte(); form != 0x60 {
		s.fail(start, "type form %#x isn't known", form)
	}
	var t funcType
	var err error
	if t.paramCount, err = m.values(s, "parameters"); err != nil {
		return t, err
	}
	if _, err = m.values(s, "results"); err != nil {
		return t, err
	}
	t.raw = s.buf[min(start, s.pos):s.pos]
	return t, s.err
}

// values steps over a vector of value types and returns its length.
func (m *module) values(s *reader, what string) (n uint32, err error) {
	if n = s.count(); n > maxValues {
		return 0, &LimitError{What: "a type's " + what, Got: uint64(n), Max: maxValues}
	}
	for range n {
		if t := s.valueType(); len(t) > 1 {
			m.typesRefer = true
		}
	}
	return n, s.err
}

func (m *module) readImports(s *reader) error {
	m.importCount = s.count()
	start := s.pos
	for range m.importCount {
		at := s.pos
		if s.name() == HostModule {
			s.fail(at, "import from module %q, which is for rewritten modules", HostModule)
		}
		s.name()
		at = s.pos
		switch kind := s.byte(); kind {
		case kindFunction:
			m.importTypes = append(m.importTypes, m.typeIndex(s))
		case kindTable:
			m.tables = append(m.tables, readTable(s))
			m.importedTables++
		case kindMemory:
			readLimits(s)
		case kindGlobal:
			s.valueType()
			s.byte()
			m.importedGlobals++
		case kindTag:
			s.byte()
			s.u32()
		default:
			s.fail(at, "import kind %#x isn't known", kind)
		}
	}
	m.importData = s.buf[min(start, s.pos):s.pos]
	return m.checkTables()
}

func (m *module) typeIndex(s *reader) uint32 {
	at := s.pos
	t := s.u32()
	s.isType(at, t)
	return t
}

// isFunction, isTable and isGlobal refuse indices that aren't the module's own: behind
// those is what the rewritten module adds.
func (m *module) isFunction(r *reader, at int, index uint32) {
	if uint64(index) >= uint64(len(m.importTypes)+len(m.functions)) {
		r.fail(at, "function %d isn't there", index)
	}
}

func (m *module) isTable(r *reader, at int, index uint32) {
	if uint64(index) >= uint64(len(m.tables)) {
		r.fail(at, "table %d isn't there", index)
	}
}

func (m *module) isGlobal(r *reader, at int, index uint32) {
	if uint64(index) >= uint64(m.importedGlobals)+uint64(len(m.globals)) {
		r.fail(at, "global %d isn't there", index)
	}
}

func (m *module) readFunctions(s *reader, o Options) error {
	n := s.count()
	if n > o.Functions {
		return &LimitError{What: "functions", Got: uint64(n), Max: uint64(o.Functions)}
	}
	m.functions = make([]function, n)
	for i := range m.functions {
		m.functions[i].typ = m.typeIndex(s)
	}
	return s.err
}

func (m *module) readTables(s *reader) error {
	for n := s.count(); n > 0 && s.err == nil; n-- {
		m.tables = append(m.tables, readTable(s))
	}
	return m.checkTables()
}

func (m *module) checkTables() error {
	if len(m.tables) > maxTables {
		return &LimitError{What: "tables", Got: uint64(len(m.tables)), Max: maxTables}
	}
	return nil
}

func readTable(s *reader) (t table) {
	at, hasInit := s.pos, false
	if s.more() && s.buf[s.pos] == 0x40 {
		s.byte()
		if s.byte() != 0 {
			s.fail(at, "table form isn't known")
		}
		hasInit = true
	}
	t.typ = s.valueType()
	t.limits = readLimits(s)
	if hasInit {
		t.initBase = s.base + s.pos
		t.init = s.expression()
		s.notNull(t.typ, t.init, t.initBase)
	}
	return t
}

func readLimits(s *reader) (l limits) {
	at := s.pos
	flags := s.byte()
	if flags > 3 {
		s.fail(at, "limits %#x aren't known", flags)
	}
	l.min = s.u32()
	l.hasMax, l.shared = flags&1 != 0, flags&2 != 0
	if l.hasMax {
		l.max = s.u32()
	}
	return l
}

func (m *module) readMemory(s *reader) {
	switch n := s.count(); n {
	case 0:
	case 1:
		l := readLimits(s)
		m.memory = &l
	default:
		s.fail(0, "%d memories", n)
	}
}

func (m *module) readTags(s *reader) {
	m.tagCount = s.count()
	start := s.pos
	for range m.tagCount {
		s.byte() // its attribute
		m.typeIndex(s)
	}
	m.tagData = s.buf[min(start, s.pos):s.pos]
}

func (m *module) readGlobals(s *reader) error {
	n := s.count()
	if n > maxGlobals {
		return &LimitError{What: "globals", Got: uint64(n), Max: maxGlobals}
	}
	m.globals = make([]constant, 0, s.room(n, 4))
	for ; n > 0 && s.err == nil; n-- {
		start := s.pos
		s.valueType()
		s.byte() // whether it is mutable
		c := constant{typ: s.buf[min(start, s.pos):s.pos], base: s.base + s.pos}
		c.init = s.expression()
		s.notNull(c.typ, c.init, c.base)
		m.globals = append(m.globals, c)
	}
	return s.err
}

func (m *module) readExports(s *reader) {
	n := s.count()
	m.exports = make([]export, 0, s.room(n, 3))
	for ; n > 0 && s.err == nil; n-- {
		var e export
		e.name = s.name()
		at := s.pos
		if e.kind = s.byte(); e.kind > kindTag {
			s.fail(at, "export kind %#x isn't known", e.kind)
		}
		switch e.index = s.u32(); e.kind {
		case kindFunction:
			m.isFunction(s, at, e.index)
		case kindGlobal:
			m.isGlobal(s, at, e.index)
		case kindTable:
			m.isTable(s, at, e.index)
		}
		m.exports = append(m.exports, e)
	}
}

// The bits of an element segment's flags.
const (
	elementInactive    = 1 // passive, or declarative
	elementExplicit    = 2 // has a table's index; if inactive, is declarative
	elementExpressions = 4
)

func (m *module) readElements(s *reader) {
	n := s.count()
	m.elements = make([]element, 0, s.room(n, 3))
	for ; n > 0 && s.err == nil; n-- {
		at := s.pos
		e := readElement(s)
		if e.flags&elementInactive == 0 {
			m.isTable(s, at, e.table)
		}
		m.elements = append(m.elements, e)
	}
}

func readElement(s *reader) (e element) {
	at := s.pos
	if e.flags = s.u32(); e.flags > 7 {
		s.fail(at, "element segment %#x isn't known", e.flags)
	}
	if e.flags&elementInactive == 0 {
		if e.flags&elementExplicit != 0 {
			e.table = s.u32()
		}
		e.offsetBase = s.base + s.pos
		e.offset = s.expression()
	}
	if e.flags&(elementInactive|elementExplicit) != 0 {
		start := s.pos
		if e.flags&elementExpressions != 0 {
			s.valueType()
		} else if s.byte() != 0 {
			s.fail(start, "element kind isn't known")
		}
		e.typ = s.buf[min(start, s.pos):s.pos]
	}
	e.count = s.count()
	start := s.pos
	e.itemsBase = s.base + start
	for range e.count {
		if e.flags&elementExpressions != 0 {
			s.expression()
		} else {
			s.u32()
		}
	}
	e.items = s.buf[min(start, s.pos):s.pos]
	return e
}

func (m *module) readCode(s *reader, o Options) error {
	if n := s.count(); int(n) != len(m.functions) {
		s.fail(0, "code of %d functions, of which %d are declared", n, len(m.functions))
		return s.err
	}
	var locals, code uint64
	for i := range m.functions {
		f := &m.functions[i]
		size := s.u32()
		if size > o.Body {
			return m.limitOf(i, "bytes of code", uint64(size), uint64(o.Body))
		}
		body := s.sub(size)
		n, err := m.readLocals(&body, i, o)
		if err != nil {
			return err
		}
		locals, code = locals+n, code+uint64(size)
		if locals > localsBefore+code {
			return m.limitOf(i, "locals of it and all before it", locals, localsBefore+code)
		}
		f.base = body.base + body.pos
		f.body = body.take(uint32(len(body.buf) - body.pos))
		if body.err == nil && (len(f.body) == 0 || f.body[len(f.body)-1] != byte(opEnd)) {
			body.fail(len(body.buf), "function doesn't end")
		}
		if body.err != nil {
			return body.err
		}
	}
	return s.err
}

// readLocals reads the declarations of function i's locals and returns how many
// these are.
func (m *module) readLocals(body *reader, i int, o Options) (uint64, error) {
	f, sum := &m.functions[i], uint64(0)
	f.groups = body.count()
	start := body.pos
	for range f.groups {
		sum += uint64(body.u32())
		body.valueType()
	}
	f.locals = body.buf[min(start, body.pos):body.pos]
	if sum > uint64(o.Locals) {
		return 0, m.limitOf(i, "locals", sum, uint64(o.Locals))
	}
	f.count = uint32(sum)
	return sum, body.err
}

// notNull refuses null for a type that excludes it. The engine would take it for
// a reference to function 0, which a rewritten module always has.
func (r *reader) notNull(typ, init []byte, base int) {
	if len(typ) > 0 && typ[0] == refNonNull && len(init) > 0 && init[0] == byte(opRefNull) {
		r.fail(base-r.base, "null where the type excludes it")
	}
}

// expression steps over a constant expression and returns it, its end included.
func (r *reader) expression() []byte {
	start := r.pos
	for r.err == nil {
		if r.instr().op == opEnd {
			return r.buf[start:r.pos]
		}
	}
	return nil
}
