package sandbox

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero/experimental/sys"
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
	mounts = append(mounts, s.spec.Mounts...)
	for _, f := range s.spec.Files {
		mounts = withFile(mounts, f)
	}
	return mounts, nil
}

// File is a file that is mounted by itself.
type File struct {
	// At is where the guest sees it: absolute and clean.
	At string
	wasi.File
}

// withFile puts f into the folder that mounts have for it, or into one of its
// own where there is none.
func withFile(mounts []wasi.Mount, f File) []wasi.Mount {
	i := around(mounts, path.Dir(f.At))
	name := strings.TrimPrefix(strings.TrimPrefix(f.At, mounts[i].Path), "/")
	if !hasFolder(mounts[i].FS, path.Dir(name)) {
		mounts = append(mounts, wasi.Mount{Path: path.Dir(f.At), FS: wasi.EmptyFS(), ReadOnly: true})
		i, name = len(mounts)-1, path.Base(f.At)
	}
	if mounts[i].Files == nil {
		mounts[i].Files = make(map[string]wasi.File)
	}
	mounts[i].Files[name] = f.File
	return mounts
}

// around is the index of the mount that has the folder dir in it: of those above
// it, the nearest, and of two at one place the later. The root is above all.
func around(mounts []wasi.Mount, dir string) int {
	nearest := 0
	for i, m := range mounts {
		above := m.Path == rootPath || dir == m.Path || strings.HasPrefix(dir, m.Path+"/")
		if above && len(m.Path) >= len(mounts[nearest].Path) {
			nearest = i
		}
	}
	return nearest
}

// hasFolder is whether there is such a folder in a mount; one in memory begins
// empty.
func hasFolder(in sys.FS, dir string) bool {
	if dir == "." {
		return true
	}
	if in == nil {
		return false
	}
	st, errno := in.Stat(dir)
	return errno == 0 && st.Mode.IsDir()
}

// giveBack gives back what the sandbox holds beside its instances.
func (s *Sandbox) giveBack() {
	for _, leave := range s.leave {
		leave()
	}
	if s.root != nil {
		_ = s.root.Close() // it was only read
	}
}
