// Package outline reads what a wasm module says of itself: what it imports and
// exports, its memory, how large its parts are. It is for people who look at a
// module (`wisp inspect`); whether a module can run is for the meter and the
// compiler to say, so a broken one is read as far as it goes.
package outline

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Module is the outline of a module.
type Module struct {
	// Imports and Exports are in the module's order.
	Imports []Import `json:"imports"`
	Exports []Export `json:"exports"`
	// Memory is the first memory of the module's own, nil without one.
	Memory *Memory `json:"memory,omitempty"`
	// Functions is how many the module defines.
	Functions int `json:"functions"`
	// Sections are the module's, in its order.
	Sections []Section `json:"sections"`
}

// Import is something that the module takes from its host.
type Import struct {
	Module string `json:"module"`
	Name   string `json:"name"`
	Kind   string `json:"kind"`
}

// Export is something that the module gives to its host.
type Export struct {
	Name string `json:"name"`
	Kind string `json:"kind"`
}

// Memory is what a module declares, in bytes. Max is 0 where it declares none.
type Memory struct {
	Min int64 `json:"min"`
	Max int64 `json:"max,omitempty"`
}

// Section is a part of a module. A custom section's name has "custom " before it.
type Section struct {
	Name string `json:"name"`
	// Size is that of its content in bytes.
	Size int `json:"size"`
}

// sections are the names of sections by their ids.
var sections = [...]string{"custom", "types", "imports", "functions", "tables", "memories", "globals", "exports", "start", "elements", "code", "data", "data count", "tags"}

// kinds are those of imports and exports.
var kinds = [...]string{"function", "table", "memory", "global", "tag"}

const (
	header   = "\x00asm\x01\x00\x00\x00"
	pageSize = 64 << 10
)

// Sections and kinds whose content is read, by their ids.
const (
	custom    = 0
	imports   = 2
	functions = 3
	memories  = 5
	exports   = 7

	function = 0
	table    = 1
	memory   = 2
	global   = 3
	tag      = 4
)

// Read returns the outline of module. With an error, it is what came before the
// place that isn't understood.
func Read(module []byte) (Module, error) {
	var m Module
	if len(module) < len(header) || string(module[:len(header)]) != header {
		return m, errors.New("read module: not a core wasm module")
	}
	r := reader{rest: module[len(header):]}
	for len(r.rest) > 0 && r.err == nil {
		at := len(module) - len(r.rest)
		id := r.byte()
		content := reader{rest: r.take(r.number())}
		m.section(id, &content)
		if err := errors.Join(r.err, content.err); err != nil {
			return m, fmt.Errorf("read module: section %d at byte %d: %w", id, at, err)
		}
	}
	return m, r.err
}

func (m *Module) section(id byte, r *reader) {
	s := Section{Name: fmt.Sprintf("section %d", id), Size: len(r.rest)}
	if int(id) < len(sections) {
		s.Name = sections[id]
	}
	switch id {
	case custom:
		s.Name = "custom " + r.name()
	case imports:
		r.each(func() { m.Imports = append(m.Imports, r.imported()) })
	case functions:
		m.Functions = int(r.number())
	case memories:
		r.each(func() {
			if limits := r.limits(); m.Memory == nil {
				m.Memory = &limits
			}
		})
	case exports:
		r.each(func() {
			e := Export{Name: r.name(), Kind: kindOf(r.byte())}
			r.number() // its index
			m.Exports = append(m.Exports, e)
		})
	}
	m.Sections = append(m.Sections, s)
}

func kindOf(kind byte) string {
	if int(kind) < len(kinds) {
		return kinds[kind]
	}
	return fmt.Sprintf("kind %d", kind)
}

// reader reads the content of a section. Its first error sticks, and what is read
// after it is zero.
type reader struct {
	rest []byte
	err  error
}

var errEnd = errors.New("it ends too early")

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.rest = nil
}

func (r *reader) byte() byte {
	if b := r.take(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (r *reader) take(n uint32) []byte {
	if uint64(n) > uint64(len(r.rest)) {
		r.fail(errEnd)
		return nil
	}
	taken := r.rest[:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *reader) number() uint32 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 || n > 1<<32-1 {
		r.fail(errEnd)
		return 0
	}
	r.rest = r.rest[size:]
	return uint32(n)
}

func (r *reader) name() string {
	name := r.take(r.number())
	if !utf8.Valid(name) {
		r.fail(errors.New("a name isn't UTF-8"))
	}
	return string(name)
}

// each calls f for each entry of a vector, as long as there is something to read.
func (r *reader) each(f func()) {
	for n := r.number(); n > 0 && r.err == nil; n-- {
		f()
	}
}

func (r *reader) imported() Import {
	i := Import{Module: r.name(), Name: r.name()}
	kind := r.byte()
	i.Kind = kindOf(kind)
	switch kind {
	case function:
		r.number()
	case table:
		r.valueType()
		r.limits()
	case memory:
		r.limits()
	case global:
		r.valueType()
		r.byte()
	case tag:
		r.byte()
		r.number()
	default:
		r.fail(errors.New("an import of an unknown kind"))
	}
	return i
}

// valueType steps over one. References to types have a number after them.
func (r *reader) valueType() {
	if b := r.byte(); b == 0x63 || b == 0x64 {
		r.number()
	}
}

func (r *reader) limits() Memory {
	flags := r.byte()
	limits := Memory{Min: int64(r.number()) * pageSize}
	if flags&1 != 0 {
		limits.Max = int64(r.number()) * pageSize
	}
	return limits
}
