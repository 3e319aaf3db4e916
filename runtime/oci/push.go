package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"path"
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
	// FileName is the module's name in the image and its ENTRYPOINT; a plain
	// file name.
	FileName string
	// Labels become the image's labels.
	Labels map[string]string
	// InsecureRegistries are registry hosts (host or host:port) reached by
	// plain HTTP. Loopback registries always are.
	InsecureRegistries []string
}

// Push packages a module as an image FROM scratch for platform wasip1/wasm and
// pushes it with the user's own registry credentials (~/.docker/config.json and
// the like). It returns the image's repository@digest. The same module, name
// and labels always give the same digest.
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
	if cfg.FileName == "" || path.Base(cfg.FileName) != cfg.FileName || cfg.FileName == ".." {
		return "", fmt.Errorf("file name = %q, must be a plain file name", cfg.FileName)
	}
	if err := CheckModule(cfg.Module); err != nil {
		return "", fmt.Errorf("%s: %w", cfg.FileName, err)
	}
	image, err := build(cfg)
	if err != nil {
		return "", fmt.Errorf("build image: %w", err)
	}
	digest, err := image.Digest()
	if err != nil {
		return "", fmt.Errorf("build image: %w", err)
	}
	transport := newTransport()
	defer transport.CloseIdleConnections()
	err = remote.Write(ref, image,
		remote.WithContext(ctx), remote.WithTransport(transport), remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if err != nil {
		return "", err
	}
	return ref.Context().Digest(digest.String()).String(), nil
}

// build makes the image. Everything that could differ between two runs, times
// above all, is left at zero.
func build(cfg PushConfig) (v1.Image, error) {
	archive, err := pack(cfg.FileName, cfg.Module)
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
		Config:       v1.Config{Entrypoint: []string{cfg.FileName}, Labels: cfg.Labels},
		RootFS:       v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(image, layer)
}

// pack returns a tar archive of one file.
func pack(name string, content []byte) ([]byte, error) {
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	header := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o555, Size: int64(len(content)), ModTime: time.Unix(0, 0)}
	if err := archive.WriteHeader(header); err != nil {
		return nil, err
	}
	if _, err := archive.Write(content); err != nil {
		return nil, err
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
