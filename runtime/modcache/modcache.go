// Package modcache turns a module's digest into compiled code that can be
// instantiated.
//
// It holds the node's one wazero.Runtime, with WASI preview 1 in it, and keeps
// what it compiled twice: in memory, the least recently used out first, and as
// wazero's compilation cache on disk, from which loading is some ten times
// faster than compiling. A module in use is never closed: whoever looks one up
// holds a reference until the instance exists.
//
// Compiling runs in goroutines that belong to the Cache, a bounded number at
// once; all who want the same module wait for one of them. Cache.Close joins
// them.
package modcache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/tetratelabs/wazero"
	wazeroapi "github.com/tetratelabs/wazero/api"

	"github.com/wisp-serving/wisp/runtime/api"
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
	// Modules is how many compiled modules stay in memory.
	Modules int
	// Load returns the bytes of the module with the given digest.
	Load func(digest string) ([]byte, error)
}

// Cache compiles modules and keeps them. It is safe for concurrent use.
type Cache struct {
	load    func(digest string) ([]byte, error)
	dir     string
	runtime wazero.Runtime
	disk    wazero.CompilationCache
	// compiling holds one token for each module being compiled.
	compiling chan struct{}
	joined    sync.WaitGroup // the goroutines of compile
	stop      context.Context
	cancel    context.CancelFunc

	mu      sync.Mutex
	closed  bool
	entries *simplelru.LRU[string, *entry]
}

// entry is one module. It is closed when it has left the LRU and nobody refers
// to it any more.
type entry struct {
	ready  chan struct{} // closed once module or err is set
	module wazero.CompiledModule
	needs  memory.Needs
	err    error

	refs    int  // under Cache.mu; compile holds one too
	evicted bool // under Cache.mu
}

// New opens the cache in cfg.Dir, making it if it isn't there.
func New(cfg Config) (*Cache, error) {
	if err := makePrivate(cfg.Dir); err != nil {
		return nil, fmt.Errorf("open compilation cache: %w", err)
	}
	disk, err := wazero.NewCompilationCacheWithDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open compilation cache: %w", err)
	}
	c := &Cache{
		load:      cfg.Load,
		dir:       cfg.Dir,
		disk:      disk,
		compiling: make(chan struct{}, max(1, goruntime.GOMAXPROCS(0)/2)),
	}
	if c.entries, err = simplelru.NewLRU(cfg.Modules, c.evict); err != nil {
		return nil, fmt.Errorf("modules = %d, must be above 0", cfg.Modules)
	}
	c.stop, c.cancel = context.WithCancel(context.Background())
	c.runtime = wazero.NewRuntimeWithConfig(c.stop, wazero.NewRuntimeConfigCompiler().
		WithCompilationCache(disk).
		// See ../RATIONALE.md "What stops a guest today?".
		WithCloseOnContextDone(true).
		// Its reader would parse whatever a guest's DWARF sections hold.
		WithDebugInfoEnabled(false))
	if err := wasi.Instantiate(c.stop, c.runtime); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if err := instance.Link(c.stop, c.runtime); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func makePrivate(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700) // one that was there already
}

// Close waits for compilations under way, which can't be cut short, and frees
// everything. Every Module must have been released and every instance closed.
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
	if err := errors.Join(c.runtime.Close(ctx), c.disk.Close(ctx)); err != nil {
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
	e.evicted = true
	e.closeIfLast()
}

func (e *entry) closeIfLast() {
	if e.evicted && e.refs == 0 && e.module != nil {
		// It only takes the module out of wazero's table: no error, no waiting.
		_ = e.module.Close(context.Background())
	}
}

// fill compiles the module of e and makes e ready. A failure isn't kept.
func (c *Cache) fill(digest string, e *entry) {
	e.err = c.build(digest, e)
	c.mu.Lock()
	if current, _ := c.entries.Peek(digest); e.err != nil && current == e {
		c.entries.Remove(digest)
	}
	c.mu.Unlock()
	close(e.ready)
	Module{c, e}.Release()
}

// build loads, compiles and checks the module of e once its turn has come.
func (c *Cache) build(digest string, e *entry) error {
	select {
	case c.compiling <- struct{}{}:
		defer func() { <-c.compiling }()
	case <-c.stop.Done():
		return errClosed
	}
	binary, err := c.load(digest)
	if err != nil {
		return err
	}
	module, err := c.compile(binary)
	if isStale(err) {
		if err := c.clearDisk(); err != nil {
			return fmt.Errorf("clear compilation cache: %w", err)
		}
		module, err = c.compile(binary)
	}
	if err != nil {
		return unusable(fmt.Errorf("compile module %s: %w", digest, err))
	}
	if err := c.checkImports(module); err != nil {
		_ = module.Close(c.stop)
		return api.Unusable(fmt.Errorf("link module %s: %w", digest, err))
	}
	e.module, e.needs = module, needsOf(binary)
	return nil
}

// compile turns a panic of the compiler, which is a fault that this module has
// found in it, into an error: it shouldn't end the other modules too.
func (c *Cache) compile(binary []byte) (module wazero.CompiledModule, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the compiler panicked: %v", r)
		}
	}()
	return c.runtime.CompileModule(c.stop, binary)
}

// isStale reports whether err is of a file in the compilation cache that can't
// be read back, of which wazero gives up each time.
func isStale(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "compilationcache: ")
}

// clearDisk removes all files of the compilation cache; those of other modules
// are written again when they are compiled next.
func (c *Cache) clearDisk() error {
	files, err := filepath.Glob(filepath.Join(c.dir, "*", "*"))
	for _, file := range files {
		if gone := os.Remove(file); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	return err
}

// unusable marks err as the module's fault unless it is the machine's.
func unusable(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return err
	}
	return api.Unusable(err)
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
