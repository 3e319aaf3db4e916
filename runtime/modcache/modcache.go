// Package modcache turns a module's digest into compiled code that can be
// instantiated.
//
// It holds the node's one wazero.Runtime, with what guests may import in it, and
// keeps what was compiled twice: in memory and on disk, from which loading is
// some ten times faster than compiling, each the least recently used out first.
// A module in use is never closed: whoever looks one up holds a reference until
// the instance exists.
//
// What it can't find is compiled by another (Config.Compile; see
// runtime/compile), a bounded number at once; all who want the same module wait
// for one. Modules are metered before they are compiled, and this process
// compiles none. Loading runs in goroutines that belong to the Cache, which
// Close joins.
package modcache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"strings"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/tetratelabs/wazero"
	wazeroapi "github.com/tetratelabs/wazero/api"

	"github.com/wisp-serving/wisp/runtime/api"
	"github.com/wisp-serving/wisp/runtime/compile"
	"github.com/wisp-serving/wisp/runtime/instance"
	"github.com/wisp-serving/wisp/runtime/memory"
	"github.com/wisp-serving/wisp/runtime/wasi"
)

const (
	// pageSize is the size of a page of linear memory, and maxPages how many there
	// can be.
	pageSize = 64 << 10
	maxPages = 1 << 16
)

// Config says what a Cache holds and where it gets modules.
type Config struct {
	// Dir holds compiled code. It is made 0700: who can write there runs
	// whatever they like inside the node.
	Dir string
	// Memory bounds the compiled modules that stay in memory, and Disk those in
	// Dir, in bytes of code and of rewritten modules.
	Memory, Disk int64
	// Load returns the bytes of the module with the given digest.
	Load func(digest string) ([]byte, error)
	// Compile rewrites and compiles module into the folder out, as
	// compile.Here does. Its context ends with the Cache.
	Compile func(ctx context.Context, module []byte, out string) error
}

// Cache compiles modules and keeps them. It is safe for concurrent use.
type Cache struct {
	load     func(digest string) ([]byte, error)
	compile  func(ctx context.Context, module []byte, out string) error
	budget   int64
	runtime  wazero.Runtime
	compiled wazero.CompilationCache
	disk     *disk
	// compiling and loading hold one token for each module being compiled and
	// loaded. What is slow to compile must not keep others from being loaded.
	compiling, loading chan struct{}
	joined             sync.WaitGroup // the goroutines of fill
	stop               context.Context
	cancel             context.CancelFunc

	mu      sync.Mutex
	closed  bool
	entries *simplelru.LRU[string, *entry]
	size    int64 // of entries together
}

// entry is one module. It is closed when it has left the LRU and nobody refers
// to it any more.
type entry struct {
	ready  chan struct{} // closed once module or err is set
	module wazero.CompiledModule
	needs  memory.Needs
	size   int64 // estimated bytes in memory, under Cache.mu
	err    error

	refs    int  // under Cache.mu; compile holds one too
	evicted bool // under Cache.mu
}

// New opens the cache in cfg.Dir, making it if it isn't there.
func New(cfg Config) (*Cache, error) {
	if cfg.Memory <= 0 || cfg.Disk <= 0 {
		return nil, fmt.Errorf("memory, disk = %d, %d, must be above 0", cfg.Memory, cfg.Disk)
	}
	disk, err := openDisk(cfg.Dir, cfg.Disk)
	if err != nil {
		return nil, fmt.Errorf("open compilation cache: %w", err)
	}
	compiled, err := wazero.NewCompilationCacheWithDir(disk.codeDir())
	if err != nil {
		return nil, fmt.Errorf("open compilation cache: %w", err)
	}
	c := &Cache{
		load:      cfg.Load,
		compile:   cfg.Compile,
		budget:    cfg.Memory,
		disk:      disk,
		compiled:  compiled,
		compiling: make(chan struct{}, max(2, goruntime.GOMAXPROCS(0))),
		loading:   make(chan struct{}, max(1, goruntime.GOMAXPROCS(0)/2)),
	}
	if c.entries, err = simplelru.NewLRU(unbounded, c.evict); err != nil {
		return nil, err
	}
	c.stop, c.cancel = context.WithCancel(context.Background())
	c.runtime = wazero.NewRuntimeWithConfig(c.stop, compile.RuntimeConfig().WithCompilationCache(compiled))
	if err := wasi.Instantiate(c.stop, c.runtime); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if err := instance.Link(c.stop, c.runtime); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close ends compilations under way and frees everything. Every Module must have been released and every instance closed.
func (c *Cache) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.joined.Wait()

	c.mu.Lock()
	c.entries.Purge()
	c.mu.Unlock()
	ctx := context.Background() // neither call blocks
	if err := errors.Join(c.runtime.Close(ctx), c.compiled.Close(ctx)); err != nil {
		return fmt.Errorf("close compiled modules: %w", err)
	}
	return nil
}

// Module is a reference to a compiled module. Its holder calls Release once.
type Module struct {
	cache *Cache
	entry *entry
}

var errClosed = errors.New("the module cache is closed")

// Get returns the module with the given digest, compiling it, or waiting for
// whoever does, if it isn't in memory. A module that can't be compiled or whose
// imports don't exist is api.ErrUnusable.
func (c *Cache) Get(ctx context.Context, digest string) (Module, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return Module{}, errClosed
	}
	e, ok := c.entries.Get(digest)
	if !ok {
		e = &entry{ready: make(chan struct{}), refs: 1}
		c.entries.Add(digest, e)
		c.joined.Go(func() { c.fill(digest, e) })
	}
	e.refs++
	c.mu.Unlock()

	m := Module{c, e}
	select {
	case <-e.ready:
	case <-ctx.Done():
		m.Release()
		return Module{}, ctx.Err()
	}
	if e.err != nil {
		m.Release()
		return Module{}, e.err
	}
	return m, nil
}

// Instantiate makes an instance of m. What m may use is cfg's; ctx ends its
// start function.
func (m Module) Instantiate(ctx context.Context, cfg wazero.ModuleConfig) (wazeroapi.Module, error) {
	return m.cache.runtime.InstantiateModule(ctx, m.entry.module, cfg)
}

// Exports returns the functions that m exports.
func (m Module) Exports() map[string]wazeroapi.FunctionDefinition {
	return m.entry.module.ExportedFunctions()
}

// Needs returns what an instance of m takes of its sandbox's memory.
func (m Module) Needs() memory.Needs { return m.entry.needs }

// Release gives the reference back. Instances made from it live on.
func (m Module) Release() {
	m.cache.mu.Lock()
	defer m.cache.mu.Unlock()
	m.entry.refs--
	m.entry.closeIfLast()
}

// evict is called by the LRU for what leaves it. c.mu is held.
func (c *Cache) evict(_ string, e *entry) {
	c.size -= e.size
	e.evicted = true
	e.closeIfLast()
}

func (e *entry) closeIfLast() {
	if e.evicted && e.refs == 0 && e.module != nil {
		// It only takes the module out of wazero's table: no error, no waiting.
		_ = e.module.Close(context.Background())
	}
}

// errorSize is what an entry without a module counts.
const errorSize = 8 << 10

// fill brings the module of e and makes e ready. That a module is unusable is
// kept as well: finding out may have taken a minute. Another failure isn't.
func (c *Cache) fill(digest string, e *entry) {
	size, err := c.bring(digest, e)
	e.err = err
	c.mu.Lock()
	if current, _ := c.entries.Peek(digest); current == e {
		if err != nil && !errors.Is(err, api.ErrUnusable) {
			c.entries.Remove(digest)
		} else {
			e.size = size + errorSize
			c.size += e.size
			c.trim()
		}
	}
	c.mu.Unlock()
	close(e.ready)
	Module{c, e}.Release()
}

// trim puts out what was used least recently until the rest is within the
// budget. The last one stays: it is wanted now. c.mu is held.
func (c *Cache) trim() {
	for c.size > c.budget && c.entries.Len() > 1 {
		c.entries.RemoveOldest()
	}
}

// bring loads the module of e from disk, where it is compiled to first if it
// isn't there. It returns the module's size.
func (c *Cache) bring(digest string, e *entry) (int64, error) {
	key := keyOf(digest)
	size, found, err := c.fromDisk(key, digest, e)
	if found || err != nil {
		return size, err
	}
	if err := c.toDisk(key, digest); err != nil {
		return 0, err
	}
	if size, found, err = c.fromDisk(key, digest, e); !found && err == nil {
		err = fmt.Errorf("module %s is not on disk right after it was compiled", digest)
	}
	return size, err
}

// keyOf returns the name of a module's files: another way of rewriting makes
// other files.
func keyOf(digest string) string {
	sum := sha256.Sum256([]byte(compile.Version + " " + digest))
	return hex.EncodeToString(sum[:])
}

// fromDisk makes e of what is on disk, if it is there.
func (c *Cache) fromDisk(key, digest string, e *entry) (size int64, found bool, err error) {
	select {
	case c.loading <- struct{}{}:
		defer func() { <-c.loading }()
	case <-c.stop.Done():
		return 0, false, errClosed
	}
	found, err = c.disk.use(key, func(module []byte, n int64) error {
		size = n
		return c.link(digest, module, e)
	})
	return size, found, err
}

// toDisk has a module compiled once its turn has come.
func (c *Cache) toDisk(key, digest string) error {
	select {
	case c.compiling <- struct{}{}:
		defer func() { <-c.compiling }()
	case <-c.stop.Done():
		return errClosed
	}
	module, err := c.load(digest)
	if err != nil {
		return err
	}
	out, err := c.disk.begin()
	if err != nil {
		return fmt.Errorf("compile module %s: %w", digest, err)
	}
	defer os.RemoveAll(out)
	if err := c.compile(c.stop, module, out); err != nil {
		return fmt.Errorf("compile module %s: %w", digest, err)
	}
	if err := c.disk.add(key, out); err != nil {
		return fmt.Errorf("keep module %s: %w", digest, err)
	}
	return nil
}

// link makes e of a rewritten module, whose code is in the compilation cache.
func (c *Cache) link(digest string, module []byte, e *entry) error {
	compiled, err := c.runtime.CompileModule(c.stop, module)
	if err != nil {
		return fmt.Errorf("load module %s: %w", digest, err)
	}
	if err := c.checkImports(compiled); err != nil {
		_ = compiled.Close(c.stop)
		return api.Unusable(fmt.Errorf("link module %s: %w", digest, err))
	}
	e.module, e.needs = compiled, needsOf(module)
	e.needs.Module = digest
	return nil
}

// checkImports names every import that doesn't exist; instantiating would stop
// at the first, and on some path name only the module.
func (c *Cache) checkImports(module wazero.CompiledModule) error {
	var unknown []string
	for _, f := range module.ImportedFunctions() {
		host, name, _ := f.Import()
		from := c.runtime.Module(host)
		if from == nil || from.ExportedFunctionDefinitions()[name] == nil {
			unknown = append(unknown, host+"."+name)
		}
	}
	for _, m := range module.ImportedMemories() {
		host, name, _ := m.Import()
		unknown = append(unknown, host+"."+name+" (a memory)")
	}
	if len(unknown) > 0 {
		return fmt.Errorf("unknown imports: %s", strings.Join(unknown, ", "))
	}
	return nil
}
