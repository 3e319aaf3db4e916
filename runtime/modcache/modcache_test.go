package modcache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/tetratelabs/wazero"
	"go.uber.org/goleak"

	"github.com/wisp-serving/wisp/runtime/api"
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

func newCache(t testing.TB, dir string, modules int, load func(string) ([]byte, error)) *Cache {
	t.Helper()
	c, err := New(Config{Dir: dir, Modules: modules, Load: load})
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

// instantiate makes an instance of m, with the module config of a real caller.
func instantiate(ctx context.Context, m Module) error {
	instance, err := m.Instantiate(ctx, wazero.NewModuleConfig().WithName("").WithStartFunctions())
	if err != nil {
		return err
	}
	if _, err := instance.ExportedFunction("_start").Call(ctx); err != nil {
		return err
	}
	return instance.Close(ctx)
}

func TestGetCompilesOnce(t *testing.T) {
	l := newLoader(map[string][]byte{"a": wasmtest.Command(wasmtest.Nothing)})
	c := newCache(t, t.TempDir(), 4, l.load)
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
	c := newCache(t, t.TempDir(), 1, l.load)
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
	again, err := c.Get(t.Context(), "a") // compiled anew, beside the one in use
	if err != nil {
		t.Fatal(err)
	}
	a.Release()
	if err := instantiate(t.Context(), again); err != nil {
		t.Errorf("after the old one was closed: %v", err)
	}
	again.Release()
	if n := l.count("a"); n != 2 {
		t.Errorf("a was loaded %d times, want 2", n)
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
	c := newCache(t, t.TempDir(), 2, newLoader(modules).load)
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
			c := newCache(t, t.TempDir(), 1, l.load)
			for range 2 {
				_, err := c.Get(t.Context(), "sha256:x")
				if !errors.Is(err, api.ErrUnusable) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("got %v, want ErrUnusable with %q", err, tc.want)
				}
			}
			if n := l.count("sha256:x"); n != 2 {
				t.Errorf("loaded %d times, want 2: a failure isn't kept", n)
			}
		})
	}
}

func TestLoadErrorIsPassedOn(t *testing.T) {
	want := errors.New("as told")
	c := newCache(t, t.TempDir(), 1, func(string) ([]byte, error) { return nil, want })
	if _, err := c.Get(t.Context(), "a"); !errors.Is(err, want) || errors.Is(err, api.ErrUnusable) {
		t.Errorf("got %v, want the loader's error alone", err)
	}
}

func TestFullDiskIsNotTheModulesFault(t *testing.T) {
	if err := unusable(fmt.Errorf("write: %w", syscall.ENOSPC)); errors.Is(err, api.ErrUnusable) {
		t.Errorf("%v is ErrUnusable", err)
	}
}

func TestGetGivesUpWithItsContext(t *testing.T) {
	loading, finish := make(chan struct{}), make(chan struct{})
	c := newCache(t, t.TempDir(), 1, func(string) ([]byte, error) {
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
	c := newCache(t, t.TempDir(), 100, func(string) ([]byte, error) {
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

func TestDiskIsPrivateAndHealed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "compiled")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l := newLoader(map[string][]byte{"a": wasmtest.Command(wasmtest.Nothing)})
	get := func() {
		t.Helper()
		c, err := New(Config{Dir: dir, Modules: 1, Load: l.load})
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
	get()
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v; want 0700", info.Mode(), err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("cached %v, %v; want one file", files, err)
	}
	if err := os.WriteFile(files[0], []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	get()
}

func TestClosed(t *testing.T) {
	c, err := New(Config{Dir: t.TempDir(), Modules: 1, Load: newLoader(nil).load})
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
		{Dir: t.TempDir(), Modules: 0},
		{Dir: "/dev/null/x", Modules: 1},
	} {
		if c, err := New(cfg); err == nil {
			c.Close()
			t.Errorf("%+v: no error", cfg)
		}
	}
}
