package meter

import "fmt"

// helper is a function that was added to the module.
type helper struct {
	name string
	typ  uint32 // its type's index
	code []byte // with its locals, without its size
}

// helperKey tells helpers apart: an instruction, and its indices. Those for an
// export have opcode 0.
type helperKey struct {
	op   opcode
	a, b uint32
}

// The helpers that each module has.
const (
	helperRefuel = iota
	helperExhausted
	helperCharge
)

// added is what is added to a module.
type added struct {
	types   [][]byte
	helpers []helper
	byKey   map[helperKey]uint32
}

// asm is the code of a helper as it is written.
type asm []byte

func (a asm) op(codes ...byte) asm     { return append(a, codes...) }
func (a asm) get(local uint32) asm     { return appendU32(append(a, byte(opLocalGet)), local) }
func (a asm) set(local uint32) asm     { return appendU32(append(a, byte(opLocalSet)), local) }
func (a asm) tee(local uint32) asm     { return appendU32(append(a, byte(opLocalTee)), local) }
func (a asm) getGlobal(g uint32) asm   { return appendU32(append(a, byte(opGlobalGet)), g) }
func (a asm) setGlobal(g uint32) asm   { return appendU32(append(a, byte(opGlobalSet)), g) }
func (a asm) i32(v int32) asm          { return appendS32(append(a, byte(opI32Const)), v) }
func (a asm) call(function uint32) asm { return appendU32(append(a, byte(opCall)), function) }
func (a asm) block(op opcode) asm      { return append(a, byte(op), 0x40) }
func (a asm) end() asm                 { return append(a, byte(opEnd)) }
func (a asm) brIf0() asm               { return append(a, byte(opBrIf), 0) }
func (a asm) misc(op opcode, index ...uint32) asm { // an instruction with a prefix
	a = appendU32(append(a, byte(op>>8)), uint32(op&0xff))
	for _, i := range index {
		a = appendU32(a, i)
	}
	return a
}

// Instructions without anything after them.
const (
	i32LtS     = 0x48
	i32GeS     = 0x4e
	i32LtU     = 0x49
	i32GtU     = 0x4b
	i32LeU     = 0x4d
	i64GtU     = 0x56
	i32Add     = 0x6a
	i32Sub     = 0x6b
	i32Or      = 0x72
	i32ShrU    = 0x76
	i64Add     = 0x7c
	i64Shl     = 0x86
	i64ExtendU = 0xad
	selectOp   = 0x1b
	valueI32   = 0x7f

	valueFuncref = 0x70
)

// yield is the index of the imported host function: the first behind the
// module's own imports.
func (m *module) yield() uint32 { return uint32(len(m.importTypes)) }

// shift returns the index that a function has in the rewritten module.
func (m *module) shift(index uint32) uint32 {
	if index >= m.yield() && index != ^uint32(0) {
		return index + 1
	}
	return index
}

func (m *module) helperIndex(i uint32) uint32 { return m.yield() + 1 + uint32(len(m.functions)) + i }

// The globals behind the module's own: the balance of fuel, and the stack left.
func (m *module) fuelGlobal() uint32  { return m.importedGlobals + uint32(len(m.globals)) }
func (m *module) stackGlobal() uint32 { return m.fuelGlobal() + 1 }

// typeOf returns the index of a type that is added, by what it is.
func (m *module) typeOf(params, results []byte) uint32 {
	raw := append([]byte{0x60}, params...)
	raw = append(raw, results...)
	for i, t := range m.added.types {
		if string(t) == string(raw) {
			return uint32(len(m.types) + i)
		}
	}
	m.added.types = append(m.added.types, raw)
	return uint32(len(m.types) + len(m.added.types) - 1)
}

// values is a vector of value types.
func values(types ...byte) []byte { return append([]byte{byte(len(types))}, types...) }

// putPadded puts v, below 2^20, as a signed integer of three bytes.
func putPadded(out []byte, v uint32) {
	out[0], out[1], out[2] = byte(v)|0x80, byte(v>>7)|0x80, byte(v>>14)&0x7f
}

// appendCheck appends a check, which uses a local, and returns where its cost
// goes.
func (m *module) appendCheck(out []byte, scratch uint32) (code []byte, cost int) {
	a := asm(out).getGlobal(m.fuelGlobal()).op(byte(opI32Const))
	at := len(a)
	a = append(a, 0x80, 0x80, 0)
	a = a.op(i32Sub).tee(scratch).setGlobal(m.fuelGlobal())
	a = a.get(scratch).i32(0).op(i32GeS).block(opIf).op(byte(opElse)).call(m.helperIndex(helperRefuel)).end()
	return a, at
}

// addHelpers adds the helpers that every module has.
func (m *module) addHelpers() {
	m.added.byKey = map[helperKey]uint32{}
	none, one := values(), values(valueI32)
	refuel := asm{0}.block(opLoop).
		getGlobal(m.fuelGlobal()).i32(Refuel).call(m.yield()).op(i32Add).setGlobal(m.fuelGlobal()).
		getGlobal(m.fuelGlobal()).i32(0).op(i32LtS).brIf0().
		end().end()
	// exhausted is called with the stack that is left: it, or the fuel, is used
	// up. What the host has added stays apart: callers don't know of it.
	added := m.stackGlobal() + 1
	exhausted := asm{0}.
		get(0).i32(0).op(i32LtS).block(opIf).
		get(0).getGlobal(added).op(i32Add).i32(0).op(i32LtS).block(opIf).
		getGlobal(added).i32(Exhausted).call(m.yield()).op(i32Add).setGlobal(added).
		get(0).getGlobal(added).op(i32Add).i32(0).op(i32LtS).block(opIf).op(byte(opUnreachable)).end().
		end().end().
		getGlobal(m.fuelGlobal()).i32(0).op(i32LtS).block(opIf).call(m.helperIndex(helperRefuel)).end().
		end()
	// charge takes for n entries or, too much, bytes, and returns n. What can't
	// be, and so fails, isn't charged.
	const most = 1 << 17
	charge := asm{1, 1, valueI32}.
		getGlobal(m.fuelGlobal()).
		get(0).i32(1).op(i32ShrU).tee(1).i32(most).get(1).i32(most).op(i32LtU, selectOp).
		op(i32Sub).tee(1).setGlobal(m.fuelGlobal()).
		get(1).i32(0).op(i32LtS).block(opIf).call(m.helperIndex(helperRefuel)).end().
		get(0).end()
	m.added.helpers = []helper{
		helperRefuel:    {"refuel", m.typeOf(none, none), refuel},
		helperExhausted: {"exhausted", m.typeOf(one, none), exhausted},
		helperCharge:    {"charge", m.typeOf(one, one), charge},
	}
}

// helper returns the index of the helper with the given key, which build makes
// the first time.
func (m *module) helper(key helperKey, build func() helper) uint32 {
	i, ok := m.added.byKey[key]
	if !ok {
		i = uint32(len(m.added.helpers))
		m.added.byKey[key] = i
		m.added.helpers = append(m.added.helpers, build())
	}
	return m.helperIndex(i)
}

// entry returns the index of a helper that calls function index with all of the
// stack. It is what the host calls in place of a function that counts it: what
// calls before have left isn't there any more.
func (m *module) entry(index uint32, stack uint32) uint32 {
	place, ok := m.own(index)
	if !ok || !m.functions[place].counts {
		return m.shift(index)
	}
	return m.helper(helperKey{a: index}, func() helper {
		t := m.functions[place].typ
		a := asm{0}.i32(int32(stack)).setGlobal(m.stackGlobal())
		for i := range m.types[t].paramCount {
			a = a.get(i)
		}
		a = a.call(m.shift(index)).end()
		return helper{fmt.Sprintf("enter-%d", index), t, a}
	})
}
