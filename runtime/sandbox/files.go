package sandbox

import (
	"fmt"
	"os"
	"slices"

	"github.com/tetratelabs/wazero/experimental/sysfs"

	"github.com/wisp-serving/wisp/runtime/wasi"
)

const (
	rootPath = "/"
	tmpPath  = "/tmp"
)

// mounts returns what guests find open: their root, a /tmp of their own, and
// what is mounted in it. Whatever links the image has, an os.Root leads nowhere
// else.
func (s *Sandbox) mounts() ([]wasi.Mount, error) {
	root := wasi.Mount{Path: rootPath, FS: wasi.EmptyFS(), ReadOnly: true}
	if s.spec.Root != "" {
		var err error
		if s.root, err = os.OpenRoot(s.spec.Root); err != nil {
			return nil, fmt.Errorf("open the image's files: %w", err)
		}
		root.FS = &sysfs.AdaptFS{FS: s.root.FS()}
	}
	mounts := []wasi.Mount{root}
	if !slices.ContainsFunc(s.spec.Mounts, func(m wasi.Mount) bool { return m.Path == tmpPath }) {
		mounts = append(mounts, wasi.Mount{Path: tmpPath})
	}
	return append(mounts, s.spec.Mounts...), nil
}

func (s *Sandbox) closeRoot() {
	if s.root != nil {
		_ = s.root.Close() // it was only read
	}
}
