package modcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tetratelabs/wazero"
	"go.uber.org/goleak"

	"github.com/wisp-serving/wisp/runtime/api"
	"github.com/wisp-serving/wisp/runtime/compile"
	"github.com/wisp-serving/wisp/runtime/instance"
	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// loader is a store of modules that counts how often each is loaded.
type loader struct {
	mu      sync.Mutex
	modules map[string][]byte
	loads   map[string]int
}

func newLoader(modules map[string][]byte) *loader {
	return &loader{modules: modules, loads: map[string]int{}}
}

func (l *loader) load(digest string) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loads[digest]++
	if m, ok := l.modules[digest]; ok {
		return m, nil
	}
	return nil, errors.New("no such module")
}

func (l *loader) count(digest string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.loads[digest]
}

// newCache returns a cache that keeps all modules in memory, or but one.
func newCache(t testing.TB, dir string, all bool, load func(string) ([]byte, error)) *Cache {
	t.Helper()
	budget := int64(1)
	if all {
		budget = 1 << 30
	}
	c, err := New(Config{Dir: dir, Memory: budget, Disk: 1 << 30, Load: load, Compile: compile.Here})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

var host = instance.NewHost(instance.HostConfig{Cores: 4})

// instantiate runs an instance of m as a real caller does.
func instantiate(ctx context.Context, m Module) error {
	i, err := host.Group(instance.Limits{Memory: 16 << 20}).Start(ctx, m.Needs())
	if err != nil {
		return err
	}
	defer i.End()
	made, err := m.Instantiate(i.Context(), wazero.NewModuleConfig().WithName("").WithStartFunctions())
	if err != nil {
		return err
	}
	if _, err := made.ExportedFunction("_start").Call(i.Context()); err != nil {
		return err
	}
	return made.Close(ctx)
}

func TestGetCompilesOnce(t *testing.T) {
	l := newLoader(map[string][]byte{"a": wasmtest.Command(wasmtest.Nothing)})
	c := newCache(t, t.TempDir(), true, l.load)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			m, err := c.Get(t.Context(), "a")
			if err != nil {
				t.Error(err)
				return
			}
			defer m.Release()
			if err := instantiate(t.Context(), m); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := l.count("a"); n != 1 {
		t.Errorf("loaded %d times, want once", n)
	}
}

func TestEvictionSparesWhatIsInUse(t *testing.T) {
	l := newLoader(map[string][]byte{
		"a": wasmtest.Command(wasmtest.Nothing),
		"b": wasmtest.Command([]byte{0x01}), // nop
	})
	c := newCache(t, t.TempDir(), false, l.load)
	a, err := c.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Get(t.Context(), "b") // puts a out
	if err != nil {
		t.Fatal(err)
	}
	b.Release()
	if err := instantiate(t.Context(), a); err != nil {
		t.Errorf("an evicted module in use: %v", err)
	}
	again, err := c.Get(t.Context(), "a") // from disk, beside the one in use
	if err != nil {
		t.Fatal(err)
	}
	a.Release()
	if err := instantiate(t.Context(), again); err != nil {
		t.Errorf("after the old one was closed: %v", err)
	}
	again.Release()
	if n := l.count("a"); n != 1 {
		t.Errorf("a was compiled %d times, want once: it is on disk", n)
	}
}

// Many goroutines want more modules than there is room for: nobody's module is
// closed under them, and none is left over.
func TestHammer(t *testing.T) {
	modules := map[string][]byte{}
	for i := range 5 {
		body := []byte{}
		for range i {
			body = append(body, 0x01) // nop
		}
		modules[fmt.Sprint(i)] = wasmtest.Command(body)
	}
	c := newCache(t, t.TempDir(), false, newLoader(modules).load)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for p := range 8 {
		wg.Go(func() {
			<-start
			for i := range 100 {
				m, err := c.Get(t.Context(), fmt.Sprint((p+i)%len(modules)))
				if err != nil {
					t.Error(err)
					return
				}
				if err := instantiate(t.Context(), m); err != nil {
					t.Error(err)
				}
				m.Release()
			}
		})
	}
	close(start)
	wg.Wait()
}

func TestGetRefuses(t *testing.T) {
	tests := map[string]struct {
		module []byte
		want   string
	}{
		"unknown imports": {
			wasmtest.Importing([2]string{"env", "f"}, [2]string{"wasi_snapshot_preview1", "nope"}, [2]string{"wasi_snapshot_preview1", "sched_yield"}),
			"unknown imports: env.f, wasi_snapshot_preview1.nope",
		},
		"invalid code": {wasmtest.Command(wasmtest.Broken), "compile module sha256:x"},
		"truncated":    {wasmtest.Command(wasmtest.Nothing)[:20], "compile module sha256:x"},
		"not wasm":     {[]byte("#!/bin/sh\n"), "compile module sha256:x"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			l := newLoader(map[string][]byte{"sha256:x": tc.module})
			c := newCache(t, t.TempDir(), false, l.load)
			for range 2 {
				_, err := c.Get(t.Context(), "sha256:x")
				if !errors.Is(err, api.ErrUnusable) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("got %v, want ErrUnusable with %q", err, tc.want)
				}
			}
			// That its imports are unknown is found where it is loaded.
			if n := l.count("sha256:x"); n != 1 {
				t.Errorf("compiled %d times, want once: it is unusable for good", n)
			}
		})
	}
}

func TestLoadErrorIsPassedOn(t *testing.T) {
	want := errors.New("as told")
	c := newCache(t, t.TempDir(), false, func(string) ([]byte, error) { return nil, want })
	if _, err := c.Get(t.Context(), "a"); !errors.Is(err, want) || errors.Is(err, api.ErrUnusable) {
		t.Errorf("got %v, want the loader's error alone", err)
	}
}

func TestGetGivesUpWithItsContext(t *testing.T) {
	loading, finish := make(chan struct{}), make(chan struct{})
	c := newCache(t, t.TempDir(), false, func(string) ([]byte, error) {
		close(loading)
		<-finish
		return wasmtest.Command(wasmtest.Nothing), nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := c.Get(ctx, "a"); done <- err }()
	<-loading
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	close(finish)
	// What was begun is there for the next one.
	m, err := c.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	m.Release()
}

func TestCompilationsAreBounded(t *testing.T) {
	var now, most atomic.Int32
	module := wasmtest.Command(wasmtest.Nothing)
	c := newCache(t, t.TempDir(), true, func(string) ([]byte, error) {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		return module, nil
	})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			m, err := c.Get(t.Context(), fmt.Sprint(i))
			if err != nil {
				t.Error(err)
				return
			}
			m.Release()
		})
	}
	wg.Wait()
	if int(most.Load()) > cap(c.compiling) {
		t.Errorf("%d at once, want at most %d", most.Load(), cap(c.compiling))
	}
}

// files returns what the disk holds: records, rewritten modules, code.
func files(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	code, err := filepath.Glob(filepath.Join(dir, "code", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(append(found, code...), func(path string) bool {
		info, err := os.Stat(path)
		return err != nil || info.IsDir()
	})
}

// get has a cache in dir run the module "a", and closes it.
func get(t *testing.T, dir string, l *loader) {
	t.Helper()
	c, err := New(Config{Dir: dir, Memory: 1 << 20, Disk: 1 << 20, Load: l.load, Compile: compile.Here})
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := instantiate(t.Context(), m); err != nil {
		t.Error(err)
	}
	m.Release()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestDiskIsPrivateAndHealed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "compiled")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l := newLoader(map[string][]byte{"a": wasmtest.Command(wasmtest.Nothing)})
	get(t, dir, l)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v; want 0700", info.Mode(), err)
	}
	kept := files(t, dir)
	if len(kept) != 3 {
		t.Fatalf("kept %v, want a record, a module and its code", kept)
	}
	get(t, dir, l)
	if n := l.count("a"); n != 1 {
		t.Fatalf("compiled %d times, want once", n)
	}
	// Whichever of them is damaged, it doesn't run.
	for i, path := range kept {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		content[len(content)/2] ^= 1
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		get(t, dir, l)
		if n := l.count("a"); n != i+2 {
			t.Errorf("%s is damaged: compiled %d times, want %d", path, n, i+2)
		}
	}
	// What belongs to no record goes.
	if err := os.WriteFile(filepath.Join(dir, "code", "left over"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	get(t, dir, l)
	if left := files(t, dir); len(left) != 3 {
		t.Errorf("kept %v", left)
	}
}

// Code that another platform's compiler made is never loaded.
func TestOtherPlatformsCode(t *testing.T) {
	dir := t.TempDir()
	l := newLoader(map[string][]byte{"a": wasmtest.Command(wasmtest.Nothing)})
	get(t, dir, l)
	records, err := filepath.Glob(filepath.Join(dir, "modules", "*.json"))
	if err != nil || len(records) != 1 {
		t.Fatalf("%v, %v", records, err)
	}
	text, err := os.ReadFile(records[0])
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte(`"Platform":"`), []byte(`"Platform":"other-`), 1)
	if err := os.WriteFile(records[0], text, 0o600); err != nil {
		t.Fatal(err)
	}
	get(t, dir, l)
	if n := l.count("a"); n != 2 {
		t.Errorf("compiled %d times, want 2", n)
	}
}

func TestDiskIsBounded(t *testing.T) {
	dir := t.TempDir()
	modules := map[string][]byte{}
	for i := range 5 {
		modules[fmt.Sprint(i)] = wasmtest.Command(bytes.Repeat([]byte{0x01}, i))
	}
	l := newLoader(modules)
	c, err := New(Config{Dir: dir, Memory: 1, Disk: 1, Load: l.load, Compile: compile.Here})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 5 {
		m, err := c.Get(t.Context(), fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		m.Release()
	}
	if left := files(t, dir); len(left) != 3 {
		t.Errorf("kept %v, want what was used last", left)
	}
}

// What is slow to compile keeps nothing from being loaded.
func TestLoadingDoesNotWaitForCompiling(t *testing.T) {
	modules := map[string][]byte{"a": wasmtest.Command(wasmtest.Nothing)}
	for i := range 100 {
		modules[fmt.Sprint(i)] = nil
	}
	dir, l := t.TempDir(), newLoader(modules)
	get(t, dir, l)
	entered := make(chan struct{}, 100)
	c, err := New(Config{Dir: dir, Memory: 1 << 20, Disk: 1 << 20, Load: l.load, Compile: func(ctx context.Context, _ []byte, _ string) error {
		entered <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	gaveUp, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range cap(c.compiling) {
		_, _ = c.Get(gaveUp, fmt.Sprint(i))
		<-entered
	}
	m, err := c.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	m.Release()
}

func TestClosed(t *testing.T) {
	c, err := New(Config{Dir: t.TempDir(), Memory: 1, Disk: 1, Load: newLoader(nil).load})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(t.Context(), "a"); !errors.Is(err, errClosed) {
		t.Errorf("got %v, want errClosed", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, cfg := range []Config{
		{Dir: t.TempDir(), Memory: 0, Disk: 1},
		{Dir: t.TempDir(), Memory: 1, Disk: 0},
		{Dir: "/dev/null/x", Memory: 1, Disk: 1},
	} {
		if c, err := New(cfg); err == nil {
			c.Close()
			t.Errorf("%+v: no error", cfg)
		}
	}
}
