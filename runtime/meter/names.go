package meter

import (
	"bytes"
	"unicode/utf8"
)

// names are a module's own names for itself and its functions, which the engine
// puts into stack traces.
type names struct {
	module    []byte // the subsection, or nil
	functions []byte // the subsection's associations of indices and names
	count     uint32
}

// The subsections of the name section.
const (
	namesOfModule    = 0
	namesOfFunctions = 1
)

// custom reads a custom section. All but names are dropped: nothing reads them,
// and what says where code is would be wrong now.
func (m *module) custom(s *reader) {
	switch name := s.name(); {
	case name == "producers":
		m.byGo = m.byGo || bytes.Contains(s.buf[s.pos:], []byte("\x0eGo cmd/compile"))
		return
	case name != "name" || s.err != nil:
		return
	case m.names != nil:
		s.fail(0, "second section of names")
		return
	}
	n := &names{}
	for s.more() {
		id := s.byte()
		sub := s.sub(s.u32())
		switch id {
		case namesOfModule:
			n.module = sub.buf
			sub.skipName()
		case namesOfFunctions:
			n.count = sub.count()
			start := sub.pos
			for range n.count {
				sub.u32()
				sub.skipName()
			}
			n.functions = sub.buf[min(start, sub.pos):sub.pos]
		default:
			continue
		}
		if sub.err != nil || sub.more() {
			return // the engine would refuse it
		}
	}
	if s.err == nil {
		m.names = n
	}
}

func (r *reader) skipName() {
	at := r.pos
	if !utf8.Valid(r.take(r.u32())) {
		r.fail(at, "name isn't UTF-8")
	}
}

// encodeNames appends the name section: the module's own names, at the indices
// that functions have now, and those of what was added.
func (m *module) encodeNames(out []byte, added []helper) []byte {
	out = append(out, sectionCustom)
	section := len(out)
	out = appendName(out, "name")
	own := names{}
	if m.names != nil {
		own = *m.names
	}
	if own.module != nil {
		out = append(out, namesOfModule)
		out = appendU32(out, uint32(len(own.module)))
		out = append(out, own.module...)
	}
	out = append(out, namesOfFunctions)
	sub := len(out)
	out = appendU32(out, own.count+1+uint32(len(added)))
	yield, done := m.yield(), false
	for r := (reader{buf: own.functions}); r.more(); {
		index := r.u32()
		name := r.take(r.u32())
		if index >= yield && !done { // in order of indices, if they were so before
			out = appendName(appendU32(out, yield), HostModule+"."+Yield)
			done = true
		}
		out = appendU32(out, m.shift(index))
		out = append(appendU32(out, uint32(len(name))), name...)
	}
	if !done {
		out = appendName(appendU32(out, yield), HostModule+"."+Yield)
	}
	for i, h := range added {
		out = appendName(appendU32(out, m.helperIndex(uint32(i))), HostModule+"."+h.name)
	}
	out = insertSize(out, sub)
	return insertSize(out, section)
}
