package wasi

import (
	"io/fs"

	"github.com/tetratelabs/wazero/experimental/sys"
	wasmsys "github.com/tetratelabs/wazero/sys"
)

// EmptyFS returns a directory with nothing in it. Guests get at least this: in a
// process without any directory Go answers each open with EBADF, where programs
// expect ENOENT.
func EmptyFS() sys.FS { return emptyFS{} }

type emptyFS struct{ sys.UnimplementedFS }

func isRoot(path string) bool { return path == "." || path == "./" || path == "" }

func (emptyFS) OpenFile(path string, flag sys.Oflag, _ fs.FileMode) (sys.File, sys.Errno) {
	switch {
	case !isRoot(path):
		return nil, sys.ENOENT
	case flag&(sys.O_RDWR|sys.O_WRONLY) != 0:
		return nil, sys.EISDIR
	}
	return emptyDir{}, 0
}

func (emptyFS) Stat(path string) (wasmsys.Stat_t, sys.Errno) {
	if !isRoot(path) {
		return wasmsys.Stat_t{}, sys.ENOENT
	}
	return emptyDir{}.Stat()
}

func (e emptyFS) Lstat(path string) (wasmsys.Stat_t, sys.Errno) { return e.Stat(path) }

func (emptyFS) Readlink(path string) (string, sys.Errno) {
	if !isRoot(path) {
		return "", sys.ENOENT
	}
	return "", sys.EINVAL
}

type emptyDir struct{ sys.UnimplementedFile }

func (emptyDir) Dev() (uint64, sys.Errno)              { return 0, 0 }
func (emptyDir) IsDir() (bool, sys.Errno)              { return true, 0 }
func (emptyDir) Ino() (wasmsys.Inode, sys.Errno)       { return 1, 0 }
func (emptyDir) Readdir(int) ([]sys.Dirent, sys.Errno) { return nil, 0 }
func (emptyDir) Sync() sys.Errno                       { return 0 }
func (emptyDir) Datasync() sys.Errno                   { return 0 }
func (emptyDir) Utimens(int64, int64) sys.Errno        { return sys.EROFS }
func (emptyDir) Close() sys.Errno                      { return 0 }

func (emptyDir) Stat() (wasmsys.Stat_t, sys.Errno) {
	return wasmsys.Stat_t{Ino: 1, Mode: fs.ModeDir | 0o555, Nlink: 1}, 0
}
