package memfs

import (
	"io"
	"math"

	"github.com/tetratelabs/wazero/experimental/sys"
	wasmsys "github.com/tetratelabs/wazero/sys"
)

// file is an open node.
type file struct {
	sys.UnimplementedFile
	fs             *FS
	node           *node
	reads, writes  bool
	appends        bool
	offset         int64
	listed, closed bool
	names          []string // of a folder, as they were when it was first read
}

// grain is the least by which a file's room grows.
const grain = 512

// resize makes a file size bytes long, with zeros where it grows. It reports
// whether there was room.
func (f *FS) resize(n *node, size int64) bool {
	have := int64(cap(n.data))
	switch {
	case size == 0:
		f.room.Hold(-have)
		n.data = nil
	case size <= have:
		old := len(n.data)
		n.data = n.data[:size]
		if int(size) > old {
			clear(n.data[old:])
		}
	default:
		room := max(size, min(2*have, math.MaxInt64/2))
		room = (room + grain - 1) / grain * grain
		if !f.room.Hold(room - have) {
			if room = size; !f.room.Hold(room - have) {
				return false
			}
		}
		grown := make([]byte, size, room)
		copy(grown, n.data)
		n.data = grown
	}
	n.touch()
	return true
}

func (o *file) Dev() (uint64, sys.Errno)        { return 0, 0 }
func (o *file) Ino() (wasmsys.Inode, sys.Errno) { return o.node.ino, 0 }
func (o *file) IsDir() (bool, sys.Errno)        { return o.node.isDir(), 0 }
func (o *file) IsAppend() bool                  { return o.appends }
func (o *file) SetAppend(enable bool) sys.Errno { o.appends = enable; return 0 }
func (o *file) Sync() sys.Errno                 { return 0 }
func (o *file) Datasync() sys.Errno             { return 0 }

func (o *file) Stat() (wasmsys.Stat_t, sys.Errno) {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	return o.node.stat(), 0
}

func (o *file) Utimens(atime, mtime int64) sys.Errno {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	o.node.utimens(atime, mtime)
	return 0
}

func (o *file) Close() sys.Errno {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	if !o.closed {
		o.closed = true
		o.node.open--
		o.fs.drop(o.node)
	}
	return 0
}

// check is what each call that reads or writes a file begins with. The file
// system is locked.
func (o *file) check(may bool) sys.Errno {
	switch {
	case o.closed || !may:
		return sys.EBADF
	case o.node.isDir():
		return sys.EISDIR
	}
	return 0
}

func (o *file) Read(b []byte) (int, sys.Errno) {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	n, errno := o.readAt(b, o.offset)
	o.offset += int64(n)
	return n, errno
}

func (o *file) Pread(b []byte, offset int64) (int, sys.Errno) {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	return o.readAt(b, offset)
}

func (o *file) readAt(b []byte, offset int64) (int, sys.Errno) {
	if errno := o.check(o.reads); errno != 0 {
		return 0, errno
	}
	if offset < 0 {
		return 0, sys.EINVAL
	}
	if offset >= int64(len(o.node.data)) {
		return 0, 0
	}
	return copy(b, o.node.data[offset:]), 0
}

func (o *file) Write(b []byte) (int, sys.Errno) {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	if o.appends {
		o.offset = int64(len(o.node.data))
	}
	n, errno := o.writeAt(b, o.offset)
	o.offset += int64(n)
	return n, errno
}

func (o *file) Pwrite(b []byte, offset int64) (int, sys.Errno) {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	return o.writeAt(b, offset)
}

func (o *file) writeAt(b []byte, offset int64) (int, sys.Errno) {
	if errno := o.check(o.writes); errno != 0 {
		return 0, errno
	}
	if offset < 0 || offset > math.MaxInt64-int64(len(b)) {
		return 0, sys.EINVAL
	}
	if len(b) == 0 {
		return 0, 0
	}
	if end := offset + int64(len(b)); end > int64(len(o.node.data)) && !o.fs.resize(o.node, end) {
		return 0, sys.EIO
	}
	o.node.touch()
	return copy(o.node.data[offset:], b), 0
}

func (o *file) Truncate(size int64) sys.Errno {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	if errno := o.check(o.writes); errno != 0 {
		return errno
	}
	switch {
	case size < 0:
		return sys.EINVAL
	case !o.fs.resize(o.node, size):
		return sys.EIO
	}
	return 0
}

// position is an int64 by another name: vet would take Seek for io.Seeker's,
// which returns an error.
type position = int64

func (o *file) Seek(offset position, whence int) (int64, sys.Errno) {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	if o.node.isDir() {
		if offset != 0 || whence != io.SeekStart {
			return 0, sys.EISDIR
		}
		o.listed, o.names = false, nil
		return 0, 0
	}
	var from int64
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		from = o.offset
	case io.SeekEnd:
		from = int64(len(o.node.data))
	default:
		return 0, sys.EINVAL
	}
	if to := from + offset; to >= 0 { // a sum that overflows is below 0
		o.offset = to
		return to, 0
	}
	return 0, sys.EINVAL
}

// Readdir returns the next n entries, or all that are left. A name that goes
// meanwhile is left out.
func (o *file) Readdir(n int) ([]sys.Dirent, sys.Errno) {
	o.fs.mu.Lock()
	defer o.fs.mu.Unlock()
	if !o.node.isDir() {
		return nil, sys.ENOTDIR
	}
	if !o.listed {
		o.listed, o.names = true, o.node.names[:len(o.node.names):len(o.node.names)]
	}
	var entries []sys.Dirent
	for len(o.names) > 0 && (n <= 0 || len(entries) < n) {
		name := o.names[0]
		o.names = o.names[1:]
		if there, ok := o.node.entries[name]; ok {
			entries = append(entries, sys.Dirent{Ino: there.ino, Name: name, Type: there.mode.Type()})
		}
	}
	return entries, 0
}
