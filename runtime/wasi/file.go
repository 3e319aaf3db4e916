package wasi

import (
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"math"
	"time"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental/sys"
	wasmsys "github.com/tetratelabs/wazero/sys"
)

var le = binary.LittleEndian

// maxVectors bounds the buffers of one read or write, as Linux does.
const maxVectors = 1024

// vectors are the buffers of one read or write, checked to be within memory.
type vectors struct {
	mem  api.Memory
	list []byte // of addresses and lengths
}

func vectorsOf(mem api.Memory, address, number uint64) (vectors, errno) {
	if uint32(number) > maxVectors {
		return vectors{}, eINVAL
	}
	list, within := mem.Read(uint32(address), uint32(number)*8)
	if !within {
		return vectors{}, eFAULT
	}
	return vectors{mem, list}, ok
}

// next returns the next buffer that isn't empty, or none.
func (v *vectors) next() ([]byte, errno) {
	for len(v.list) > 0 {
		address, size := le.Uint32(v.list), le.Uint32(v.list[4:])
		v.list = v.list[8:]
		if size == 0 {
			continue
		}
		buf, within := v.mem.Read(address, size)
		if !within {
			return nil, eFAULT
		}
		return buf, ok
	}
	return nil, ok
}

// each calls move with one buffer after the other, until one isn't used up, and
// returns how many bytes were moved. An error counts only before the first byte.
func (v *vectors) each(move func([]byte) (int, errno)) (uint32, errno) {
	total := uint32(0)
	for {
		buf, e := v.next()
		n := 0
		if e == ok && buf != nil {
			n, e = move(buf)
			total += uint32(n)
		}
		switch {
		case e != ok && total > 0, e == ok && n < len(buf), e == ok && buf == nil:
			return total, ok
		case e != ok:
			return 0, e
		}
	}
}

// first calls move with the first buffer only, as is right for what may wait:
// what is there is better than waiting for more.
func (v *vectors) first(move func([]byte) (int, errno)) (uint32, errno) {
	buf, e := v.next()
	if e != ok || buf == nil {
		return 0, e
	}
	n, e := move(buf)
	return uint32(n), e
}

func fdRead(p *Process, mem api.Memory, a []uint64) errno {
	d := p.at(a[0])
	if d == nil {
		return eBADF
	}
	v, e := vectorsOf(mem, a[1], a[2])
	if e != ok {
		return e
	}
	var n uint32
	switch d.kind {
	case kindStdin:
		n, e = v.first(p.readStdin)
	case kindFile:
		n, e = v.each(func(b []byte) (int, errno) { return readFile(d.file.Read(b)) })
	case kindConn:
		n, e = v.first(func(b []byte) (int, errno) { return p.receive(d.conn, b, d.nonblock) })
	case kindDir:
		e = eISDIR
	default:
		e = eBADF
	}
	return putCount(mem, a[3], n, e)
}

func putCount(mem api.Memory, address uint64, n uint32, e errno) errno {
	if e == ok && !mem.WriteUint32Le(uint32(address), n) {
		return eFAULT
	}
	return e
}

// readFile returns what reading a file gave. One that isn't open for it is EBADF.
func readFile(n int, e sys.Errno) (int, errno) {
	if e == sys.ENOSYS {
		return n, eBADF
	}
	return n, fromSys(e)
}

// readStdin reads once.
func (p *Process) readStdin(b []byte) (int, errno) {
	if p.cfg.Stdin == nil {
		return 0, ok
	}
	p.release()
	n, err := p.cfg.Stdin.Read(b)
	p.acquire()
	switch {
	case n > 0 || errors.Is(err, io.EOF):
		return max(0, min(n, len(b))), ok
	case p.ctx.Err() != nil:
		leave()
	case err != nil:
		p.fail(err)
	}
	return 0, eAGAIN // neither bytes nor an error: a reader may do that
}

func fdWrite(p *Process, mem api.Memory, a []uint64) errno {
	d := p.at(a[0])
	if d == nil {
		return eBADF
	}
	v, e := vectorsOf(mem, a[1], a[2])
	if e != ok {
		return e
	}
	var n uint32
	switch d.kind {
	case kindStdout:
		n, e = v.each(func(b []byte) (int, errno) { return p.writeStream(p.cfg.Stdout, b) })
	case kindStderr:
		n, e = v.each(func(b []byte) (int, errno) { return p.writeStream(p.cfg.Stderr, b) })
	case kindFile:
		n, e = v.each(func(b []byte) (int, errno) { return readFile(d.file.Write(b)) })
	case kindConn:
		n, e = v.each(func(b []byte) (int, errno) { return p.send(d.conn, b, d.nonblock) })
	default:
		e = eBADF
	}
	return putCount(mem, a[3], n, e)
}

func (p *Process) writeStream(w io.Writer, b []byte) (int, errno) {
	if w == nil {
		return len(b), ok
	}
	p.release()
	_, err := w.Write(b)
	p.acquire()
	switch {
	case err == nil:
	case p.ctx.Err() != nil:
		leave()
	default:
		p.fail(err)
	}
	return len(b), ok
}

func fdPread(p *Process, mem api.Memory, a []uint64) errno {
	return positioned(p, mem, a, sys.File.Pread)
}

func fdPwrite(p *Process, mem api.Memory, a []uint64) errno {
	return positioned(p, mem, a, sys.File.Pwrite)
}

func positioned(p *Process, mem api.Memory, a []uint64, move func(sys.File, []byte, int64) (int, sys.Errno)) errno {
	d := p.at(a[0])
	if d == nil {
		return eBADF
	}
	v, e := vectorsOf(mem, a[1], a[2])
	if e != ok {
		return e
	}
	offset := int64(a[3])
	var n uint32
	switch d.kind {
	case kindFile:
		n, e = v.each(func(b []byte) (int, errno) {
			n, e := move(d.file, b, offset)
			offset += int64(n)
			return readFile(n, e)
		})
	case kindDir:
		e = eISDIR
	default:
		e = eSPIPE
	}
	return putCount(mem, a[4], n, e)
}

func fdSeek(p *Process, mem api.Memory, a []uint64) errno {
	return p.seek(mem, a[0], int64(a[1]), uint32(a[2]), uint32(a[3]))
}

func fdTell(p *Process, mem api.Memory, a []uint64) errno {
	return p.seek(mem, a[0], 0, io.SeekCurrent, uint32(a[1]))
}

func (p *Process) seek(mem api.Memory, fd uint64, offset int64, whence, result uint32) errno {
	d := p.at(fd)
	switch {
	case d == nil:
		return eBADF
	case d.kind == kindDir:
		return eISDIR
	case d.kind != kindFile:
		return eSPIPE
	case whence > io.SeekEnd:
		return eINVAL
	}
	at, e := d.file.Seek(offset, int(whence))
	if e != 0 {
		return fromSys(e)
	}
	if !mem.WriteUint64Le(result, uint64(at)) {
		return eFAULT
	}
	return ok
}

// fdAdvise checks its advice and takes none.
func fdAdvise(p *Process, _ api.Memory, a []uint64) errno {
	const last = 5 // noreuse
	switch d := p.at(a[0]); {
	case d == nil:
		return eBADF
	case uint32(a[3]) > last:
		return eINVAL
	}
	return ok
}

func fdAllocate(p *Process, _ api.Memory, a []uint64) errno {
	d := p.at(a[0])
	switch {
	case d == nil || d.kind != kindFile:
		return eBADF
	case a[1] > math.MaxInt64-a[2] || a[2] > math.MaxInt64:
		return eINVAL
	case d.readOnly:
		return eROFS
	}
	st, e := d.file.Stat()
	if end := int64(a[1] + a[2]); e == 0 && st.Size < end {
		e = d.file.Truncate(end)
	}
	return fromSys(e)
}

func fdSync(p *Process, _ api.Memory, a []uint64) errno {
	f, e := p.file(a[0])
	if e != ok {
		return e
	}
	return fromSys(f.Sync())
}

func fdDatasync(p *Process, _ api.Memory, a []uint64) errno {
	f, e := p.file(a[0])
	if e != ok {
		return e
	}
	return fromSys(f.Datasync())
}

func fdFilestatGet(p *Process, mem api.Memory, a []uint64) errno {
	d := p.at(a[0])
	if d == nil {
		return eBADF
	}
	st, kind := wasmsys.Stat_t{Nlink: 1}, byte(typeBlock)
	switch d.kind {
	case kindDir, kindFile:
		f, e := d.open()
		if e != ok {
			return e
		}
		var failed sys.Errno
		if st, failed = f.Stat(); failed != 0 {
			return fromSys(failed)
		}
		kind = typeOf(st.Mode)
	case kindListener, kindConn:
		kind = typeSocket
	}
	return putFilestat(mem, uint32(a[1]), &st, kind)
}

func typeOf(mode fs.FileMode) byte {
	switch {
	case mode.IsRegular():
		return typeRegular
	case mode.IsDir():
		return typeDirectory
	case mode&fs.ModeSymlink != 0:
		return typeSymlink
	case mode&fs.ModeCharDevice != 0:
		return typeCharacter
	case mode&fs.ModeDevice != 0:
		return typeBlock
	default:
		return typeUnknown
	}
}

func putFilestat(mem api.Memory, address uint32, st *wasmsys.Stat_t, kind byte) errno {
	buf, within := mem.Read(address, filestatSize)
	if !within {
		return eFAULT
	}
	for i, v := range [...]uint64{st.Dev, st.Ino, uint64(kind), st.Nlink, uint64(st.Size), uint64(st.Atim), uint64(st.Mtim), uint64(st.Ctim)} {
		le.PutUint64(buf[8*i:], v)
	}
	return ok
}

func fdFilestatSetSize(p *Process, _ api.Memory, a []uint64) errno {
	d := p.at(a[0])
	switch {
	case d == nil:
		return eBADF
	case d.kind == kindDir:
		return eISDIR
	case d.kind != kindFile || int64(a[1]) < 0:
		return eINVAL
	case d.readOnly:
		return eROFS
	}
	return fromSys(d.file.Truncate(int64(a[1])))
}

func fdFilestatSetTimes(p *Process, _ api.Memory, a []uint64) errno {
	d := p.at(a[0])
	if d == nil {
		return eBADF
	}
	f, e := d.open()
	if e != ok {
		return e
	}
	if d.readOnly {
		return eROFS
	}
	atime, mtime, e := times(int64(a[1]), int64(a[2]), uint16(a[3]))
	if e != ok {
		return e
	}
	failed := f.Utimens(atime, mtime)
	if failed == sys.EPERM || failed == sys.ENOSYS { // the file can't, its path may
		failed = d.mount.FS.Utimens(d.path, atime, mtime)
	}
	return fromSys(failed)
}

// times returns the times that are to be set: given, now, or left as they are.
func times(atime, mtime int64, flags uint16) (int64, int64, errno) {
	const (
		setAtime = 1 << iota
		nowAtime
		setMtime
		nowMtime
	)
	now := time.Now().UnixNano()
	choose := func(given int64, set, current bool) int64 {
		switch {
		case set:
			return given
		case current:
			return now
		default:
			return sys.UTIME_OMIT
		}
	}
	if flags&(setAtime|nowAtime) == setAtime|nowAtime || flags&(setMtime|nowMtime) == setMtime|nowMtime {
		return 0, 0, eINVAL
	}
	return choose(atime, flags&setAtime != 0, flags&nowAtime != 0), choose(mtime, flags&setMtime != 0, flags&nowMtime != 0), ok
}
