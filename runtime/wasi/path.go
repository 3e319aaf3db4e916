package wasi

import (
	"io/fs"
	"path"
	"strings"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental/sys"
	wasmsys "github.com/tetratelabs/wazero/sys"
)

const dirMode = fs.ModeDir

// maxPath bounds a path, as Linux does.
const maxPath = 4096

const lookupFollow = 1 << 0

const (
	openCreate = 1 << iota
	openDirectory
	openExclusive
	openTruncate
)

// place is a path in a mount, or a file that is mounted there by itself.
type place struct {
	*Mount
	path string
	fs   sys.FS
	// readOnly refuses whatever would change what is there, single what would put
	// something else there.
	readOnly, single bool
}

// at returns the place of a path of m, which may end in a slash.
func (m *Mount) at(name string) place {
	at := place{Mount: m, path: name, fs: m.FS, readOnly: m.ReadOnly}
	clean := strings.TrimSuffix(name, "/")
	if f, found := m.Files[clean]; found {
		at.path, at.fs, at.readOnly, at.single = f.Path+name[len(clean):], f.FS, f.ReadOnly, true
	}
	return at
}

func parentOf(p string) string { return path.Dir(p) }

// resolve returns the place of a path below a directory. It can't lead out of
// the directory's mount.
func (p *Process) resolve(mem api.Memory, fd, address, size uint64) (place, errno) {
	name, e := readPath(mem, address, size)
	if e != ok {
		return place{}, e
	}
	clean := path.Clean(name)
	d := p.at(fd)
	switch {
	case !fs.ValidPath(clean): // absolute, above the directory, or no UTF-8
		return place{}, ePERM
	case d == nil:
		return place{}, eBADF
	case d.kind != kindDir:
		return place{}, eNOTDIR
	}
	if strings.HasSuffix(name, "/") { // it must be a directory then
		clean += "/"
	}
	if d.path != "." {
		clean = d.path + "/" + clean
	}
	return d.mount.at(clean), ok
}

func readPath(mem api.Memory, address, size uint64) (string, errno) {
	if uint32(size) > maxPath {
		return "", eNAMETOOLONG
	}
	b, within := mem.Read(uint32(address), uint32(size))
	if !within {
		return "", eFAULT
	}
	for _, c := range b {
		if c == 0 {
			return "", eINVAL
		}
	}
	return string(b), ok
}

// resolveWritable is resolve for calls that change what is there.
func (p *Process) resolveWritable(mem api.Memory, fd, address, size uint64) (place, errno) {
	at, e := p.resolve(mem, fd, address, size)
	if e == ok && at.readOnly {
		e = eROFS
	}
	return at, e
}

// resolveName is resolveWritable for calls that change which names there are.
func (p *Process) resolveName(mem api.Memory, fd, address, size uint64) (place, errno) {
	at, e := p.resolveWritable(mem, fd, address, size)
	if e == ok && at.single {
		e = eBUSY
	}
	return at, e
}

func pathCreateDirectory(p *Process, mem api.Memory, a []uint64) errno {
	at, e := p.resolveName(mem, a[0], a[1], a[2])
	if e != ok {
		return e
	}
	return fromSys(at.fs.Mkdir(at.path, 0o700))
}

func pathRemoveDirectory(p *Process, mem api.Memory, a []uint64) errno {
	at, e := p.resolveName(mem, a[0], a[1], a[2])
	if e != ok {
		return e
	}
	return fromSys(at.fs.Rmdir(at.path))
}

func pathUnlinkFile(p *Process, mem api.Memory, a []uint64) errno {
	at, e := p.resolveName(mem, a[0], a[1], a[2])
	if e != ok {
		return e
	}
	return fromSys(at.fs.Unlink(at.path))
}

func pathFilestatGet(p *Process, mem api.Memory, a []uint64) errno {
	at, e := p.resolve(mem, a[0], a[2], a[3])
	if e != ok {
		return e
	}
	var st wasmsys.Stat_t
	var failed sys.Errno
	if uint32(a[1])&lookupFollow != 0 {
		st, failed = at.fs.Stat(at.path)
	} else {
		st, failed = at.fs.Lstat(at.path)
	}
	if failed != 0 {
		return fromSys(failed)
	}
	return putFilestat(mem, uint32(a[4]), &st, typeOf(st.Mode))
}

func pathFilestatSetTimes(p *Process, mem api.Memory, a []uint64) errno {
	atime, mtime, e := times(int64(a[4]), int64(a[5]), uint16(a[6]))
	if e != ok {
		return e
	}
	at, e := p.resolveWritable(mem, a[0], a[2], a[3])
	if e != ok {
		return e
	}
	if uint32(a[1])&lookupFollow != 0 {
		return fromSys(at.fs.Utimens(at.path, atime, mtime))
	}
	f, failed := at.fs.OpenFile(at.path, sys.O_WRONLY|sys.O_NOFOLLOW, 0)
	if failed != 0 {
		return fromSys(failed)
	}
	failed = f.Utimens(atime, mtime)
	_ = f.Close()
	return fromSys(failed)
}

func pathLink(p *Process, mem api.Memory, a []uint64) errno {
	from, e := p.resolveName(mem, a[0], a[2], a[3])
	if e != ok {
		return e
	}
	to, e := p.resolveName(mem, a[4], a[5], a[6])
	switch {
	case e != ok:
		return e
	case from.Mount != to.Mount:
		return eXDEV
	}
	return fromSys(from.fs.Link(from.path, to.path))
}

func pathRename(p *Process, mem api.Memory, a []uint64) errno {
	from, e := p.resolveName(mem, a[0], a[1], a[2])
	if e != ok {
		return e
	}
	to, e := p.resolveName(mem, a[3], a[4], a[5])
	switch {
	case e != ok:
		return e
	case from.Mount != to.Mount:
		return eXDEV
	}
	return fromSys(from.fs.Rename(from.path, to.path))
}

// pathSymlink refuses links that could lead out of their mount, also after they
// or a directory above them was moved.
func pathSymlink(p *Process, mem api.Memory, a []uint64) errno {
	target, e := readPath(mem, a[0], a[1])
	if e != ok {
		return e
	}
	if uint32(a[1]) == 0 || uint32(a[4]) == 0 {
		return eINVAL
	}
	link, e := p.resolveName(mem, a[2], a[3], a[4])
	if e != ok {
		return e
	}
	if path.IsAbs(target) {
		return ePERM
	}
	for part := range strings.SplitSeq(target, "/") {
		if part == ".." {
			return ePERM
		}
	}
	return fromSys(link.fs.Symlink(target, link.path))
}

func pathReadlink(p *Process, mem api.Memory, a []uint64) errno {
	size := uint32(a[4])
	if uint32(a[2]) == 0 || size == 0 {
		return eINVAL
	}
	at, e := p.resolve(mem, a[0], a[1], a[2])
	if e != ok {
		return e
	}
	target, failed := at.fs.Readlink(at.path)
	switch {
	case failed != 0:
		return fromSys(failed)
	case uint64(len(target)) > uint64(size):
		return eRANGE
	case !mem.WriteString(uint32(a[3]), target):
		return eFAULT
	}
	return putCount(mem, a[5], uint32(len(target)), ok)
}

func pathOpen(p *Process, mem api.Memory, a []uint64) errno {
	at, e := p.resolve(mem, a[0], a[2], a[3])
	if e != ok {
		return e
	}
	how := uint16(a[4])
	flags := openFlags(uint16(a[1]), how, a[5], uint16(a[7]))
	switch {
	case uint32(a[3]) == 0, how&openDirectory != 0 && how&openCreate != 0:
		return eINVAL
	case at.readOnly && flags&(sys.O_RDWR|sys.O_WRONLY|sys.O_CREAT|sys.O_TRUNC|sys.O_APPEND) != 0:
		if flags&sys.O_CREAT == 0 || !at.exists() || how&(openExclusive|openTruncate) != 0 {
			return eROFS
		}
		flags = sys.O_RDONLY // it asked to create what is there; writing will fail
	case p.full():
		return eMFILE
	}
	return p.openPlace(mem, at, flags, how&openDirectory != 0, uint32(a[8]))
}

func (at place) exists() bool {
	_, e := at.fs.Stat(at.path)
	return e == 0
}

func (p *Process) openPlace(mem api.Memory, at place, flags sys.Oflag, wantDir bool, result uint32) errno {
	f, failed := at.fs.OpenFile(at.path, flags, 0o600)
	if failed != 0 {
		return fromSys(failed)
	}
	isDir, failed := f.IsDir()
	e := fromSys(failed)
	if e == ok && wantDir && !isDir {
		e = eNOTDIR
	}
	if e != ok {
		_ = f.Close()
		return e
	}
	d := descriptor{kind: kindFile, mount: at.Mount, path: path.Clean(at.path), file: f, readOnly: at.readOnly}
	if isDir {
		d.kind = kindDir
	}
	fd := p.add(d)
	if !mem.WriteUint32Le(result, fd) {
		p.remove(fd)
		return eFAULT
	}
	return ok
}

// openFlags translates WASI's flags. Of the rights, those to read and write say
// what the file is opened for, if they are there.
func openFlags(lookup, how uint16, rights uint64, fdflags uint16) sys.Oflag {
	var flags sys.Oflag
	if lookup&lookupFollow == 0 {
		flags |= sys.O_NOFOLLOW
	}
	mode := sys.O_RDONLY
	if how&openDirectory != 0 {
		flags |= sys.O_DIRECTORY
	} else if how&openExclusive != 0 {
		flags |= sys.O_EXCL
	}
	for _, f := range []struct {
		set  bool
		flag sys.Oflag
		mode sys.Oflag
	}{
		{how&openTruncate != 0, sys.O_TRUNC, sys.O_RDWR},
		{how&openCreate != 0, sys.O_CREAT, sys.O_RDWR},
		{fdflags&fdflagAppend != 0, sys.O_APPEND, sys.O_RDWR},
		{fdflags&fdflagNonblock != 0, sys.O_NONBLOCK, 0},
		{fdflags&fdflagDsync != 0, sys.O_DSYNC, 0},
		{fdflags&fdflagRsync != 0, sys.O_RSYNC, 0},
		{fdflags&fdflagSync != 0, sys.O_SYNC, 0},
	} {
		if f.set {
			flags |= f.flag
			mode |= f.mode
		}
	}
	switch rights & (rightFdRead | rightFdWrite) {
	case rightFdRead | rightFdWrite:
		mode = sys.O_RDWR
	case rightFdWrite:
		mode = sys.O_WRONLY
	case rightFdRead:
		mode = sys.O_RDONLY
	}
	return flags | mode
}
