package provider

import (
	"bytes"
	"encoding/binary"
)

// program writes a WASI command by hand: what tests need of one is quicker
// compiled than a compiler's. Its methods add what it does, in order. See
// https://webassembly.github.io/spec/core/binary
type program struct {
	data, body []byte
	// room is how much memory it has beyond its data's, in bytes.
	room int
}

// Its imports, by index.
const (
	pathOpen = iota
	fdWrite
	procExit
	argsSizes
	sockAccept
)

// origin is where its data is in its memory; below is room for results.
const origin = 64

func signed(n int64) []byte {
	var b []byte
	for {
		low := byte(n & 0x7f)
		n >>= 7
		if n == 0 && low&0x40 == 0 || n == -1 && low&0x40 != 0 {
			return append(b, low)
		}
		b = append(b, low|0x80)
	}
}

func unsigned(n int) []byte { return binary.AppendUvarint(nil, uint64(n)) }

func (p *program) emit(code ...[]byte) *program {
	p.body = append(p.body, bytes.Join(code, nil)...)
	return p
}

func i32(n int) []byte     { return append([]byte{0x41}, signed(int64(n))...) }
func i64(n int64) []byte   { return append([]byte{0x42}, signed(n)...) }
func invoke(n byte) []byte { return []byte{0x10, n} }

var drop = []byte{0x1a}

// place puts b into the program's memory.
func (p *program) place(b []byte) (address int) {
	address = origin + len(p.data)
	p.data = append(p.data, b...)
	return address
}

// vector places a list of one buffer with text in it.
func (p *program) vector(text string) int {
	at := p.place([]byte(text))
	list := binary.LittleEndian.AppendUint32(nil, uint32(at))
	return p.place(binary.LittleEndian.AppendUint32(list, uint32(len(text))))
}

// complain writes text to standard error.
func (p *program) complain(text string) *program {
	return p.emit(i32(2), i32(p.vector(text)), i32(1), i32(0), invoke(fdWrite), drop)
}

// append appends text to a file below a directory, whose descriptor is dir.
func (p *program) append(dir int, path, text string) *program {
	const create, appends, rightToWrite = 1, 1, 1 << 6
	p.emit(i32(dir), i32(0), i32(p.place([]byte(path))), i32(len(path)), i32(create), i64(rightToWrite), i64(0), i32(appends), i32(8), invoke(pathOpen), drop)
	return p.emit(i32(8), []byte{0x28, 2, 0}, i32(p.vector(text)), i32(1), i32(0), invoke(fdWrite), drop) // i32.load
}

// accept takes the first connection to the port that the host has opened, behind one
// directory or two.
func (p *program) accept() *program {
	for fd := 4; fd <= 5; fd++ {
		p.emit(i32(fd), i32(0), i32(0), invoke(sockAccept), drop)
	}
	return p
}

func (p *program) exit(code int) *program { return p.emit(i32(code), invoke(procExit)) }

// forever does again and again what again adds.
func (p *program) forever(again func(*program)) *program {
	p.emit([]byte{0x03, 0x40}) // loop
	again(p)
	return p.emit([]byte{0x0c, 0, 0x0b}) // br, end
}

// printLine writes a line of n bytes to standard output.
func (p *program) printLine(n int) *program {
	const x, start = 'x', 1 << 20
	p.room = start + n + 1
	list := binary.LittleEndian.AppendUint32(nil, start)
	at := p.place(binary.LittleEndian.AppendUint32(list, uint32(n+1)))
	fill := []byte{0xfc, 0x0b, 0}
	p.emit(i32(start), i32(x), i32(n), fill, i32(start+n), i32('\n'), i32(1), fill)
	return p.emit(i32(1), i32(at), i32(1), i32(0), invoke(fdWrite), drop)
}

// exitUnless exits with 1 unless it has n arguments, its own name among them, and
// with 0 if it has.
func (p *program) exitUnless(arguments int) *program {
	p.emit(i32(0), i32(4), invoke(argsSizes), drop)
	return p.emit(i32(0), []byte{0x28, 2, 0}, i32(arguments), []byte{0x47}, invoke(procExit)) // i32.load, i32.ne
}

// module returns the program.
func (p *program) module() []byte {
	section := func(id byte, content ...[]byte) []byte {
		all := bytes.Join(content, nil)
		return append(append([]byte{id}, unsigned(len(all))...), all...)
	}
	name := func(s string) []byte { return append(unsigned(len(s)), s...) }
	imported := func(s string, kind byte) []byte {
		return bytes.Join([][]byte{name("wasi_snapshot_preview1"), name(s), {0, kind}}, nil)
	}
	body := bytes.Join([][]byte{{0}, p.body, {0x0b}}, nil)
	pages := (origin+len(p.data)+p.room)>>16 + 1
	return bytes.Join([][]byte{
		[]byte("\x00asm\x01\x00\x00\x00"),
		section(1, []byte{
			6,
			0x60, 9, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 0x7e, 0x7e, 0x7f, 0x7f, 1, 0x7f, // path_open
			0x60, 4, 0x7f, 0x7f, 0x7f, 0x7f, 1, 0x7f, // fd_write
			0x60, 1, 0x7f, 0, // proc_exit
			0x60, 0, 0, // _start
			0x60, 2, 0x7f, 0x7f, 1, 0x7f, // args_sizes_get
			0x60, 3, 0x7f, 0x7f, 0x7f, 1, 0x7f, // sock_accept
		}),
		section(2, []byte{5}, imported("path_open", 0), imported("fd_write", 1), imported("proc_exit", 2), imported("args_sizes_get", 4), imported("sock_accept", 5)),
		section(3, []byte{1, 3}),
		section(5, []byte{1, 0}, unsigned(pages)),
		section(7, []byte{2}, name("memory"), []byte{2, 0}, name("_start"), []byte{0, 5}),
		section(10, []byte{1}, unsigned(len(body)), body),
		section(11, []byte{1, 0}, i32(origin), []byte{0x0b}, unsigned(len(p.data)), p.data),
	}, nil)
}
