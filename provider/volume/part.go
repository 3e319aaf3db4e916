package volume

import (
	"io/fs"
	"path"
	"strings"

	"github.com/tetratelabs/wazero/experimental/sys"
	wasmsys "github.com/tetratelabs/wazero/sys"
)

// part returns the folder sub of the volume, which it makes if need be, or the
// whole volume.
func (m *inMemory) part(sub string) (sys.FS, error) {
	if sub == "" {
		return &m.fs, nil
	}
	folder := ""
	for name := range strings.SplitSeq(sub, "/") {
		folder = path.Join(folder, name)
		if errno := m.fs.Mkdir(folder, 0o700); errno != 0 && errno != sys.EEXIST {
			return nil, &fs.PathError{Op: "mkdir", Path: folder, Err: errno}
		}
	}
	return part{&m.fs, sub}, nil
}

// part is a folder of a file system that lets no path and no link lead up.
type part struct {
	sys.FS
	folder string
}

// in returns the whole path of one below the part. A slash at its end says that
// it must be a folder.
func (p part) in(name string) string {
	whole := path.Join(p.folder, name)
	if strings.HasSuffix(name, "/") {
		whole += "/"
	}
	return whole
}

func (p part) OpenFile(name string, flag sys.Oflag, perm fs.FileMode) (sys.File, sys.Errno) {
	return p.FS.OpenFile(p.in(name), flag, perm)
}

func (p part) Lstat(name string) (wasmsys.Stat_t, sys.Errno) { return p.FS.Lstat(p.in(name)) }
func (p part) Stat(name string) (wasmsys.Stat_t, sys.Errno)  { return p.FS.Stat(p.in(name)) }
func (p part) Mkdir(name string, perm fs.FileMode) sys.Errno { return p.FS.Mkdir(p.in(name), perm) }
func (p part) Chmod(name string, perm fs.FileMode) sys.Errno { return p.FS.Chmod(p.in(name), perm) }
func (p part) Rename(from, to string) sys.Errno              { return p.FS.Rename(p.in(from), p.in(to)) }
func (p part) Rmdir(name string) sys.Errno                   { return p.FS.Rmdir(p.in(name)) }
func (p part) Unlink(name string) sys.Errno                  { return p.FS.Unlink(p.in(name)) }
func (p part) Link(from, to string) sys.Errno                { return p.FS.Link(p.in(from), p.in(to)) }
func (p part) Symlink(target, name string) sys.Errno         { return p.FS.Symlink(target, p.in(name)) }
func (p part) Readlink(name string) (string, sys.Errno)      { return p.FS.Readlink(p.in(name)) }
func (p part) Utimens(name string, atime, mtime int64) sys.Errno {
	return p.FS.Utimens(p.in(name), atime, mtime)
}
