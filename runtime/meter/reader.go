package meter

import (
	"fmt"
	"slices"
	"unicode/utf8"
)

// DecodeError says what in a module isn't understood, and where.
type DecodeError struct {
	Offset int // in the module
	What   string
}

func (e *DecodeError) Error() string {
	return fmt.Sprintf("decode module at offset %#x: %s", e.Offset, e.What)
}

// reader reads a stretch of a module. Its first failure sticks: from then on it
// is at its end and returns zeros, so that callers check err once per item.
//
// Integers are read strictly: an encoding that the specification doesn't allow
// is refused even where the engine is lenient, so that both see the same code.
type reader struct {
	buf  []byte
	pos  int
	base int // of buf in the module
	// types is the number of types that there are to refer to.
	types uint32
	// typed says that a type of references other than funcref and externref was
	// read.
	typed bool
	err   error
}

func (r *reader) fail(at int, format string, args ...any) {
	if r.err == nil {
		r.err = &DecodeError{Offset: r.base + at, What: fmt.Sprintf(format, args...)}
	}
	r.pos = len(r.buf)
}

func (r *reader) more() bool { return r.pos < len(r.buf) }

func (r *reader) byte() byte {
	if r.pos >= len(r.buf) {
		r.fail(r.pos, "unexpected end")
		return 0
	}
	b := r.buf[r.pos]
	r.pos++
	return b
}

func (r *reader) take(n uint32) []byte {
	if uint64(n) > uint64(len(r.buf)-r.pos) {
		r.fail(r.pos, "unexpected end: %d bytes wanted, %d left", n, len(r.buf)-r.pos)
		return nil
	}
	taken := r.buf[r.pos : r.pos+int(n)]
	r.pos += int(n)
	return taken
}

// sub returns a reader of the next n bytes and steps over them.
func (r *reader) sub(n uint32) reader {
	base := r.base + r.pos
	buf := r.take(n)
	return reader{buf: buf, base: base, types: r.types, err: r.err}
}

func (r *reader) u32() uint32 {
	// Nearly all are of one byte.
	if r.pos < len(r.buf) && r.buf[r.pos] < 0x80 {
		r.pos++
		return uint32(r.buf[r.pos-1])
	}
	return uint32(r.unsigned(32))
}

func (r *reader) unsigned(bits int) uint64 {
	start, value := r.pos, uint64(0)
	for shift := 0; ; shift += 7 {
		b := r.byte()
		if r.err != nil {
			return 0
		}
		if left := bits - shift; left < 7 && b>>left != 0 {
			r.fail(start, "integer of more than %d bits", bits)
			return 0
		}
		value |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return value
		}
	}
}

// signed reads a signed integer of 32, 33 or 64 bits.
func (r *reader) signed(bits int) int64 {
	start, value := r.pos, int64(0)
	for shift := 0; ; shift += 7 {
		b := r.byte()
		if r.err != nil {
			return 0
		}
		if left := bits - shift; left < 7 {
			// The last byte: no more may follow, and what is beyond the integer
			// repeats its sign.
			beyond := int8(b<<1) >> left // sign and all bits from it on
			if b >= 0x80 || beyond != 0 && beyond != -1 {
				r.fail(start, "integer of more than %d bits", bits)
				return 0
			}
		}
		value |= int64(b&0x7f) << shift
		if b < 0x80 {
			if shift+7 < 64 && b&0x40 != 0 {
				value |= -1 << (shift + 7)
			}
			return value
		}
	}
}

func (r *reader) name() string {
	at := r.pos
	name := r.take(r.u32())
	if !utf8.Valid(name) {
		r.fail(at, "name isn't UTF-8")
	}
	return string(name)
}

// count reads the length of a vector, of which each element takes at least one
// byte.
func (r *reader) count() uint32 {
	at := r.pos
	n := r.u32()
	if uint64(n) > uint64(len(r.buf)-r.pos) {
		r.fail(at, "vector of %d elements in %d bytes", n, len(r.buf)-r.pos)
		return 0
	}
	return n
}

// room is how many elements of a vector of n there can be, each of at least the
// given number of bytes.
func (r *reader) room(n uint32, least int) int {
	return min(int(n), (len(r.buf)-r.pos)/least)
}

// The kinds of types that have more than one byte.
const (
	refNull    = 0x63
	refNonNull = 0x64
)

// valueType steps over a value type and returns its bytes.
func (r *reader) valueType() []byte {
	start := r.pos
	switch b := r.byte(); b {
	case 0x7f, 0x7e, 0x7d, 0x7c, 0x7b, 0x70, 0x6f, 0x69:
	case refNull, refNonNull:
		r.heapType()
	default:
		r.fail(start, "value type %#x isn't known", b)
	}
	return r.buf[start:r.pos]
}

func (r *reader) heapType() {
	at := r.pos
	r.typed = true
	switch t := r.signed(33); {
	case t == -0x10 || t == -0x11 || t == -0x17:
	case t < 0:
		r.fail(at, "heap type %d isn't known", t)
	default:
		r.isType(at, uint32(t))
	}
}

func (r *reader) isType(at int, t uint32) {
	if t >= r.types {
		r.fail(at, "type %d isn't there", t)
	}
}

func appendU32(out []byte, v uint32) []byte {
	for v >= 0x80 {
		out = append(out, byte(v)|0x80)
		v >>= 7
	}
	return append(out, byte(v))
}

func appendS32(out []byte, v int32) []byte {
	for v < -0x40 || v >= 0x40 {
		out = append(out, byte(v)|0x80)
		v >>= 7
	}
	return append(out, byte(v)&0x7f)
}

// sizeU32 is the number of bytes that appendU32 adds.
func sizeU32(v uint32) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

func appendName(out []byte, name string) []byte {
	return append(appendU32(out, uint32(len(name))), name...)
}

// insertSize puts the size of what follows start in front of it.
func insertSize(out []byte, start int) []byte {
	var size [5]byte
	return slices.Insert(out, start, appendU32(size[:0], uint32(len(out)-start))...)
}
