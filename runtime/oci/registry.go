package oci

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/wisp-serving/wisp/runtime/api"
)

const (
	// maxManifest bounds a manifest or index; registries are only asked to take
	// 4 MiB (distribution-spec, "Pushing Manifests").
	maxManifest = 4 << 20
	// maxConfig bounds an image's config.
	maxConfig = 1 << 20
	// maxLayers is what container runtimes take.
	maxLayers = 128
)

// parseReference reads a reference as docker does: no registry means Docker
// Hub, no tag means latest.
func parseReference(ref string, insecure []string) (name.Reference, error) {
	parsed, err := name.ParseReference(ref)
	if err == nil && slices.Contains(insecure, parsed.Context().RegistryStr()) {
		parsed, err = name.ParseReference(ref, name.Insecure)
	}
	if err != nil {
		return nil, api.Unusable(fmt.Errorf("%w: %w", api.ErrImageName, err))
	}
	return parsed, nil
}

// newTransport returns the connections of one Store or one Push. authorities is
// the path of a PEM file with those that are trusted beside the system's, empty for
// none.
func newTransport(authorities string) (*http.Transport, error) {
	t := remote.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = 30 * time.Second
	if authorities == "" {
		return t, nil
	}
	text, err := os.ReadFile(authorities)
	if err != nil {
		return nil, fmt.Errorf("read the registries' authorities: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("read the system's authorities: %w", err)
	}
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("read the registries' authorities: %s has no certificate in PEM", authorities)
	}
	t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	return t, nil
}

// boundManifests lets no response to a request for a manifest, redirected or not,
// be longer than maxManifest. go-containerregistry would read 100 MiB.
type boundManifests struct{ http.RoundTripper }

func (b boundManifests) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	for r.Response != nil && r.Response.Request != nil {
		r = r.Response.Request // which was answered with a redirect to this one
	}
	if err == nil && strings.Contains(r.URL.Path, "/manifests/") {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxManifest)
	}
	return resp, err
}

// options are those of each call to a registry on behalf of one pull. Without
// its pod's credentials it is anonymous: whatever the node's own user has isn't
// its pods' to use.
func (s *Store) options(ctx context.Context, keys authn.Keychain) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx),
		remote.WithTransport(boundManifests{s.transport}),
		remote.WithAuthFromKeychain(keys),
		remote.WithRetryBackoff(remote.Backoff{Duration: 100 * time.Millisecond, Factor: 3, Jitter: 0.1, Steps: 3}),
	}
}

// resolve returns the digest that ref names now. Its registry is asked for a
// digest too: whether these credentials may have it.
func (s *Store) resolve(ctx context.Context, ref name.Reference, keys authn.Keychain) (v1.Hash, error) {
	head, err := remote.Head(ref, s.options(ctx, keys)...)
	if err == nil {
		return head.Digest, nil
	}
	// HEAD is cheap, but some registries answer it without a digest, and none
	// can give a reason with it.
	whole, err := remote.Get(ref, s.options(ctx, keys)...)
	if err != nil {
		return v1.Hash{}, err
	}
	return whole.Digest, nil
}

// fetch downloads what ref names into the store.
func (s *Store) fetch(ctx context.Context, ref name.Digest, keys authn.Keychain) (Image, error) {
	desc, err := remote.Get(ref, s.options(ctx, keys)...)
	if err != nil {
		return Image{}, err
	}
	image, err := wasmImage(desc)
	if err != nil {
		return Image{}, err
	}
	return s.take(ref.DigestStr(), image)
}

// take brings what image holds into the store, which is to know it by digest.
func (s *Store) take(digest string, image v1.Image) (Image, error) {
	manifest, err := image.Manifest()
	if err != nil {
		return Image{}, &contentError{err}
	}
	module, isArtifact, err := moduleLayer(manifest)
	if err == nil {
		err = s.checkManifest(manifest, isArtifact)
	}
	if err != nil {
		return Image{}, &contentError{err}
	}
	var img Image
	if isArtifact {
		img, err = s.fetchArtifact(image, manifest, module)
	} else {
		img, err = s.fetchLayers(digest, image, manifest)
	}
	img.Digest = digest
	return img, err
}

func (s *Store) fetchLayers(digest string, image v1.Image, manifest *v1.Manifest) (Image, error) {
	raw, err := image.RawConfigFile()
	if err != nil {
		return Image{}, fmt.Errorf("config: %w", err)
	}
	config, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return Image{}, &contentError{fmt.Errorf("config: %w", err)}
	}
	return s.fetchImage(digest, image, manifest, config)
}

// wasmImage returns the image that desc is, or the wasm one of the index that
// it is.
func wasmImage(desc *remote.Descriptor) (v1.Image, error) {
	switch {
	case desc.MediaType.IsImage():
		return desc.Image()
	case desc.MediaType.IsIndex():
		index, err := desc.ImageIndex()
		if err != nil {
			return nil, err
		}
		manifest, err := index.IndexManifest()
		if err != nil {
			return nil, &contentError{err}
		}
		entry, err := selectEntry(manifest.Manifests)
		if err != nil {
			return nil, &contentError{err}
		}
		return index.Image(entry.Digest)
	default:
		return nil, &contentError{fmt.Errorf("not a wasm image: media type %q", desc.MediaType)}
	}
}

// selectEntry returns the entry of an index that is for wasm, or its only one.
func selectEntry(entries []v1.Descriptor) (v1.Descriptor, error) {
	platforms := make([]string, 0, len(entries))
	for _, e := range entries {
		if !e.MediaType.IsImage() {
			continue
		}
		if p := e.Platform; p != nil {
			if p.Architecture == "wasm" && (p.OS == "wasip1" || p.OS == "wasi") {
				return e, nil
			}
			platforms = append(platforms, p.OS+"/"+p.Architecture)
		}
	}
	if len(entries) == 1 && entries[0].MediaType.IsImage() {
		return entries[0], nil
	}
	return v1.Descriptor{}, fmt.Errorf("not a wasm image: no entry of %d is for wasip1/wasm or wasi/wasm, found %s",
		len(entries), strings.Join(platforms, ", "))
}

// checkManifest checks all that the manifest says about sizes and types before
// any of it is fetched. Sizes are what the fetched bytes are held to later.
func (s *Store) checkManifest(m *v1.Manifest, isArtifact bool) error {
	if size := m.Config.Size; size < 0 || size > maxConfig {
		return fmt.Errorf("config of %d bytes, must be at most %d", size, maxConfig)
	}
	if n := len(m.Layers); n == 0 || n > maxLayers {
		return fmt.Errorf("not a wasm image: %d layers, must be 1 to %d", n, maxLayers)
	}
	left := s.moduleSize
	for _, layer := range m.Layers {
		if !isArtifact && !isFileSystem(layer.MediaType) {
			return fmt.Errorf("not a wasm image: layer media type %q", layer.MediaType)
		}
		if layer.Size < 0 || layer.Size > left {
			return fmt.Errorf("layer %s of %d bytes: layers must be at most guest.moduleSize = %d bytes together", layer.Digest, layer.Size, s.moduleSize)
		}
		left -= layer.Size
	}
	return nil
}

// isFileSystem reports whether a layer of type t is a tar archive that its own
// registry holds. Foreign layers name other servers to fetch from.
func isFileSystem(t types.MediaType) bool {
	switch t {
	case types.DockerLayer, types.DockerUncompressedLayer, types.OCILayer, types.OCIUncompressedLayer, types.OCILayerZStd:
		return true
	}
	return false
}
