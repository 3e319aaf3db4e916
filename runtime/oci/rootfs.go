package oci

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// tarOverhead is what layers may unpack to beyond their files: tar's headers and
// padding.
const tarOverhead = 1 << 20

// fetchImage downloads an image's layers, unpacks them, and takes the module
// that its config names. Its other files stay in the store, for guests to read.
func (s *Store) fetchImage(digest string, image v1.Image, manifest *v1.Manifest, config *v1.ConfigFile) (Image, error) {
	img, err := describe(config.Config)
	if err != nil {
		return Image{}, &contentError{err}
	}
	dir, err := os.MkdirTemp(s.tmp(), "root-")
	if err != nil {
		return Image{}, err
	}
	defer os.RemoveAll(dir) // of no effect once it is in its place
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Image{}, err
	}
	defer root.Close()
	unpack := &unpacker{root: root}
	budget := s.moduleSize + tarOverhead
	for _, layer := range manifest.Layers {
		img.Size += layer.Size
		if budget, err = s.fetchLayer(image, layer.Digest, unpack, budget); err != nil {
			return Image{}, fmt.Errorf("layer %s: %w", layer.Digest, err)
		}
	}
	module, err := s.takeFromRoot(root, img.ModulePath)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Image{}, notFound(config)
	case err != nil:
		return Image{}, fmt.Errorf("entrypoint %q: %w", img.ModulePath, err)
	}
	img.Module = module
	if img.HasRoot, err = hasOthers(dir, img.ModulePath); err != nil || !img.HasRoot {
		return img, err
	}
	return img, s.placeRoot(dir, digest)
}

// fetchLayer downloads a layer, checks it against its digest and unpacks it. It
// returns what is left of the budget.
func (s *Store) fetchLayer(image v1.Image, digest v1.Hash, unpack *unpacker, budget int64) (int64, error) {
	blob, err := image.LayerByDigest(digest)
	if err != nil {
		return budget, err
	}
	content, err := blob.Uncompressed()
	if err != nil {
		return budget, err
	}
	defer content.Close()
	stream := &bounded{r: content, left: budget, limit: s.moduleSize}
	err = unpack.apply(stream)
	if broken := new(contentError); err != nil && !errors.As(err, &broken) {
		return budget, err
	}
	// Only the end of the stream proves the digest, so that comes before what
	// the content seemed to be.
	if _, unread := io.Copy(io.Discard, stream); unread != nil {
		return budget, unread
	}
	return stream.left, err
}

func notFound(c *v1.ConfigFile) error {
	argv := append(append([]string{}, c.Config.Entrypoint...), c.Config.Cmd...)
	return &contentError{fmt.Errorf("entrypoint %q not found in image (platform %s/%s)", argv[0], c.OS, c.Architecture)}
}

// takeFromRoot puts the module at name, a path of the image, into the store. If
// there is none, the error is fs.ErrNotExist.
func (s *Store) takeFromRoot(root *os.Root, name string) (Module, error) {
	// A pipe would never open; a guest's path is never more than looked at.
	info, err := root.Stat(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return Module{}, fs.ErrNotExist
		}
		return Module{}, blame(err)
	}
	if !info.Mode().IsRegular() {
		return Module{}, &contentError{errors.New("not a regular file in the image")}
	}
	file, err := root.Open(name)
	if err != nil {
		return Module{}, err
	}
	defer file.Close()
	return s.takeModule(name, file)
}

// takeModule puts a module's bytes into the store. What is no module is a
// *contentError.
func (s *Store) takeModule(name string, content io.Reader) (Module, error) {
	incoming, err := s.create()
	if err != nil {
		return Module{}, err
	}
	defer incoming.discard()
	if err := incoming.fill(&bounded{r: content, left: s.moduleSize, limit: s.moduleSize}); err != nil {
		return Module{}, err
	}
	digest, size, err := incoming.keep()
	return Module{ModuleDigest: digest, ModulePath: name, ModuleSize: size}, err
}

// hasOthers reports whether an unpacked image has anything but its module.
func hasOthers(dir, module string) (bool, error) {
	others := false
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() && path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if inModulePath(name, module) {
				return nil
			}
		} else if name == module && entry.Type().IsRegular() {
			return nil
		}
		others = true
		return filepath.SkipAll
	})
	return others, err
}

// inModulePath reports whether the folder is one in which the module lies.
func inModulePath(folder, module string) bool {
	return len(module) > len(folder) && module[:len(folder)] == folder && module[len(folder)] == '/'
}

// placeRoot moves an unpacked image to its final path. What is there is of the
// same digest, from a pull that didn't come to its end or from another
// repository's; guests that read it keep what they have open.
func (s *Store) placeRoot(dir, digest string) error {
	to := s.rootPath(digest)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	err := os.Rename(dir, to)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
		return nil
	}
	return err
}
