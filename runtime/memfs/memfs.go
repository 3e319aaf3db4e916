// Package memfs is a file system in memory: a guest's own /tmp, which begins empty
// and goes with the instance, or a volume that guests share.
//
// It implements wazero's sys.FS with POSIX's rules for files, folders and links.
// What it holds is charged, so that a guest that fills it is denied more; the
// interface knows no ENOSPC, so that reads EIO. An FS costs nothing until
// something is made in it.
package memfs

import (
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero/experimental/sys"
	wasmsys "github.com/tetratelabs/wazero/sys"
)

// perNode is what each file, folder, link and name is charged beside its
// content: what they take on Go's heap, generously.
const perNode = 512

// maxLinks is how many symbolic links a path may lead through, as on Linux.
const maxLinks = 40

// FS is a file system in memory. The zero value is not usable: see Init. It and
// its files are safe for concurrent use, but for one file's offset.
type FS struct {
	sys.UnimplementedFS
	mu    sync.Mutex // of all that follows, files and their descriptors too
	room  Room
	root  node
	nodes wasmsys.Inode // made so far
}

// Room is what an FS takes its memory from. It is called while the FS is locked.
type Room interface {
	// Hold counts bytes more as held, or, below 0, fewer. It may say no to more.
	Hold(bytes int64) bool
}

var _ sys.FS = (*FS)(nil)

// Init makes f an empty file system that takes what it holds from room. It gives
// nothing back when it is dropped, or made empty again, with all that is in it.
func (f *FS) Init(room Room) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.room, f.root, f.nodes = room, node{mode: fs.ModeDir | 0o777, links: 1, ino: 1}, 1
}

// node is a file, a folder or a symbolic link.
type node struct {
	ino          wasmsys.Inode
	mode         fs.FileMode
	links        uint64 // names that it has
	open         int    // descriptors that it has
	atime, mtime int64  // ns since the epoch

	data    []byte           // of a file; the capacity is charged
	entries map[string]*node // of a folder
	names   []string         // of a folder, in the order in which they were made
	target  string           // of a link
}

func (n *node) isDir() bool  { return n.mode.IsDir() }
func (n *node) isLink() bool { return n.mode&fs.ModeSymlink != 0 }

func (n *node) touch() { n.mtime = time.Now().UnixNano() }

func (n *node) stat() wasmsys.Stat_t {
	return wasmsys.Stat_t{
		Ino: n.ino, Mode: n.mode, Nlink: n.links, Size: int64(max(len(n.data), len(n.target))),
		Atim: n.atime, Mtim: n.mtime, Ctim: n.mtime,
	}
}

// make makes a node without a name, nil if there is no room.
func (f *FS) make(mode fs.FileMode) *node {
	if !f.room.Hold(perNode) {
		return nil
	}
	f.nodes++
	now := time.Now().UnixNano()
	return &node{ino: f.nodes, mode: mode, atime: now, mtime: now}
}

// place is where a path leads: a name in a folder, and what has it, if anything.
type place struct {
	dir  *node
	name string // empty for the root
	node *node
	// mustBeDir is whether the path ends in a slash.
	mustBeDir bool
}

// find walks a path. Symbolic links on the way are followed, one at its end only
// if follow.
func (f *FS) find(name string, follow bool) (place, sys.Errno) {
	at, links := &f.root, 0
	mustBeDir := strings.HasSuffix(name, "/")
	rest := clean(name)
	for rest != "" {
		first, after, more := strings.Cut(rest, "/")
		if !at.isDir() {
			return place{}, sys.ENOTDIR
		}
		next := at.entries[first]
		if next != nil && next.isLink() && (more || follow) {
			if links++; links > maxLinks {
				return place{}, sys.ELOOP
			}
			// Symlink lets none lead up: it stays below this folder.
			rest = clean(next.target + "/" + after)
			continue
		}
		switch {
		case !more && mustBeDir && next != nil && !next.isDir():
			return place{}, sys.ENOTDIR
		case !more:
			return place{dir: at, name: first, node: next, mustBeDir: mustBeDir}, 0
		case next == nil:
			return place{}, sys.ENOENT
		}
		at, rest = next, after
	}
	return place{node: at, mustBeDir: true}, 0
}

// clean returns a path without a slash at either end, empty for the root.
func clean(name string) string { return strings.Trim(path.Clean("/"+name), "/") }

// existing is find for what must be there.
func (f *FS) existing(name string, follow bool) (place, sys.Errno) {
	p, errno := f.find(name, follow)
	if errno == 0 && p.node == nil {
		errno = sys.ENOENT
	}
	return p, errno
}

// vacant is find for what must not be there.
func (f *FS) vacant(name string) (place, sys.Errno) {
	p, errno := f.find(name, false)
	if errno == 0 && p.node != nil {
		errno = sys.EEXIST
	}
	return p, errno
}

// link gives n the name at p.
func (p place) link(n *node) {
	if p.dir.entries == nil {
		p.dir.entries = map[string]*node{}
	}
	p.dir.entries[p.name] = n
	p.dir.names = append(p.dir.names, p.name)
	p.dir.touch()
	n.links++
}

// unlink takes the name at p away, and what had it if that was the last.
func (f *FS) unlink(p place) {
	delete(p.dir.entries, p.name)
	for i, name := range p.dir.names {
		if name == p.name {
			p.dir.names = append(p.dir.names[:i:i], p.dir.names[i+1:]...) // a reader keeps its own
			break
		}
	}
	p.dir.touch()
	p.node.links--
	f.drop(p.node)
}

// drop gives back the room of a node that nobody can reach any more.
func (f *FS) drop(n *node) {
	if n.links > 0 || n.open > 0 {
		return
	}
	f.room.Hold(-perNode - int64(cap(n.data)))
	n.data = nil
}

// OpenFile implements sys.FS.
func (f *FS) OpenFile(name string, flag sys.Oflag, perm fs.FileMode) (sys.File, sys.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, errno := f.find(name, flag&sys.O_NOFOLLOW == 0)
	if errno != 0 {
		return nil, errno
	}
	n := p.node
	writes := flag&(sys.O_RDWR|sys.O_WRONLY) != 0
	switch {
	case n == nil && flag&sys.O_CREAT == 0:
		return nil, sys.ENOENT
	case n == nil && (p.mustBeDir || flag&sys.O_DIRECTORY != 0):
		return nil, sys.EISDIR
	case n == nil:
		if n = f.make(perm & fs.ModePerm); n == nil {
			return nil, sys.EIO
		}
		p.link(n)
	case flag&sys.O_CREAT != 0 && flag&sys.O_EXCL != 0:
		return nil, sys.EEXIST
	case n.isLink():
		return nil, sys.ELOOP
	case n.isDir() && (writes || flag&sys.O_CREAT != 0):
		return nil, sys.EISDIR
	case !n.isDir() && flag&sys.O_DIRECTORY != 0:
		return nil, sys.ENOTDIR
	case flag&sys.O_TRUNC != 0 && writes:
		f.resize(n, 0)
	}
	n.open++
	return &file{fs: f, node: n, reads: flag&sys.O_WRONLY == 0, writes: writes, appends: flag&sys.O_APPEND != 0}, 0
}

// Stat implements sys.FS.
func (f *FS) Stat(name string) (wasmsys.Stat_t, sys.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, errno := f.existing(name, true)
	if errno != 0 {
		return wasmsys.Stat_t{}, errno
	}
	return p.node.stat(), 0
}

// Lstat implements sys.FS.
func (f *FS) Lstat(name string) (wasmsys.Stat_t, sys.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, errno := f.existing(name, false)
	if errno != 0 {
		return wasmsys.Stat_t{}, errno
	}
	return p.node.stat(), 0
}

// Mkdir implements sys.FS.
func (f *FS) Mkdir(name string, perm fs.FileMode) sys.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, errno := f.vacant(name)
	if errno != 0 {
		return errno
	}
	n := f.make(fs.ModeDir | perm&fs.ModePerm)
	if n == nil {
		return sys.EIO
	}
	p.link(n)
	return 0
}

// Chmod implements sys.FS. Modes are kept and mean nothing: there is one user.
func (f *FS) Chmod(name string, perm fs.FileMode) sys.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, errno := f.existing(name, true)
	if errno == 0 {
		p.node.mode = p.node.mode.Type() | perm&fs.ModePerm
	}
	return errno
}

// Rename implements sys.FS.
func (f *FS) Rename(from, to string) sys.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	old, errno := f.existing(from, false)
	if errno != 0 {
		return errno
	}
	p, errno := f.find(to, false)
	switch {
	case errno != 0:
		return errno
	case old.dir == nil || p.dir == nil: // the root
		return sys.EINVAL
	case old.node == p.node:
		return 0
	case p.mustBeDir && !old.node.isDir():
		return sys.ENOTDIR
	case old.node.isDir() && holds(old.node, p.dir):
		return sys.EINVAL
	case p.node != nil && p.node.isDir() && holds(p.node, old.dir):
		return sys.ENOTEMPTY
	}
	if p.node != nil {
		if errno := f.replace(p, old.node); errno != 0 {
			return errno
		}
	}
	old.node.links++ // it is never without a name meanwhile
	f.unlink(old)
	old.node.links--
	p.link(old.node)
	return 0
}

// replace makes room for n at p.
func (f *FS) replace(p place, n *node) sys.Errno {
	switch {
	case n.isDir() && !p.node.isDir():
		return sys.ENOTDIR
	case !n.isDir() && p.node.isDir():
		return sys.EISDIR
	case len(p.node.entries) > 0:
		return sys.ENOTEMPTY
	}
	f.unlink(p)
	return 0
}

// holds reports whether the folder at is dir or below it. It walks down: a node
// doesn't know where it is.
func holds(dir, at *node) bool {
	for below := []*node{dir}; len(below) > 0; {
		n := below[len(below)-1]
		below = below[:len(below)-1]
		if n == at {
			return true
		}
		for _, next := range n.entries {
			if next.isDir() {
				below = append(below, next)
			}
		}
	}
	return false
}

// Rmdir implements sys.FS.
func (f *FS) Rmdir(name string) sys.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, errno := f.existing(name, false)
	switch {
	case errno != 0:
		return errno
	case !p.node.isDir():
		return sys.ENOTDIR
	case p.dir == nil:
		return sys.EINVAL
	case len(p.node.entries) > 0:
		return sys.ENOTEMPTY
	}
	f.unlink(p)
	return 0
}

// Unlink implements sys.FS.
func (f *FS) Unlink(name string) sys.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, errno := f.existing(name, false)
	switch {
	case errno != 0:
		return errno
	case p.node.isDir():
		return sys.EISDIR
	}
	f.unlink(p)
	return 0
}

// Link implements sys.FS.
func (f *FS) Link(oldPath, newPath string) sys.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	old, errno := f.existing(oldPath, false)
	if errno != 0 {
		return errno
	}
	p, errno := f.vacant(newPath)
	switch {
	case errno != 0:
		return errno
	case old.node.isDir():
		return sys.EPERM
	case p.mustBeDir:
		return sys.ENOENT
	case !f.room.Hold(perNode):
		return sys.EIO
	}
	p.link(old.node)
	return 0
}

// Symlink implements sys.FS. Links lead down from their folder: others are
// refused, as WASI's own rules have it.
func (f *FS) Symlink(target, name string) sys.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	if target == "" || path.IsAbs(target) || !fs.ValidPath(path.Clean(target)) {
		return sys.EPERM
	}
	p, errno := f.vacant(name)
	switch {
	case errno != 0:
		return errno
	case p.mustBeDir:
		return sys.ENOENT
	}
	n := f.make(fs.ModeSymlink | 0o777)
	if n == nil {
		return sys.EIO
	}
	n.target = strings.Clone(target) // bounded by what a path is
	p.link(n)
	return 0
}

// Readlink implements sys.FS.
func (f *FS) Readlink(name string) (string, sys.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, errno := f.existing(name, false)
	switch {
	case errno != 0:
		return "", errno
	case !p.node.isLink():
		return "", sys.EINVAL
	}
	return p.node.target, 0
}

// Utimens implements sys.FS.
func (f *FS) Utimens(name string, atime, mtime int64) sys.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, errno := f.existing(name, true)
	if errno == 0 {
		p.node.utimens(atime, mtime)
	}
	return errno
}

func (n *node) utimens(atime, mtime int64) {
	if atime != sys.UTIME_OMIT {
		n.atime = atime
	}
	if mtime != sys.UTIME_OMIT {
		n.mtime = mtime
	}
}
