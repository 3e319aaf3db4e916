package oci

import (
	"errors"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Image is what a pulled image says about its module. It holds no bytes: those
// are in the store, under ModuleDigest and Root.
type Image struct {
	// Reference is repository@digest, which a container's imageID shows.
	Reference string `json:"-"`
	// Cached is whether the image was in the store already.
	Cached bool `json:"-"`
	// Root is the folder with the image's files, read-only by convention, or
	// empty where there is nothing beside the module.
	Root string `json:"-"`

	// Digest is that of the manifest or index which the pulled reference names.
	Digest string `json:"digest"`
	// Size is the bytes of the image in its registry.
	Size int64 `json:"size"`
	Module
	// HasRoot is whether the store holds files beside the module.
	HasRoot bool `json:"hasRoot,omitempty"`
	// Others are modules beside the image's own that were asked for, by path.
	Others map[string]Module `json:"others,omitempty"`
	// Args are the image's own arguments: what follows the module's name in
	// ENTRYPOINT and CMD.
	Args []string `json:"args,omitempty"`
	// Env holds "KEY=value" entries.
	Env []string `json:"env,omitempty"`
	// Labels are the image's labels; of an artifact, its manifest's annotations.
	Labels map[string]string `json:"labels,omitempty"`
	// WorkingDir is the image's working directory; it may be empty.
	WorkingDir string `json:"workingDir,omitempty"`
}

// Module is one module of an image.
type Module struct {
	// ModuleDigest is the sha256 digest of the module's bytes, "sha256:<hex>".
	ModuleDigest string `json:"moduleDigest"`
	// ModulePath is the module's path in the image, without a leading slash.
	ModulePath string `json:"modulePath"`
	// ModuleSize is the module's size in bytes.
	ModuleSize int64 `json:"moduleSize"`
}

// FileName returns the module's file name, which is its guest's argv[0].
func (m Module) FileName() string { return path.Base(m.ModulePath) }

// describe returns the part of an Image that its config decides.
func describe(c v1.Config) (Image, error) {
	argv := append(append([]string{}, c.Entrypoint...), c.Cmd...)
	if len(argv) == 0 {
		return Image{}, errors.New("not a wasm image: neither ENTRYPOINT nor CMD names a module")
	}
	module := modulePath(argv[0], c.WorkingDir)
	if module == "" {
		return Image{}, errors.New("not a wasm image: ENTRYPOINT names no file")
	}
	return Image{
		Module:     Module{ModulePath: module},
		Args:       argv[1:],
		Env:        c.Env,
		Labels:     c.Labels,
		WorkingDir: c.WorkingDir,
	}, nil
}

// modulePath returns the path, without a leading slash, of the file that an
// image's first argument names; empty for the root itself. As with execvp, a
// relative name that has a slash starts at the working directory; one that has
// none would be looked up in $PATH, for which an image FROM scratch has its root.
func modulePath(arg0, workingDir string) string {
	if arg0 == "" {
		return ""
	}
	if strings.Contains(arg0, "/") && !path.IsAbs(arg0) {
		arg0 = path.Join(workingDir, arg0)
	}
	return strings.TrimPrefix(path.Clean("/"+arg0), "/")
}
