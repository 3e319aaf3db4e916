package modcache

import (
	"encoding/binary"

	"github.com/wisp-serving/wisp/runtime/compile"
	"github.com/wisp-serving/wisp/runtime/memory"
)

// What an instance costs on Go's heap.
const (
	instanceSize = 48 << 10 // of wazero's, its stack of 10 KiB, and ours
	entrySize    = 8        // of a table
	elementSize  = 48       // of an element segment, which refers to a function
	globalSize   = 96
	segmentSize  = 24 // of a data segment, without the data

	// maxEntries is what the meter lets all tables of a module have together, and
	// all element segments.
	maxEntries = 1 << 18
)

// Sections, by their ids.
const (
	functionSection = 3
	tableSection    = 4
	memorySection   = 5
	globalSection   = 6
	elementSection  = 9
	dataSection     = 11
)

// needsOf returns what an instance of module takes, which wazero has compiled.
func needsOf(module []byte) memory.Needs {
	needs := memory.Needs{Fixed: instanceSize + compile.Stack}
	var functions uint64
	for r := (reader{module[len(header):]}); len(r.rest) > 0; {
		id, content := r.section()
		in := reader{content}
		switch id {
		case functionSection:
			functions = in.number()
		case tableSection:
			least, most := in.tables()
			needs.Fixed += entrySize * int64(most)
			needs.Empty = entrySize * max(int64(least)-2*int64(functions), 0) // two: one is the meter's
		case memorySection:
			if in.number() > 0 {
				least, most := in.limits()
				needs.Min, needs.Max = least*pageSize, min(most, maxPages)*pageSize
			}
		case globalSection:
			needs.Fixed += globalSize * int64(in.number())
		case elementSection:
			needs.Fixed += elementSize * int64(min(in.elements(), maxEntries))
		case dataSection:
			needs.Fixed += segmentSize * int64(in.number())
		}
	}
	return needs
}

// header is the magic and version of a module.
const header = "\x00asm\x01\x00\x00\x00"

// reader reads a valid module. What isn't there is 0.
type reader struct{ rest []byte }

func (r *reader) section() (id byte, content []byte) {
	id = r.byte()
	size := min(r.number(), uint64(len(r.rest)))
	content, r.rest = r.rest[:size], r.rest[size:]
	return id, content
}

func (r *reader) byte() byte {
	if len(r.rest) == 0 {
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *reader) number() uint64 {
	n, size := binary.Uvarint(r.rest)
	if size <= 0 {
		r.rest = nil
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

// tables returns the entries that all tables have at first, and may have.
func (r *reader) tables() (least, most uint64) {
	for n := r.number(); n > 0 && len(r.rest) > 0; n-- {
		if kind := r.byte(); kind != funcref && kind != externref {
			return maxEntries, maxEntries // a form that takes more to read; the meter bounds all
		}
		l, m := r.limits()
		least += l
		most += m
	}
	return min(least, maxEntries), min(most, maxEntries)
}

// elements returns how many entries all segments have, and as many again as there
// are segments.
func (r *reader) elements() uint64 {
	most := uint64(len(r.rest)) // an entry takes a byte or more
	entries := uint64(0)
	for n := r.number(); n > 0 && len(r.rest) > 0; n-- {
		switch flags := r.byte(); {
		case flags == 0 && r.byte() == i32Const:
			r.number()
			r.byte() // the end of where it goes
		case flags == 1:
			r.byte() // functions
		default:
			return most // a form that takes more to read
		}
		count := r.number()
		for i := count; i > 0 && len(r.rest) > 0; i-- {
			r.number()
		}
		entries += count + 1
	}
	return min(entries, most)
}

const (
	i32Const  = 0x41
	funcref   = 0x70
	externref = 0x6f
)

// limits reads limits. Without a maximum, it is the most there can be.
func (r *reader) limits() (least, most uint64) {
	bounded := r.byte()&1 != 0
	least, most = r.number(), maxEntries
	if bounded {
		most = r.number()
	}
	return least, most
}
