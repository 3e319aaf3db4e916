// Package volume makes a pod's volumes: what is in them, and the file systems in
// which its guests see it.
//
// What comes from the API, ConfigMaps, Secrets, tokens, the downward API, is held
// in memory as a [Tree] that changes as a whole, and never touches the disk.
// emptyDir is a folder on the node's disk with a limit on what it may hold, or one
// in memory, which counts as that of the containers that mount it.
package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/experimental/sysfs"
	corev1 "k8s.io/api/core/v1"

	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/runtime/memfs"
	"github.com/wisp-serving/wisp/runtime/memory"
)

// Config is what a Set needs; all fields are required.
type Config struct {
	// Dir is where the pod's folders are.
	Dir string
	// EmptyDirSize is what an emptyDir without a limit of its own may hold, in
	// bytes.
	EmptyDirSize int64
	Source       Source
	// Pod returns the pod as it is now, Facts what the node knows of it.
	Pod   func() *corev1.Pod
	Facts func() podspec.Facts
}

// Set is one pod's volumes. It is safe for concurrent use.
type Set struct {
	cfg     Config
	volumes map[string]*held
}

// held is one volume. One of tree, dir and memory is set.
type held struct {
	spec   corev1.Volume
	tree   *Tree
	dir    *limited
	path   string // of dir
	memory *inMemory
}

// inMemory is a file system in memory, and what that takes.
type inMemory struct {
	fs   memfs.FS
	room *memory.Common
}

// New returns the volumes of a pod. Those that come from the API are read now,
// but for the implicit token's, which is read when a guest first looks: few do.
// An error names the volume that can't be made yet.
func New(ctx context.Context, cfg Config, specs map[string]corev1.Volume) (*Set, error) {
	s := &Set{cfg: cfg, volumes: make(map[string]*held, len(specs))}
	var errs []error
	for name, spec := range specs {
		v := &held{spec: spec}
		s.volumes[name] = v
		var err error
		switch {
		case spec.EmptyDir != nil && spec.EmptyDir.Medium == corev1.StorageMediumMemory:
			v.memory = newInMemory(spec)
		case spec.EmptyDir != nil:
			err = s.makeDir(v)
		case implicit(spec):
			v.tree = NewTree(func() (map[string][]byte, error) { return s.read(context.WithoutCancel(ctx), cfg.Source, v) })
		default:
			v.tree = NewTree(nil)
			var content map[string][]byte
			if content, err = s.read(ctx, cfg.Source, v); err == nil {
				v.tree.Set(content)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("volume %q: %w", name, err))
		}
	}
	return s, errors.Join(errs...)
}

// implicit is whether a volume is the one that the ServiceAccount admission adds
// to each pod.
func implicit(spec corev1.Volume) bool {
	return spec.Projected != nil && strings.HasPrefix(spec.Name, "kube-api-access-")
}

func (s *Set) makeDir(v *held) error {
	v.path = filepath.Join(s.cfg.Dir, v.spec.Name)
	if err := os.MkdirAll(v.path, 0o700); err != nil {
		return err
	}
	v.dir = newLimited(v.path, sizeOf(v.spec, s.cfg.EmptyDirSize))
	return nil
}

// sizeOf is what an emptyDir may hold, usual if it doesn't say.
func sizeOf(spec corev1.Volume, usual int64) int64 {
	if size := spec.EmptyDir.SizeLimit; size != nil && size.Sign() > 0 {
		return size.Value()
	}
	return usual
}

// newInMemory returns an empty volume in memory. Unless it has a limit of its own,
// those of the containers hold.
func newInMemory(spec corev1.Volume) *inMemory {
	m := &inMemory{room: memory.NewCommon(sizeOf(spec, math.MaxInt64))}
	m.fs.Init(m.room)
	return m
}

// read makes the content of a volume anew.
func (s *Set) read(ctx context.Context, source Source, v *held) (map[string][]byte, error) {
	r := reader{ctx: ctx, pod: s.cfg.Pod(), facts: s.cfg.Facts(), source: source, files: map[string][]byte{}}
	if err := r.volume(v.spec); err != nil {
		return nil, err
	}
	return r.files, nil
}

// Refresh reads again from source what may have changed in the API, and tokens
// that are due. What can't be read stays as it was.
func (s *Set) Refresh(ctx context.Context, source Source) error {
	var errs []error
	for name, v := range s.volumes {
		if v.tree == nil || !v.tree.Read() {
			continue
		}
		content, err := s.read(ctx, source, v)
		if err != nil {
			errs = append(errs, fmt.Errorf("volume %q: %w", name, err))
			continue
		}
		v.tree.Set(content)
	}
	return errors.Join(errs...)
}

// Changes is whether there is anything that Refresh would read.
func (s *Set) Changes() bool {
	for _, v := range s.volumes {
		if v.tree != nil && v.tree.Read() {
			return true
		}
	}
	return false
}

// Mount is a volume, or a part of it, in a guest's file system.
type Mount struct {
	Path string
	FS   sys.FS
	// File, unless empty, is the path of a file of FS that is mounted alone.
	File     string
	ReadOnly bool
	// Memory is what FS takes of its containers' memory; nil for one that takes none.
	Memory *memory.Common
}

// Mounts returns a container's mounts. expand replaces the references of
// subPathExpr.
func (s *Set) Mounts(c *corev1.Container, expand func(string) string) ([]Mount, error) {
	mounts := make([]Mount, 0, len(c.VolumeMounts))
	for _, m := range c.VolumeMounts {
		v, ok := s.volumes[m.Name]
		if !ok {
			return nil, fmt.Errorf("volume mount %s: no volume %q", m.MountPath, m.Name)
		}
		sub := m.SubPath
		if m.SubPathExpr != "" {
			sub = expand(m.SubPathExpr)
		}
		if sub != "" && !fs.ValidPath(sub) {
			return nil, fmt.Errorf("volume mount %s: subPath = %q, must be a relative path that leads nowhere up", m.MountPath, sub)
		}
		mount, err := v.mount(path.Clean("/"+m.MountPath), sub)
		if err != nil {
			return nil, fmt.Errorf("volume mount %s: %w", m.MountPath, err)
		}
		mount.ReadOnly = mount.ReadOnly || m.ReadOnly
		mounts = append(mounts, mount)
	}
	return mounts, nil
}

func (v *held) mount(at, sub string) (Mount, error) {
	if v.tree != nil {
		if v.tree.IsFile(sub) {
			return Mount{Path: at, FS: &sysfs.AdaptFS{FS: v.tree}, File: sub, ReadOnly: true}, nil
		}
		if sub == "" {
			return Mount{Path: at, FS: &sysfs.AdaptFS{FS: v.tree}, ReadOnly: true}, nil
		}
		part, err := fs.Sub(v.tree, sub)
		return Mount{Path: at, FS: &sysfs.AdaptFS{FS: part}, ReadOnly: true}, err
	}
	if v.memory != nil {
		part, err := v.memory.part(sub)
		return Mount{Path: at, FS: part, Memory: v.memory.room}, err
	}
	if sub == "" {
		return Mount{Path: at, FS: v.dir}, nil
	}
	// By way of a Root: the guest may have put links into its volume.
	root, err := os.OpenRoot(v.path)
	if err != nil {
		return Mount{}, err
	}
	defer root.Close()
	if err := root.MkdirAll(filepath.FromSlash(sub), 0o700); err != nil {
		return Mount{}, err
	}
	return Mount{Path: at, FS: v.dir.within(sub)}, nil
}
