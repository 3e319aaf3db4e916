package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
)

// OCI's names for "deleted" in a layer; see image-spec/layer.md, "Whiteouts".
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// maxEntries bounds the files of an image, which cost an inode each whatever
// their size.
const maxEntries = 64 << 10

// unpacker lays an image's layers over one another in a folder, the lowest
// first. Whatever a layer says, nothing outside the folder is read or written:
// os.Root sees to that.
type unpacker struct {
	root    *os.Root
	entries int
}

// openLayer is one layer being unpacked.
type openLayer struct {
	*unpacker
	// written holds what is this layer's own, which its whiteouts don't hide.
	written map[string]bool
}

// apply unpacks the layer in the tar stream r. It reads up to the archive's end,
// not the stream's. What is wrong with the layer is a *contentError; any other
// error means that the stream couldn't be read or the disk couldn't be written.
func (u *unpacker) apply(r io.Reader) error {
	l := openLayer{u, map[string]bool{}}
	archive := tar.NewReader(r)
	for {
		entry, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if errors.Is(err, tar.ErrHeader) {
			return &contentError{err}
		}
		if err != nil {
			return err
		}
		if u.entries++; u.entries > maxEntries {
			return &contentError{fmt.Errorf("more than %d files", maxEntries)}
		}
		name := inside(entry.Name)
		if err := l.entry(name, entry, archive); err != nil {
			return fmt.Errorf("%q: %w", entry.Name, blame(err))
		}
	}
}

// inside returns a path of the image without a leading slash; "." is its root.
func inside(name string) string {
	if name = strings.TrimPrefix(path.Clean("/"+name), "/"); name == "" {
		return "."
	}
	return name
}

func (l openLayer) entry(name string, entry *tar.Header, content io.Reader) error {
	dir, base := path.Split(name)
	if gone, ok := strings.CutPrefix(base, whiteout); ok {
		return l.hide(inside(dir), gone)
	}
	switch entry.Typeflag {
	case tar.TypeDir:
		return l.dir(name)
	case tar.TypeReg:
		return l.file(name, content)
	case tar.TypeSymlink:
		return l.link(name, func() error { return l.root.Symlink(relative(name, entry.Linkname), name) })
	case tar.TypeLink:
		return l.link(name, func() error { return l.root.Link(inside(entry.Linkname), name) })
	default:
		// Devices, pipes and the like, which a guest couldn't open anyway.
		return nil
	}
}

// hide removes what lower layers have at a whiteout: a name, or all that is in
// the folder if the whiteout is opaque.
func (l openLayer) hide(dir, gone string) error {
	if whiteout+gone != opaque {
		return l.removeLower(path.Join(dir, gone))
	}
	names, err := l.list(dir)
	for _, name := range names {
		err = errors.Join(err, l.removeLower(path.Join(dir, name)))
	}
	return err
}

func (l openLayer) list(dir string) ([]string, error) {
	folder, err := l.root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	return folder.Readdirnames(-1)
}

// removeLower removes name unless this layer has put it, or something below it,
// there.
func (l openLayer) removeLower(name string) error {
	if name == "." || l.written[name] {
		return nil
	}
	return l.root.RemoveAll(name)
}

// note remembers that name, and so each folder above it, is this layer's.
func (l openLayer) note(name string) {
	for ; name != "."; name = path.Dir(name) {
		l.written[name] = true
	}
}

func (l openLayer) dir(name string) error {
	l.note(name)
	if info, err := l.root.Lstat(name); err == nil && !info.IsDir() {
		if err := l.root.Remove(name); err != nil {
			return err
		}
	}
	return l.root.MkdirAll(name, 0o700)
}

func (l openLayer) file(name string, content io.Reader) error {
	if err := l.clear(name); err != nil {
		return err
	}
	file, err := l.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Close())
}

func (l openLayer) link(name string, link func() error) error {
	if err := l.clear(name); err != nil {
		return err
	}
	return link()
}

// clear makes room for name, which may be there already.
func (l openLayer) clear(name string) error {
	l.note(name)
	if name == "." {
		return &contentError{errors.New("the root is not a folder")}
	}
	if err := l.root.RemoveAll(name); err != nil {
		return err
	}
	return l.root.MkdirAll(path.Dir(name), 0o700)
}

// relative returns target, to which the symbolic link at name points, as seen
// from the link's folder: the image's root isn't the machine's.
func relative(name, target string) string {
	if !path.IsAbs(target) {
		return target
	}
	up := strings.Repeat("../", strings.Count(name, "/"))
	return up + inside(target)
}

// blame makes an error that the layer has caused a *contentError: a folder that
// is a file, a link that leads out. Others of the file system are the machine's.
func blame(err error) error {
	var (
		broken *contentError
		at     *fs.PathError
		link   *os.LinkError
	)
	if errors.As(err, &broken) || !errors.As(err, &at) && !errors.As(err, &link) {
		return err
	}
	for _, machine := range []error{
		syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EMFILE, syscall.ENFILE, syscall.EROFS, syscall.ENOMEM,
	} {
		if errors.Is(err, machine) {
			return err
		}
	}
	return &contentError{err}
}

// contentError is what is wrong with an image's content, as opposed to what
// went wrong while it was fetched.
type contentError struct{ err error }

func (e *contentError) Error() string { return e.err.Error() }
func (e *contentError) Unwrap() error { return e.err }

// bounded reads from r and gives a *contentError instead of the byte after the
// left ones.
type bounded struct {
	r     io.Reader
	left  int64
	limit int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.r.Read(p)
	if int64(n) > b.left {
		n, b.left = int(b.left), 0
		return n, &contentError{fmt.Errorf("unpacks to more than guest.moduleSize = %d bytes", b.limit)}
	}
	b.left -= int64(n)
	return n, err
}
