package compile_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/wisp-serving/wisp/runtime/api"
	"github.com/wisp-serving/wisp/runtime/compile"
	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
)

const childArg = "compile-child"

// TestMain is the child too: tests compile in processes of this binary.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == childArg {
		os.Exit(compile.ChildMain(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func child(l compile.Limits) func(context.Context, []byte, string) error {
	if l.Time == 0 {
		l.Time = time.Minute
	}
	if l.Memory == 0 {
		l.Memory = 2 << 30
	}
	if l.File == 0 {
		l.File = 1 << 30
	}
	return compile.Child{Command: []string{os.Args[0], childArg}, Limits: l}.Compile
}

func TestBothMakeTheSame(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	module := wasmtest.Command(wasmtest.Loop)
	if err := compile.Here(t.Context(), module, here); err != nil {
		t.Fatal(err)
	}
	if err := child(compile.Limits{})(t.Context(), module, there); err != nil {
		t.Fatal(err)
	}
	for _, pattern := range []string{compile.ModuleFile, filepath.Join(compile.CodeDir, "*", "*")} {
		a, b := only(t, here, pattern), only(t, there, pattern)
		if strings.TrimPrefix(a, here) != strings.TrimPrefix(b, there) || !bytes.Equal(read(t, a), read(t, b)) {
			t.Errorf("%s and %s differ", a, b)
		}
	}
	if bytes.Equal(read(t, filepath.Join(here, compile.ModuleFile)), module) {
		t.Error("the module isn't metered")
	}
}

func only(t *testing.T, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: got %v, %v; want one file", pattern, found, err)
	}
	return found[0]
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// large returns a module of n functions of some 7 kB, which are slow to compile
// for their size: chains of values that all live until the end.
func large(n int) []byte {
	var body []byte
	body = append(body, 1, 1, 0x7f) // a local, i32
	for range 700 {
		body = append(body, 0x20, 0, 0x20, 0, 0x6a, 0x22, 0, 0x20, 0, 0x73) // get, get, add, tee, get, xor
	}
	for range 699 {
		body = append(body, 0x6a) // add
	}
	body = append(body, 0x1a, 0x0b) // drop, end
	return wasmtest.Functions(n, body)
}

// A module that takes more than it may is at fault itself, and says so.
func TestLimits(t *testing.T) {
	tests := map[string]struct {
		limits compile.Limits
		module []byte
		want   string
	}{
		"time":   {compile.Limits{Time: time.Second}, large(5000), "compiling took more than the 1s"},
		"memory": {compile.Limits{Memory: 300 << 20}, large(20000), "compiling took more than the 300 MiB of memory"},
		"file":   {compile.Limits{File: 1 << 20}, large(300), "takes more than the 1 MiB"},
		"broken": {compile.Limits{}, wasmtest.Command(wasmtest.Broken), "invalid"},
		"text":   {compile.Limits{}, []byte("#!/bin/sh"), "not a core wasm module"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			err := child(tc.limits)(t.Context(), tc.module, t.TempDir())
			if !errors.Is(err, api.ErrUnusable) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want ErrUnusable with %q", err, tc.want)
			}
		})
	}
}

// What isn't the module's fault is tried again, so it must not be ErrUnusable.
func TestFaultsOfTheMachine(t *testing.T) {
	module := wasmtest.Command(wasmtest.Nothing)
	gone, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the node stops")
	cancel(cause)
	if err := child(compile.Limits{})(gone, module, t.TempDir()); !errors.Is(err, cause) {
		t.Errorf("got %v, want the context's cause", err)
	}
	for name, err := range map[string]error{
		"no folder": child(compile.Limits{})(t.Context(), module, filepath.Join(t.TempDir(), "none")),
		"no binary": compile.Child{Command: []string{"/none"}, Limits: compile.Limits{Time: time.Second}}.Compile(t.Context(), module, t.TempDir()),
	} {
		if err == nil || errors.Is(err, api.ErrUnusable) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// A node that stops doesn't wait for a compilation.
func TestCompilationEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	out := t.TempDir()
	go func() { done <- child(compile.Limits{})(ctx, large(5000), out) }()
	for { // until it is at work: the rewritten module is there
		if _, err := os.Stat(filepath.Join(out, compile.ModuleFile)); err == nil {
			break
		}
		select {
		case err := <-done:
			t.Fatalf("ended with %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
