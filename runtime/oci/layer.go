package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// presence is what one layer says about a path.
type presence int

const (
	// absent: nothing; a lower layer may have it.
	absent presence = iota
	// present: the layer holds the file.
	present
	// removed: the layer hides what lower layers have there.
	removed
)

// OCI's names for "deleted" in a layer; see image-spec/layer.md, "Whiteouts".
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// findFile looks for the regular file at name, a clean path without a leading
// slash, in a layer's tar stream, and hands its bytes to keep. It reads up to
// the archive's end, not the stream's.
//
// An error of keep, or of an entry that can't be used, is a *contentError; any
// other error means that the stream couldn't be read.
func findFile(layer io.Reader, name string, keep func(io.Reader) error) (presence, error) {
	var found presence
	archive := tar.NewReader(layer)
	for {
		entry, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if errors.Is(err, tar.ErrHeader) {
			return absent, &contentError{err}
		}
		if err != nil {
			return absent, err
		}
		at := strings.TrimPrefix(path.Clean("/"+entry.Name), "/")
		switch {
		case at != name:
			if found == absent && hides(at, name) {
				found = removed
			}
		case found == present:
			return absent, &contentError{fmt.Errorf("%q is in one layer twice", name)}
		case entry.Typeflag != tar.TypeReg:
			return absent, &contentError{fmt.Errorf("%q is not a regular file in the image (tar type %q)", name, entry.Typeflag)}
		default:
			if err := keep(archive); err != nil {
				return absent, err
			}
			found = present
		}
	}
}

// hides reports whether the entry at is a whiteout for name or for a folder
// above it.
func hides(at, name string) bool {
	dir, base := path.Split(at)
	if base == opaque {
		return strings.HasPrefix(name, dir)
	}
	gone, ok := strings.CutPrefix(base, whiteout)
	if !ok {
		return false
	}
	gone = dir + gone
	return name == gone || strings.HasPrefix(name, gone+"/")
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
