package wasi

import (
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental/sys"
)

type kind uint8

const (
	kindFree kind = iota
	kindStdin
	kindStdout
	kindStderr
	kindDir
	kindFile
	kindListener
	kindConn
)

// descriptor is one entry of a process's table.
type descriptor struct {
	kind     kind
	preopen  bool // a directory that was there from the start
	nonblock bool // a socket that doesn't wait

	// Files and directories. A directory is opened when it is first read: most
	// of them only begin paths.
	mount    *Mount
	path     string // in mount.FS
	readOnly bool
	file     sys.File
	dir      *listing // what was read of a directory

	listener *Listener
	conn     *conn
}

func (d *descriptor) close() {
	switch {
	case d.file != nil:
		_ = d.file.Close() // what a guest can't be told
	case d.listener != nil:
		d.listener.close()
	case d.conn != nil:
		d.conn.closeGuest()
	}
}

// at returns the descriptor with the given number, or nil.
func (p *Process) at(fd uint64) *descriptor {
	if n := uint32(fd); n < uint32(len(p.fds)) && p.fds[n].kind != kindFree {
		return &p.fds[n]
	}
	return nil
}

// file returns the file or directory with the given number, open.
func (p *Process) file(fd uint64) (sys.File, errno) {
	d := p.at(fd)
	if d == nil {
		return nil, eBADF
	}
	return d.open()
}

func (d *descriptor) open() (sys.File, errno) {
	switch {
	case d.file != nil:
		return d.file, ok
	case d.kind == kindDir:
		f, e := d.mount.FS.OpenFile(d.path, sys.O_RDONLY|sys.O_DIRECTORY, 0)
		if e != 0 {
			return nil, fromSys(e)
		}
		d.file = f
		return f, ok
	default:
		return nil, eINVAL // a stream or socket
	}
}

// full reports whether the process may open nothing more.
func (p *Process) full() bool { return p.open >= maxOpen }

// add puts d at the lowest number that is free. The table isn't full.
func (p *Process) add(d descriptor) uint32 {
	for p.free < len(p.fds) && p.fds[p.free].kind != kindFree {
		p.free++
	}
	if p.free == len(p.fds) {
		p.fds = append(p.fds, descriptor{})
	}
	fd := p.free
	p.fds[fd] = d
	p.free++
	p.open++
	return uint32(fd)
}

// remove closes a descriptor that is open.
func (p *Process) remove(fd uint32) {
	p.fds[fd].close()
	p.fds[fd] = descriptor{}
	p.open--
	p.free = min(p.free, int(fd))
}

func fdClose(p *Process, _ api.Memory, a []uint64) errno {
	if p.at(a[0]) == nil {
		return eBADF
	}
	p.remove(uint32(a[0]))
	return ok
}

// fdRenumber moves a descriptor over another one, or to a number that is free.
func fdRenumber(p *Process, _ api.Memory, a []uint64) errno {
	from, to := uint32(a[0]), uint32(a[1])
	source := p.at(a[0])
	switch {
	case source == nil || to >= maxOpen:
		return eBADF
	case from == to:
		return ok
	case source.preopen:
		return eNOTSUP
	}
	if target := p.at(a[1]); target != nil {
		if target.preopen {
			return eNOTSUP
		}
		p.remove(to)
	}
	for uint32(len(p.fds)) <= to {
		p.fds = append(p.fds, descriptor{})
	}
	p.fds[to] = p.fds[from]
	p.fds[from] = descriptor{}
	p.free = min(p.free, int(from))
	return ok
}

// Rights, which nobody checks any more: guests get those that they ask for.
const (
	rightFdRead  = 1 << 1
	rightFdWrite = 1 << 6

	rightsFile = 1<<0 | rightFdRead | 1<<2 | 1<<3 | 1<<4 | 1<<5 | rightFdWrite | 1<<7 | 1<<8 |
		1<<21 | 1<<22 | 1<<23 | 1<<27
	rightsSeek   = 1<<2 | 1<<5
	rightsDir    = 1<<0 | 1<<3 | 1<<4 | 0xffff&^0x1ff | 1<<16 | 1<<17 | 1<<18 | 1<<19 | 1<<20 | 1<<21 | 1<<23 | 1<<24 | 1<<25 | 1<<26
	rightsSocket = rightFdRead | rightFdWrite | 1<<3 | 1<<21 | 1<<27 | 1<<28 | 1<<29
)

// File types.
const (
	typeUnknown     = 0
	typeBlock       = 1
	typeCharacter   = 2
	typeDirectory   = 3
	typeRegular     = 4
	typeSocket      = 6
	typeSymlink     = 7
	fdflagAppend    = 1 << 0
	fdflagDsync     = 1 << 1
	fdflagNonblock  = 1 << 2
	fdflagRsync     = 1 << 3
	fdflagSync      = 1 << 4
	fdstatSize      = 24
	filestatSize    = 64
	subscriptionLen = 48
	eventLen        = 32
)

func fdFdstatGet(p *Process, mem api.Memory, a []uint64) errno {
	buf, within := mem.Read(uint32(a[1]), fdstatSize)
	if !within {
		return eFAULT
	}
	d := p.at(a[0])
	if d == nil {
		return eBADF
	}
	var kind byte
	var flags uint16
	var rights, inheriting uint64
	switch d.kind {
	case kindDir:
		kind, rights, inheriting = typeDirectory, rightsDir, rightsFile|rightsDir
	case kindListener, kindConn:
		kind, rights = typeSocket, rightsSocket
	case kindFile:
		st, e := d.file.Stat()
		if e != 0 {
			return fromSys(e)
		}
		kind, rights = typeOf(st.Mode), rightsFile
		if kind == typeCharacter {
			rights &^= rightsSeek
		}
		if d.file.IsAppend() {
			flags |= fdflagAppend
		}
	default: // a pipe, for which there is no type; a character device would be a terminal
		kind, rights = typeBlock, rightsFile&^rightsSeek
	}
	if d.nonblock {
		flags |= fdflagNonblock
	}
	clear(buf)
	buf[0] = kind
	le.PutUint16(buf[2:], flags)
	le.PutUint64(buf[8:], rights)
	le.PutUint64(buf[16:], inheriting)
	return ok
}

func fdFdstatSetFlags(p *Process, _ api.Memory, a []uint64) errno {
	flags := uint16(a[1])
	if flags&(fdflagDsync|fdflagRsync|fdflagSync) != 0 {
		return eINVAL
	}
	d := p.at(a[0])
	if d == nil {
		return eBADF
	}
	nonblock := flags&fdflagNonblock != 0
	switch d.kind {
	case kindListener:
		d.listener.listen()
		d.nonblock = nonblock
	case kindConn:
		d.nonblock = nonblock
	case kindDir:
		return eISDIR
	case kindFile:
		d.nonblock = nonblock // a file never waits
		if st, e := d.file.Stat(); e == 0 && st.Mode.IsRegular() {
			return fromSys(d.file.SetAppend(flags&fdflagAppend != 0))
		}
	default:
		if nonblock { // whether a stream is ready can't be known
			return eNOSYS
		}
	}
	return ok
}

func fdPrestatGet(p *Process, mem api.Memory, a []uint64) errno {
	d := p.at(a[0])
	if d == nil || !d.preopen {
		return eBADF
	}
	// The tag 0, a directory, and the length of its name.
	if !mem.WriteUint64Le(uint32(a[1]), uint64(len(d.mount.Path))<<32) {
		return eFAULT
	}
	return ok
}

func fdPrestatDirName(p *Process, mem api.Memory, a []uint64) errno {
	d, size := p.at(a[0]), uint32(a[2])
	switch {
	case d == nil || !d.preopen:
		return eBADF
	case size > uint32(len(d.mount.Path)):
		return eNAMETOOLONG
	case !mem.WriteString(uint32(a[1]), d.mount.Path[:size]):
		return eFAULT
	}
	return ok
}
