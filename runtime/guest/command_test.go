package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero/sys"

	"github.com/wisp-serving/wisp/runtime/api"
	"github.com/wisp-serving/wisp/runtime/compile"
	"github.com/wisp-serving/wisp/runtime/instance"
	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
	"github.com/wisp-serving/wisp/runtime/memory"
	"github.com/wisp-serving/wisp/runtime/modcache"
)

// compiled returns a function that lends binary, compiled, for one call.
func compiled(t testing.TB, binary []byte) func() Module {
	t.Helper()
	cache, err := modcache.New(modcache.Config{
		Dir: t.TempDir(), Memory: 1 << 30, Disk: 1 << 30, Compile: compile.Here,
		Load: func(string) ([]byte, error) { return binary, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cache.Close(); err != nil {
			t.Error(err)
		}
	})
	return func() Module {
		m, err := cache.Get(t.Context(), "m")
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
}

// newGroup returns a sandbox with a node of its own.
func newGroup(t testing.TB, l instance.Limits) *instance.Group {
	host := instance.NewHost(instance.HostConfig{Cores: 2, KeptMemory: 1 << 20})
	t.Cleanup(host.Close)
	return host.Group(l)
}

func newCommand(t testing.TB, cfg CommandConfig) *Command {
	t.Helper()
	if cfg.Group == nil {
		cfg.Group = newGroup(t, instance.Limits{Memory: 64 << 20})
	}
	c, err := NewCommand(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTry(t *testing.T) {
	tests := map[string]struct {
		binary []byte
		want   string
	}{
		"good":                {wasmtest.Command(wasmtest.Loop), ""}, // _start isn't run
		"no _start":           {wasmtest.Reactor(), "it exports no function _start"},
		"start function":      {wasmtest.Starting(wasmtest.Nothing), ""},
		"start function trap": {wasmtest.Starting(wasmtest.Trap), "unreachable"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			m := compiled(t, tc.binary)()
			defer m.Release()
			err := newCommand(t, CommandConfig{Argv0: "x"}).Try(t.Context(), m)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if err != nil && !errors.Is(err, api.ErrUnusable) {
				t.Errorf("%v isn't ErrUnusable", err)
			}
		})
	}
}

func TestTryEndsWithItsContext(t *testing.T) {
	m := compiled(t, wasmtest.Starting(wasmtest.Loop))()
	defer m.Release()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err := newCommand(t, CommandConfig{Argv0: "x"}).Try(ctx, m)
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, api.ErrUnusable) {
		t.Errorf("got %v, want the context's error: the caller gave up, not the trial", err)
	}
}

func TestRunTinyModules(t *testing.T) {
	tests := map[string]struct {
		binary []byte
		check  func(error) bool
	}{
		"returns":             {wasmtest.Command(wasmtest.Nothing), func(err error) bool { return err == nil }},
		"traps":               {wasmtest.Command(wasmtest.Trap), isTrap("unreachable")},
		"overflows its stack": {wasmtest.Command(wasmtest.Recurse), isTrap("stack overflow")},
		"start traps":         {wasmtest.Starting(wasmtest.Trap), isTrap("unreachable")},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			lend, c := compiled(t, tc.binary), newCommand(t, CommandConfig{Argv0: "x"})
			for range 2 { // the second call gets what the first one left
				if err := c.Run(t.Context(), lend(), Call{Stdout: io.Discard}); !tc.check(err) {
					t.Errorf("got %v", err)
				}
			}
		})
	}
}

// A trap names the functions on the stack, and a module may call them anything.
func TestTrapLinesAreBroken(t *testing.T) {
	name := append(binary.AppendUvarint([]byte{1, 0}, 3*maxLine), bytes.Repeat([]byte{'f'}, 3*maxLine)...) // function 0
	names := append(binary.AppendUvarint([]byte("\x04name\x01"), uint64(len(name))), name...)
	section := append(binary.AppendUvarint([]byte{0}, uint64(len(names))), names...)
	lend := compiled(t, append(wasmtest.Command(wasmtest.Trap), section...))
	var got []int
	c := newCommand(t, CommandConfig{Argv0: "x", Stderr: func(line []byte) { got = append(got, len(line)) }})
	if err := c.Run(t.Context(), lend(), Call{Stdout: io.Discard}); !isTrap("unreachable")(err) {
		t.Errorf("got %v", err)
	}
	if len(got) < 6 || slices.Max(got) != maxLine {
		t.Errorf("lines of %d bytes, want the trap, and none longer than %d", got, maxLine)
	}
}

func TestDeadlineEndsLoops(t *testing.T) {
	for name, binary := range map[string][]byte{
		"in _start":             wasmtest.Command(wasmtest.Loop),
		"in the start function": wasmtest.Starting(wasmtest.Loop),
	} {
		t.Run(name, func(t *testing.T) {
			lend, c := compiled(t, binary), newCommand(t, CommandConfig{Argv0: "x"})
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if err := c.Run(ctx, lend(), Call{Stdout: io.Discard}); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want DeadlineExceeded", err)
			}
		})
	}
}

func isTrap(with string) func(error) bool {
	return func(err error) bool {
		trap := new(TrapError)
		return errors.As(err, &trap) && strings.Contains(err.Error(), with) && !strings.Contains(err.Error(), "\n")
	}
}

// wazero frees nothing where an instance fails half-way; Run does.
func TestMemoryIsGivenBack(t *testing.T) {
	for name, binary := range map[string][]byte{
		"after a call":          wasmtest.Command(wasmtest.Nothing),
		"after a failing start": wasmtest.Starting(wasmtest.Trap),
	} {
		t.Run(name, func(t *testing.T) {
			lend, c := compiled(t, binary), newCommand(t, CommandConfig{Argv0: "x"})
			before := virtualSize(t)
			for range 100 {
				_ = c.Run(t.Context(), lend(), Call{Stdout: io.Discard})
			}
			// Each call maps 64 MiB.
			if grown := virtualSize(t) - before; grown > 1<<30 {
				t.Errorf("the process has %d MiB more after 100 calls", grown>>20)
			}
		})
	}
}

// virtualSize returns the size of this process' address space in bytes.
func virtualSize(t *testing.T) int {
	t.Helper()
	var pages int
	text, err := os.ReadFile("/proc/self/statm")
	if err == nil {
		_, err = fmt.Sscan(string(text), &pages)
	}
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

func TestRunGivesTheCause(t *testing.T) {
	lend, c := compiled(t, wasmtest.Command(wasmtest.Loop)), newCommand(t, CommandConfig{Argv0: "x"})
	ctx, cancel := context.WithCancelCause(t.Context())
	timer := time.AfterFunc(20*time.Millisecond, func() { cancel(ErrClosed) })
	defer timer.Stop()
	if err := c.Run(ctx, lend(), Call{Stdout: io.Discard}); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}

// growing is a body that grows its memory by pages, less than 64, and traps if
// it may not.
func growing(pages byte) []byte {
	return []byte{0x41, pages, 0x40, 0x00, 0x41, 0x7f, 0x46, 0x04, 0x40, 0x00, 0x0b}
}

func TestMemoryLimit(t *testing.T) {
	const page = 64 << 10
	lend := compiled(t, wasmtest.Command(growing(10)))
	m := lend()
	fixed := m.Needs().Fixed
	m.Release()
	for name, limit := range map[string]int64{"enough": fixed + 11*page, "too little": fixed + 11*page - 1, "too little to start": fixed} {
		t.Run(name, func(t *testing.T) {
			group := newGroup(t, instance.Limits{Memory: limit})
			c := newCommand(t, CommandConfig{Argv0: "x", Group: group})
			err := c.Run(t.Context(), lend(), Call{})
			oom := new(OOMError)
			if got := errors.As(err, &oom); got == (name == "enough") || got && oom.Limit != limit {
				t.Errorf("got %v", err)
			}
			m := lend()
			defer m.Release()
			err = c.Try(t.Context(), m)
			if got := errors.Is(err, api.ErrUnusable); got != (name == "too little to start") {
				t.Errorf("Try: got %v", err)
			}
			if used := group.Usage().Memory; used != 0 {
				t.Errorf("%d bytes are still charged", used)
			}
		})
	}
}

// A guest may exit with a status that wazero reserves; only its context says
// what it means.
func TestOutcomeOfReservedStatuses(t *testing.T) {
	group := newGroup(t, instance.Limits{Memory: 1 << 20})
	ctx, cancel := context.WithCancel(t.Context())
	running, err := group.Start(ctx, memory.Needs{})
	if err != nil {
		t.Fatal(err)
	}
	defer running.End()
	p := &process{instance: running}
	reserved := []uint32{sys.ExitCodeContextCanceled, sys.ExitCodeDeadlineExceeded}
	for _, status := range reserved {
		exit := new(ExitError)
		if err := p.outcome(sys.NewExitError(status)); !errors.As(err, &exit) || exit.Status != status {
			t.Errorf("status %d of a guest: got %v", status, err)
		}
	}
	cancel()
	for _, status := range reserved {
		if err := p.outcome(sys.NewExitError(status)); !errors.Is(err, context.Canceled) {
			t.Errorf("status %d at the context's end: got %v", status, err)
		}
	}
}

func TestNewCommandRefuses(t *testing.T) {
	for i, cfg := range []CommandConfig{
		{Argv0: "x", Env: []string{"NOVALUE"}},
		{Argv0: "x", Env: []string{"=x"}},
		{Argv0: "x", Env: []string{"A=\x00"}},
		{Argv0: "x", Env: slices.Repeat([]string{"A=b"}, maxEnv+1)},
		{Argv0: "x\x00"},
		{Argv0: "x", Args: []string{"\x00"}},
	} {
		if _, err := NewCommand(cfg); !errors.Is(err, api.ErrUnusable) {
			t.Errorf("case %d: got %v, want ErrUnusable", i, err)
		}
	}
}
