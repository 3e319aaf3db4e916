package oci

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
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

// artifactConfig is the config of an artifact, as the CNCF's format has it for a
// core module.
type artifactConfig struct {
	Architecture string   `json:"architecture"`
	OS           string   `json:"os"`
	LayerDigests []string `json:"layerDigests"`
}

// artifact is a Wasm OCI artifact that is being pushed.
type artifact struct {
	layer            v1.Layer
	manifest, config []byte
}

// buildArtifact makes a Wasm OCI artifact.
func buildArtifact(cfg PushConfig) (v1.Image, error) {
	if len(cfg.Args) > 0 || len(cfg.Files) > 0 {
		return nil, errors.New("an artifact holds a module and nothing else: no arguments, no files")
	}
	layer := static.NewLayer(cfg.Module, wasmLayer)
	digest, err := layer.Digest()
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(artifactConfig{Architecture: "wasm", OS: "wasip1", LayerDigests: []string{digest.String()}})
	if err != nil {
		return nil, err
	}
	configDigest, _, err := v1.SHA256(bytes.NewReader(config))
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		Config:        v1.Descriptor{MediaType: wasmConfig, Size: int64(len(config)), Digest: configDigest},
		Layers: []v1.Descriptor{{
			MediaType:   wasmLayer,
			Size:        int64(len(cfg.Module)),
			Digest:      digest,
			Annotations: map[string]string{titleAnnotation: path.Base(cmp.Or(cfg.Entrypoint, cfg.FileName))},
		}},
		Annotations: cfg.Labels,
	})
	if err != nil {
		return nil, err
	}
	return partial.CompressedToImage(artifact{layer: layer, manifest: manifest, config: config})
}

func (a artifact) RawConfigFile() ([]byte, error) { return a.config, nil }

func (a artifact) RawManifest() ([]byte, error) { return a.manifest, nil }

func (a artifact) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

func (a artifact) LayerByDigest(v1.Hash) (partial.CompressedLayer, error) { return a.layer, nil }
