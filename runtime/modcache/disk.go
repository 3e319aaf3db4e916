package modcache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/wisp-serving/wisp/runtime/compile"
)

// disk keeps what was compiled: for each module a record, the rewritten module,
// and its code, the last in a wazero compilation cache that all share. It is
// safe for concurrent use.
//
// What runs is what the records say, by SHA-256: a file that was damaged or put
// there by another hand is never loaded.
type disk struct {
	dir    string
	budget int64
	// platform is the compiled form of a module that never changes, by name. wazero
	// names files by its version and the CPU's features too, so another platform is
	// another name.
	platform string

	// using is held, shared, by whoever has checked files and reads them again. It
	// is taken before mu, never after.
	using sync.RWMutex

	mu      sync.Mutex
	records *simplelru.LRU[string, record] // by key, the least recently used first
	size    int64
}

// record is what is kept beside a module's files. Paths are relative to the
// folder.
type record struct {
	Module, Code             string
	ModuleSHA256, CodeSHA256 string
	Size                     int64 // of both files, in bytes
	Platform                 string
}

// unbounded is the size of an LRU that is bounded by bytes instead.
const unbounded = 1 << 30

// openDisk opens the folder, making it if it isn't there, and removes from it
// whatever isn't of use to this process.
func openDisk(dir string, budget int64) (*disk, error) {
	d := &disk{dir: dir, budget: budget}
	if err := makePrivate(dir); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(d.tmp()); err != nil {
		return nil, err
	}
	for _, sub := range []string{d.tmp(), d.path("modules"), d.codeDir()} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return nil, err
		}
	}
	var err error
	if d.records, err = simplelru.NewLRU(unbounded, d.remove); err != nil {
		return nil, err
	}
	if d.platform, err = d.findPlatform(); err != nil {
		return nil, err
	}
	return d, d.read()
}

func makePrivate(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700) // one that was there already
}

func (d *disk) path(name string) string { return filepath.Join(d.dir, name) }
func (d *disk) tmp() string             { return d.path("tmp") }

// codeDir is the wazero compilation cache.
func (d *disk) codeDir() string { return d.path(compile.CodeDir) }

func (d *disk) recordPath(key string) string { return d.path(filepath.Join("modules", key+".json")) }

// findPlatform compiles an empty module, of our own, to see how its code is
// called.
func (d *disk) findPlatform() (string, error) {
	out, err := d.begin()
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(out)
	if err := compile.Here(context.Background(), []byte(header), out); err != nil {
		return "", err
	}
	return codeIn(out)
}

// codeIn returns the one file that was compiled into the folder out, relative to
// it.
func codeIn(out string) (string, error) {
	files, err := filepath.Glob(filepath.Join(out, compile.CodeDir, "*", "*"))
	if err != nil {
		return "", err
	}
	if len(files) != 1 {
		return "", fmt.Errorf("the compiler made %d files, want 1", len(files))
	}
	return filepath.Rel(out, files[0])
}

// read takes in the records that are there, the least recently used first, and
// removes files that belong to none.
func (d *disk) read() error {
	found, err := filepath.Glob(d.recordPath("*"))
	if err != nil {
		return err
	}
	used := map[string]time.Time{}
	records := map[string]record{}
	for _, path := range found {
		var r record
		text, err := os.ReadFile(path)
		info, statErr := os.Stat(path)
		if err != nil || statErr != nil || json.Unmarshal(text, &r) != nil || r.Platform != d.platform {
			continue
		}
		key := strings.TrimSuffix(filepath.Base(path), ".json")
		records[key], used[key] = r, info.ModTime()
	}
	known := map[string]bool{}
	oldestFirst := func(a, b string) int { return used[a].Compare(used[b]) }
	for _, key := range slices.SortedFunc(maps.Keys(records), oldestFirst) {
		r := records[key]
		d.records.Add(key, r)
		d.size += r.Size
		known[d.recordPath(key)], known[d.path(r.Module)], known[d.path(r.Code)] = true, true, true
	}
	d.trim()
	return filepath.WalkDir(d.dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && !known[path] {
			err = os.Remove(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

// begin returns a new folder for a compilation.
func (d *disk) begin() (string, error) { return os.MkdirTemp(d.tmp(), "") }

// add takes over what was compiled into the folder out.
func (d *disk) add(key, out string) error {
	code, err := codeIn(out)
	if err != nil {
		return err
	}
	r := record{Module: filepath.Join("modules", key+".wasm"), Code: code, Platform: d.platform}
	var moduleSize, codeSize int64
	r.ModuleSHA256, moduleSize, err = d.take(filepath.Join(out, compile.ModuleFile), r.Module)
	if err != nil {
		return err
	}
	r.CodeSHA256, codeSize, err = d.take(filepath.Join(out, code), r.Code)
	if err != nil {
		return err
	}
	r.Size = moduleSize + codeSize
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.recordPath(key), text, 0o600); err != nil {
		return err
	}
	d.using.Lock()
	defer d.using.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if old, ok := d.records.Peek(key); ok {
		d.size -= old.Size
	}
	d.records.Add(key, r)
	d.size += r.Size
	d.trim()
	return nil
}

// take moves a file to its place and returns its sum and size.
func (d *disk) take(from, to string) (sum string, size int64, err error) {
	if sum, size, err = sumOf(from); err != nil {
		return "", 0, err
	}
	if err := os.MkdirAll(filepath.Dir(d.path(to)), 0o700); err != nil {
		return "", 0, err
	}
	return sum, size, os.Rename(from, d.path(to))
}

// use calls do with the rewritten module under key and the size of module and
// code, while its code is in the compilation cache. It returns false if they
// aren't there, whole.
func (d *disk) use(key string, do func(module []byte, size int64) error) (bool, error) {
	d.mu.Lock()
	r, ok := d.records.Get(key)
	d.mu.Unlock()
	if !ok {
		return false, nil
	}
	module, err := d.useFiles(r, do)
	if module == nil {
		d.forget(key)
		return false, nil
	}
	now := time.Now()
	_ = os.Chtimes(d.recordPath(key), now, now) // the order after a restart
	return true, err
}

// useFiles returns no module if the files aren't what r says.
func (d *disk) useFiles(r record, do func(module []byte, size int64) error) ([]byte, error) {
	d.using.RLock()
	defer d.using.RUnlock()
	module, err := os.ReadFile(d.path(r.Module))
	if sum := sha256.Sum256(module); err != nil || hex.EncodeToString(sum[:]) != r.ModuleSHA256 {
		return nil, nil
	}
	if sum, _, err := sumOf(d.path(r.Code)); err != nil || sum != r.CodeSHA256 {
		return nil, nil
	}
	return module, do(module, r.Size)
}

// forget removes what is under key.
func (d *disk) forget(key string) {
	d.using.Lock()
	defer d.using.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records.Remove(key)
}

// trim removes what was used least recently until the rest is within the budget.
// The last one stays: it is wanted now. Both locks are held.
func (d *disk) trim() {
	for d.size > d.budget && d.records.Len() > 1 {
		d.records.RemoveOldest()
	}
}

// remove is called by the LRU for what leaves it. Both locks are held.
func (d *disk) remove(key string, r record) {
	d.size -= r.Size
	for _, path := range []string{d.recordPath(key), d.path(r.Module), d.path(r.Code)} {
		os.Remove(path) // what stays is removed at the next start
	}
}

// sumOf returns the SHA-256 and the size of a file.
func sumOf(path string) (string, int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer file.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, file)
	return hex.EncodeToString(sum.Sum(nil)), size, err
}
