package volume

import (
	"io/fs"
	"path"
	"path/filepath"
	"sync"
	"time"

	"github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/experimental/sysfs"
)

// limited is a folder on disk that may hold so many bytes. It counts what is
// written and no more, so that its count is never too low; at the limit it looks
// what is really there, at most once a second.
type limited struct {
	sys.FS
	dir   string
	count *count
}

// count is the room that a folder has left.
type count struct {
	dir   string
	limit int64

	mu     sync.Mutex
	used   int64
	looked time.Time
}

// perFile is what each name counts for: a guest must not fill the disk with
// empty files.
const perFile = 4 << 10

func newLimited(dir string, limit int64) *limited {
	c := &count{dir: dir, limit: limit}
	c.used = c.measure() // of an earlier process of the node
	return &limited{FS: sysfs.DirFS(dir), dir: dir, count: c}
}

// within is a folder of l, by the same limit.
func (l *limited) within(sub string) *limited {
	dir := filepath.Join(l.dir, filepath.FromSlash(sub))
	return &limited{FS: sysfs.DirFS(dir), dir: dir, count: l.count}
}

func (c *count) measure() int64 {
	var used int64
	// What can't be read is not the guest's doing, and counts for nothing.
	_ = filepath.WalkDir(c.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == c.dir {
			return nil
		}
		used += perFile
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			used += info.Size()
		}
		return nil
	})
	return used
}

// take makes room for n more bytes, EIO if there is none: the interface has no
// ENOSPC.
func (c *count) take(n int64) sys.Errno {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used+n > c.limit && time.Since(c.looked) > time.Second {
		c.used = c.measure()
		c.looked = time.Now()
	}
	if c.used+n > c.limit {
		return sys.EIO
	}
	c.used += n
	return 0
}

func (l *limited) OpenFile(name string, flag sys.Oflag, perm fs.FileMode) (sys.File, sys.Errno) {
	if flag&sys.O_CREAT != 0 {
		if _, errno := l.FS.Lstat(name); errno == sys.ENOENT {
			if errno := l.count.take(perFile); errno != 0 {
				return nil, errno
			}
		}
	}
	f, errno := l.FS.OpenFile(name, flag, perm)
	if errno != 0 {
		return nil, errno
	}
	return &limitedFile{File: f, count: l.count}, 0
}

func (l *limited) Mkdir(name string, perm fs.FileMode) sys.Errno {
	if errno := l.count.take(perFile); errno != 0 {
		return errno
	}
	return l.FS.Mkdir(name, perm)
}

func (l *limited) Link(from, to string) sys.Errno {
	if errno := l.count.take(perFile); errno != 0 {
		return errno
	}
	return l.FS.Link(from, to)
}

// Symlink makes links that stay in the folder, and no others.
func (l *limited) Symlink(target, name string) sys.Errno {
	if path.IsAbs(target) || !filepath.IsLocal(path.Join(path.Dir(name), target)) {
		return sys.EPERM
	}
	if errno := l.count.take(perFile); errno != 0 {
		return errno
	}
	return l.FS.Symlink(target, name)
}

// limitedFile is a file whose growth is counted.
type limitedFile struct {
	sys.File
	count *count
}

// grow counts what a write to end makes the file longer.
func (f *limitedFile) grow(end int64) sys.Errno {
	st, errno := f.Stat()
	if errno != 0 || end <= st.Size {
		return errno
	}
	return f.count.take(end - st.Size)
}

func (f *limitedFile) Write(b []byte) (int, sys.Errno) {
	// Where it goes depends on O_APPEND and the offset: at most to the end.
	if errno := f.count.take(int64(len(b))); errno != 0 {
		return 0, errno
	}
	return f.File.Write(b)
}

func (f *limitedFile) Pwrite(b []byte, off int64) (int, sys.Errno) {
	if errno := f.grow(off + int64(len(b))); errno != 0 {
		return 0, errno
	}
	return f.File.Pwrite(b, off)
}

func (f *limitedFile) Truncate(size int64) sys.Errno {
	if errno := f.grow(size); errno != 0 {
		return errno
	}
	return f.File.Truncate(size)
}
