package wasi

import (
	"maps"
	"path"
	"slices"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental/sys"
)

const (
	direntSize = 24
	// readAhead is how many entries are read at once.
	readAhead = 64
)

// listing is what was read of a directory. A cookie is an entry's place in it,
// which stays until the guest begins anew with 0.
type listing struct {
	entries []sys.Dirent
	whole   bool // there are no more
}

// list returns the listing of d with at least upTo entries, if there are so many.
func (d *descriptor) list(upTo uint64) (*listing, errno) {
	f, e := d.open()
	if e != ok {
		return nil, e
	}
	if d.dir == nil {
		if d.dir, e = newListing(d, f); e != ok {
			return nil, e
		}
	}
	for !d.dir.whole && uint64(len(d.dir.entries)) < upTo {
		more, e := f.Readdir(readAhead)
		if e != 0 {
			return nil, fromSys(e)
		}
		d.dir.whole = len(more) == 0
		for _, entry := range more {
			if _, covered := d.mount.Files[path.Join(d.path, entry.Name)]; !covered {
				d.dir.entries = append(d.dir.entries, entry)
			}
		}
	}
	return d.dir, ok
}

// newListing begins with the entries that file systems here leave to their users,
// and the files that are mounted in the directory by themselves.
func newListing(d *descriptor, f sys.File) (*listing, errno) {
	self, e := f.Ino()
	if e != 0 {
		return nil, fromSys(e)
	}
	parent := self // a mount's own parent isn't for the guest
	if !d.preopen {
		if st, e := d.mount.FS.Stat(parentOf(d.path)); e == 0 {
			parent = st.Ino
		}
	}
	l := &listing{entries: []sys.Dirent{{Name: ".", Ino: self, Type: dirMode}, {Name: "..", Ino: parent, Type: dirMode}}}
	for _, name := range slices.Sorted(maps.Keys(d.mount.Files)) {
		f := d.mount.Files[name]
		if st, e := f.FS.Stat(f.Path); e == 0 && path.Dir(name) == d.path {
			l.entries = append(l.entries, sys.Dirent{Name: path.Base(name), Ino: st.Ino, Type: st.Mode.Type()})
		}
	}
	return l, ok
}

// rewind forgets what was read of d, so that it is read again.
func (d *descriptor) rewind() errno {
	if d.dir == nil {
		return ok
	}
	d.dir = nil
	_, e := d.file.Seek(0, 0)
	if e == sys.ENOSYS {
		e = d.file.Close()
		d.file = nil
	}
	return fromSys(e)
}

func fdReaddir(p *Process, mem api.Memory, a []uint64) errno {
	size, cookie := uint32(a[2]), a[3]
	d := p.at(a[0])
	switch {
	case d == nil || d.kind != kindDir:
		return eBADF
	case size < direntSize:
		return eINVAL
	}
	buf, within := mem.Read(uint32(a[1]), size)
	if !within {
		return eFAULT
	}
	if cookie == 0 {
		if e := d.rewind(); e != ok {
			return e
		}
	}
	used := uint32(0)
	for next := cookie; used < size; next++ {
		l, e := d.list(next + 1)
		switch {
		case e != ok:
			return e
		case next > uint64(len(l.entries)):
			return eINVAL
		case next == uint64(len(l.entries)):
			size = used // the end: less than the buffer holds says so
			continue
		}
		used += putDirent(buf[used:], &l.entries[next], next+1)
	}
	return putCount(mem, a[4], used, ok)
}

// putDirent writes as much of an entry as there is room for. A guest that got a
// part reads again from there with a larger buffer.
func putDirent(buf []byte, d *sys.Dirent, next uint64) uint32 {
	var head [direntSize]byte
	le.PutUint64(head[0:], next)
	le.PutUint64(head[8:], d.Ino)
	le.PutUint32(head[16:], uint32(len(d.Name)))
	head[20] = typeOf(d.Type)
	n := copy(buf, head[:])
	return uint32(n + copy(buf[n:], d.Name))
}
