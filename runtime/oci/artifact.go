package oci

import (
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Media types of Wasm OCI artifacts: a module as a layer of its own, without a
// file system around it. The first two are the CNCF's
// (https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/), the
// last is what wasm-to-oci and Istio made before.
const (
	wasmConfig      types.MediaType = "application/vnd.wasm.config.v0+json"
	wasmLayer       types.MediaType = "application/wasm"
	wasmContentType types.MediaType = "application/vnd.wasm.content.layer.v1+wasm"
)

// titleAnnotation names a layer's file (OCI image-spec, annotations.md).
const titleAnnotation = "org.opencontainers.image.title"

// moduleLayer returns the layer that is a module, if the manifest is of a Wasm
// OCI artifact.
func moduleLayer(m *v1.Manifest) (v1.Descriptor, bool, error) {
	var found []v1.Descriptor
	for _, layer := range m.Layers {
		if layer.MediaType == wasmLayer || layer.MediaType == wasmContentType {
			found = append(found, layer)
		}
	}
	switch {
	case len(found) == 0 && m.Config.MediaType == wasmConfig:
		return v1.Descriptor{}, false, fmt.Errorf("not a wasm artifact: none of %d layers has media type %q", len(m.Layers), wasmLayer)
	case len(found) == 0:
		return v1.Descriptor{}, false, nil
	case len(found) > 1:
		return v1.Descriptor{}, false, fmt.Errorf("a wasm artifact with %d modules, must have one", len(found))
	}
	return found[0], true, nil
}

// fetchArtifact downloads the module of an artifact.
func (s *Store) fetchArtifact(image v1.Image, manifest *v1.Manifest, layer v1.Descriptor) (Image, error) {
	img := Image{Labels: manifest.Annotations, Size: layer.Size}
	img.ModulePath = "module.wasm"
	if name := path.Base(layer.Annotations[titleAnnotation]); strings.Trim(name, "./") != "" {
		img.ModulePath = name
	}
	blob, err := image.LayerByDigest(layer.Digest)
	if err != nil {
		return Image{}, err
	}
	content, err := blob.Compressed()
	if err != nil {
		return Image{}, err
	}
	defer content.Close()
	img.Module, err = s.takeModule(img.ModulePath, content)
	if broken := new(contentError); errors.As(err, &broken) {
		// Only the end of the stream proves the digest, so that comes first.
		if _, unread := io.Copy(io.Discard, content); unread != nil {
			return Image{}, unread
		}
	}
	return img, err
}
