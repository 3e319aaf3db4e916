package oci

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/wisp-serving/wisp/runtime/api"
)

// StoreConfig says where a Store keeps its files and what it takes.
type StoreConfig struct {
	// Dir is the Store's own folder. One Store at a time may use it.
	Dir string
	// ModuleSize bounds a module, and an image's layers together, in bytes.
	ModuleSize int64
	// Budget is how many bytes images may take on disk before those that nobody
	// uses are removed, the longest unused first. What is in use may exceed it.
	Budget int64
	// InsecureRegistries are registry hosts (host or host:port) reached by
	// plain HTTP. Loopback registries always are.
	InsecureRegistries []string
	// RegistryCA is the path of a PEM file with the authorities of registries that
	// the system doesn't know; empty for none.
	RegistryCA string
}

// Store pulls images and keeps their modules on disk. It is safe for concurrent
// use.
type Store struct {
	dir        string
	moduleSize int64
	budget     int64
	insecure   []string
	transport  *http.Transport

	mu     sync.Mutex
	closed bool
	images map[string]*held // by digest: what is on disk
	pulls  map[string]*pull // by repository@digest
	joined sync.WaitGroup   // the goroutines of pulls
}

// NewStore opens the store in cfg.Dir, making it if it isn't there.
func NewStore(cfg StoreConfig) (*Store, error) {
	if cfg.ModuleSize <= 0 {
		return nil, fmt.Errorf("module size = %d, must be above 0", cfg.ModuleSize)
	}
	if cfg.Budget <= 0 {
		return nil, fmt.Errorf("image budget = %d, must be above 0", cfg.Budget)
	}
	transport, err := newTransport(cfg.RegistryCA)
	if err != nil {
		return nil, err
	}
	s := &Store{
		dir:        cfg.Dir,
		moduleSize: cfg.ModuleSize,
		budget:     cfg.Budget,
		insecure:   cfg.InsecureRegistries,
		transport:  transport,
		images:     map[string]*held{},
		pulls:      map[string]*pull{},
	}
	// What a killed process left half downloaded.
	if err := os.RemoveAll(s.tmp()); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	for _, dir := range []string{"tmp", "modules", "images", "roots", "tags"} {
		if err := os.MkdirAll(filepath.Join(s.dir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return s, nil
}

// load finds the images on disk. One that can't be read will be pulled again.
func (s *Store) load() error {
	files, err := filepath.Glob(filepath.Join(s.dir, "images", "*", "*.json"))
	if err != nil {
		return err
	}
	for _, file := range files {
		var img Image
		text, err := os.ReadFile(file)
		if err != nil || json.Unmarshal(text, &img) != nil || s.imagePath(img.Digest) != file {
			continue
		}
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		s.images[img.Digest] = &held{image: img, lastUsed: info.ModTime()}
	}
	return nil
}

// Close ends the pulls under way, whose callers get an error, and waits for
// their goroutines. Later pulls fail; modules can still be read.
func (s *Store) Close() {
	s.mu.Lock()
	s.closed = true
	for _, p := range s.pulls {
		p.cancel()
	}
	s.mu.Unlock()
	s.joined.Wait()
	s.transport.CloseIdleConnections()
}

// lookup returns the image that the store has under digest. One whose files are
// gone counts as not there.
func (s *Store) lookup(digest string) (Image, bool) {
	s.mu.Lock()
	h := s.images[digest]
	var img Image
	if h != nil {
		img = h.image
	}
	s.mu.Unlock()
	if h == nil {
		return Image{}, false
	}
	for _, m := range img.modules() {
		if info, err := os.Stat(s.modulePath(m.ModuleDigest)); err != nil || info.Size() != m.ModuleSize {
			return Image{}, false
		}
	}
	if img.HasRoot {
		img.Root = s.rootPath(digest)
		if _, err := os.Stat(img.Root); err != nil {
			return Image{}, false
		}
	}
	return img, true
}

// remember writes what img says beside its files, makes room for it, and returns
// it as lookup would.
func (s *Store) remember(img Image) (Image, error) {
	now := time.Now()
	s.mu.Lock()
	h := s.images[img.Digest]
	if h == nil {
		h = &held{}
		s.images[img.Digest] = h
	}
	h.image, h.lastUsed = img, now
	err := s.write(img)
	s.collect(now)
	s.mu.Unlock()
	if err != nil {
		return Image{}, err
	}
	if img.HasRoot {
		img.Root = s.rootPath(img.Digest)
	}
	return img, nil
}

// addModule remembers another module of an image.
func (s *Store) addModule(digest string, m Module) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.images[digest]
	if h == nil {
		return fmt.Errorf("image %s is not in the store any more: pull it again", digest)
	}
	// Not in place: copies of the image have the same map.
	others := maps.Clone(h.image.Others)
	if others == nil {
		others = map[string]Module{}
	}
	others[m.ModulePath] = m
	h.image.Others = others
	return s.write(h.image)
}

// write writes an image's description. s.mu is held.
func (s *Store) write(img Image) error {
	text, err := json.Marshal(img)
	if err != nil {
		return err
	}
	return s.writeFile(s.imagePath(img.Digest), text)
}

func (s *Store) writeFile(to string, text []byte) error {
	file, err := os.CreateTemp(s.tmp(), "file-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) // of no effect once it is in its place
	_, err = file.Write(text)
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	return place(file.Name(), to)
}

// tag remembers which image a tag named last.
func (s *Store) tag(ref name.Reference, digest string) error {
	if known, ok := s.tagged(ref); ok && known == digest {
		return nil
	}
	return s.writeFile(s.tagPath(ref), []byte(digest))
}

// tagged returns the digest that a tag named last.
func (s *Store) tagged(ref name.Reference) (string, bool) {
	digest, err := os.ReadFile(s.tagPath(ref))
	return string(digest), err == nil
}

// Module returns the bytes of the module with the given digest ("sha256:<hex>").
// Bytes that don't match it are removed, so that the next pull brings them
// again. An error is api.ErrImagePull: pulling the image is the remedy.
func (s *Store) Module(digest string) ([]byte, error) {
	content, err := os.ReadFile(s.modulePath(digest))
	if errors.Is(err, os.ErrNotExist) {
		return nil, api.ImagePull(fmt.Errorf("module %s is not in the store: pull its image", digest))
	}
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	if sum := sha256.Sum256(content); digestOf(sum[:]) != digest {
		return nil, api.ImagePull(errors.Join(
			fmt.Errorf("module %s is damaged on disk: pull its image again", digest),
			os.Remove(s.modulePath(digest))))
	}
	return content, nil
}

func (s *Store) tmp() string { return filepath.Join(s.dir, "tmp") }

func (s *Store) imagePath(digest string) string { return s.path("images", digest) + ".json" }

func (s *Store) rootPath(digest string) string { return s.path("roots", digest) }

func (s *Store) modulePath(digest string) string { return s.path("modules", digest) }

// tagPath returns the file of a tag, whose name could be anything.
func (s *Store) tagPath(ref name.Reference) string {
	sum := sha256.Sum256([]byte(ref.Name()))
	return s.path("tags", digestOf(sum[:]))
}

// path returns the file or folder of a digest. Only what has the form of a
// digest names one in the store.
func (s *Store) path(kind, digest string) string {
	hash, err := v1.NewHash(digest)
	if err != nil {
		return filepath.Join(s.dir, kind, "no such digest")
	}
	return filepath.Join(s.dir, kind, hash.Algorithm, hash.Hex)
}

func digestOf(sum []byte) string { return "sha256:" + hex.EncodeToString(sum) }

// place moves a whole file to its final path. The contents need no sync before
// it: whatever a crash leaves there is checked when it is read.
func place(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// incoming is a module on its way into the store.
type incoming struct {
	store *Store
	file  *os.File
	hash  hash.Hash
	size  int64
}

func (s *Store) create() (*incoming, error) {
	file, err := os.CreateTemp(s.tmp(), "module-")
	if err != nil {
		return nil, err
	}
	return &incoming{store: s, file: file, hash: sha256.New()}, nil
}

// fill takes the module's bytes. It refuses what isn't a core module with a
// *contentError.
func (in *incoming) fill(module io.Reader) error {
	head := make([]byte, headerSize)
	n, err := io.ReadFull(module, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	if err := checkHeader(head[:n]); err != nil {
		return &contentError{err}
	}
	out := io.MultiWriter(in.file, in.hash)
	if _, err := out.Write(head); err != nil {
		return err
	}
	rest, err := io.Copy(out, module)
	in.size = int64(n) + rest
	return err
}

// keep moves the module into its place and returns its digest and size.
func (in *incoming) keep() (string, int64, error) {
	digest := digestOf(in.hash.Sum(nil))
	if err := in.file.Close(); err != nil {
		return "", 0, err
	}
	return digest, in.size, place(in.file.Name(), in.store.modulePath(digest))
}

// discard removes what keep didn't move.
func (in *incoming) discard() {
	in.file.Close()
	os.Remove(in.file.Name())
}
