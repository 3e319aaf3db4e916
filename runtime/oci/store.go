package oci

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/wisp-serving/wisp/runtime/api"
)

// StoreConfig says where a Store keeps its files and what it takes.
type StoreConfig struct {
	// Dir is the Store's own folder. One Store at a time may use it.
	Dir string
	// ModuleSize bounds a module, and an image's layers together, in bytes.
	ModuleSize int64
	// InsecureRegistries are registry hosts (host or host:port) reached by
	// plain HTTP. Loopback registries always are.
	InsecureRegistries []string
}

// Store pulls images and keeps their modules on disk. It is safe for concurrent
// use.
type Store struct {
	dir        string
	moduleSize int64
	insecure   []string
	transport  *http.Transport

	mu     sync.Mutex
	closed bool
	pulls  map[string]*pull // by repository@digest
	joined sync.WaitGroup   // the goroutines of pulls
}

// NewStore opens the store in cfg.Dir, making it if it isn't there.
func NewStore(cfg StoreConfig) (*Store, error) {
	if cfg.ModuleSize <= 0 {
		return nil, fmt.Errorf("module size = %d, must be above 0", cfg.ModuleSize)
	}
	s := &Store{
		dir:        cfg.Dir,
		moduleSize: cfg.ModuleSize,
		insecure:   cfg.InsecureRegistries,
		transport:  newTransport(),
		pulls:      map[string]*pull{},
	}
	// What a killed process left half downloaded.
	if err := os.RemoveAll(s.tmp()); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	for _, dir := range []string{s.tmp(), filepath.Join(s.dir, "modules"), filepath.Join(s.dir, "images")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	return s, nil
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

// lookup returns the image that the store has under digest. What it can't read
// or whose module it lacks counts as not there.
func (s *Store) lookup(digest v1.Hash) (Image, bool) {
	var img Image
	text, err := os.ReadFile(s.imagePath(digest))
	if err != nil || json.Unmarshal(text, &img) != nil {
		return Image{}, false
	}
	info, err := os.Stat(s.modulePath(img.ModuleDigest))
	return img, err == nil && info.Size() == img.ModuleSize
}

// remember writes what img says beside its module.
func (s *Store) remember(img Image) error {
	digest, err := v1.NewHash(img.Digest)
	if err != nil {
		return err
	}
	text, err := json.Marshal(img)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(s.tmp(), "image-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) // of no effect once it is in its place
	_, err = file.Write(text)
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	return place(file.Name(), s.imagePath(digest))
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

func (s *Store) imagePath(digest v1.Hash) string {
	return filepath.Join(s.dir, "images", digest.Algorithm, digest.Hex+".json")
}

// modulePath returns the file of a module. Only what has the form of a digest
// names a file in the store.
func (s *Store) modulePath(digest string) string {
	hash, err := v1.NewHash(digest)
	if err != nil {
		return filepath.Join(s.dir, "modules", "no such digest")
	}
	return filepath.Join(s.dir, "modules", hash.Algorithm, hash.Hex)
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
