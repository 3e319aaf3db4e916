package oci

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// PushConfig says what Push makes and where it goes.
type PushConfig struct {
	// Reference is where the image goes: registry/repository:tag.
	Reference string
	// Module is the bytes of a core wasm module.
	Module []byte
	// FileName is the module's name in the image, at its root, and its ENTRYPOINT; a
	// plain file name.
	FileName string
	// Entrypoint, unless empty, is the module's path in the image instead.
	Entrypoint string
	// Args are the image's CMD: what follows the module's name in its arguments
	// unless the container says otherwise.
	Args []string
	// Files lie in the image beside the module.
	Files []File
	// Labels become the image's labels; of an artifact, its annotations.
	Labels map[string]string
	// Artifact makes a Wasm OCI artifact instead of an image: the module is the one
	// layer, so that there are neither Args nor Files.
	Artifact bool
	// InsecureRegistries are registry hosts (host or host:port) reached by
	// plain HTTP. Loopback registries always are.
	InsecureRegistries []string
}

// File is a file of an image.
type File struct {
	// Path is where it lies in the image, from its root.
	Path    string
	Content []byte
}

// Push builds the image of cfg and pushes it with the user's own registry
// credentials (~/.docker/config.json, its helpers, and the like). It returns the
// image's repository@digest.
func Push(ctx context.Context, cfg PushConfig) (string, error) {
	digest, err := push(ctx, cfg)
	if err != nil {
		return "", fmt.Errorf("push %s: %w", cfg.Reference, err)
	}
	return digest, nil
}

func push(ctx context.Context, cfg PushConfig) (string, error) {
	ref, err := parseReference(cfg.Reference, cfg.InsecureRegistries)
	if err != nil {
		return "", err
	}
	image, err := Build(cfg)
	if err != nil {
		return "", err
	}
	digest, err := image.Digest()
	if err != nil {
		return "", fmt.Errorf("build image: %w", err)
	}
	transport, err := newTransport("")
	if err != nil {
		return "", err
	}
	defer transport.CloseIdleConnections()
	err = remote.Write(ref, image,
		remote.WithContext(ctx), remote.WithTransport(transport), remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if err != nil {
		return "", err
	}
	return ref.Context().Digest(digest.String()).String(), nil
}

// Build returns the image that Push pushes: FROM scratch, for platform
// wasip1/wasm, or a Wasm OCI artifact. It looks at no more of the module than its
// frame. The same cfg always gives the same digest, whatever its Reference.
func Build(cfg PushConfig) (v1.Image, error) {
	if !isFileName(cfg.FileName) {
		return nil, fmt.Errorf("file name = %q, must be a plain file name", cfg.FileName)
	}
	if err := CheckModule(cfg.Module); err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.FileName, err)
	}
	make := buildImage
	if cfg.Artifact {
		make = buildArtifact
	}
	image, err := make(cfg)
	if err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}
	return image, nil
}

func isFileName(name string) bool {
	return name != "" && path.Base(name) == name && name != ".." && name != "."
}

// buildImage makes an image. Everything that could differ between two runs, times
// above all, is left at zero.
func buildImage(cfg PushConfig) (v1.Image, error) {
	files, err := cfg.files()
	if err != nil {
		return nil, err
	}
	archive, err := pack(files)
	if err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil }
	layer, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		OS:           "wasip1",
		Architecture: "wasm",
		Config:       v1.Config{Entrypoint: []string{cmp.Or(cfg.Entrypoint, cfg.FileName)}, Cmd: cfg.Args, Labels: cfg.Labels},
		RootFS:       v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(image, layer)
}

// files returns what is in the image, the module first. Paths are those of the
// archive: without a leading slash.
func (cfg PushConfig) files() ([]File, error) {
	module := modulePath(cmp.Or(cfg.Entrypoint, cfg.FileName), "")
	if module == "" {
		return nil, fmt.Errorf("entrypoint = %q, must be the path of a file", cfg.Entrypoint)
	}
	files := []File{{Path: module, Content: cfg.Module}}
	taken := map[string]bool{module: true}
	for _, f := range cfg.Files {
		name := strings.TrimPrefix(path.Clean("/"+f.Path), "/")
		switch {
		case name == "":
			return nil, fmt.Errorf("file path = %q, must be the path of a file", f.Path)
		case taken[name]:
			return nil, fmt.Errorf("file path = %q, must not be there already", f.Path)
		case strings.HasPrefix(path.Base(name), ".wh."):
			return nil, fmt.Errorf("file path = %q, must not begin with .wh., which deletes files of layers", f.Path)
		}
		taken[name] = true
		files = append(files, File{Path: name, Content: f.Content})
	}
	return files, nil
}

// pack returns a tar archive of files, the first of which is the module.
func pack(files []File) ([]byte, error) {
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	for i, f := range files {
		header := &tar.Header{Name: f.Path, Typeflag: tar.TypeReg, Mode: 0o444, Size: int64(len(f.Content)), ModTime: time.Unix(0, 0)}
		if i == 0 {
			header.Mode = 0o555
		}
		if err := archive.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := archive.Write(f.Content); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
