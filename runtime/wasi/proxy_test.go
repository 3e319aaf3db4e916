package wasi

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	wasmsys "github.com/tetratelabs/wazero/sys"
)

// proxyModule returns a guest that exports each of WASI's functions, by its own
// name, as a call of it, and two pages of memory.
func proxyModule() []byte {
	number := func(n int) []byte { return binary.AppendUvarint(nil, uint64(n)) }
	list := func(items ...[]byte) []byte { return append(number(len(items)), bytes.Join(items, nil)...) }
	name := func(s string) []byte { return append(number(len(s)), s...) }
	section := func(id byte, content []byte) []byte {
		return append(append([]byte{id}, number(len(content))...), content...)
	}
	var kinds, imports, funcs, exports, bodies [][]byte
	for i, f := range functions {
		params := make([]byte, len(f.params))
		call := []byte{0} // no locals
		for j, c := range f.params {
			params[j] = 0x7f
			if c == 'I' {
				params[j] = 0x7e
			}
			call = append(call, 0x20, byte(j)) // local.get
		}
		results := []byte{0x7f}
		if f.noResult {
			results = nil
		}
		call = append(append(append(call, 0x10), number(i)...), 0x0b) // call, end
		kinds = append(kinds, append(append([]byte{0x60}, append(number(len(params)), params...)...), append(number(len(results)), results...)...))
		imports = append(imports, append(append(name(ModuleName), name(f.name)...), append([]byte{0}, number(i)...)...))
		funcs = append(funcs, number(i))
		exports = append(exports, append(name(f.name), append([]byte{0}, number(len(functions)+i)...)...))
		bodies = append(bodies, append(number(len(call)), call...))
	}
	exports = append(exports, append(name("memory"), 2, 0))
	return bytes.Join([][]byte{
		[]byte("\x00asm\x01\x00\x00\x00"),
		section(1, list(kinds...)), section(2, list(imports...)), section(3, list(funcs...)),
		section(5, []byte{1, 1, 2, 2}), section(7, list(exports...)), section(10, list(bodies...)),
	}, nil)
}

// proxy is an instance of proxyModule.
type proxy struct {
	api.Module
	ctx context.Context
}

// newRuntime returns a runtime with our WASI.
func newRuntime(t testing.TB) wazero.Runtime {
	t.Helper()
	r := wazero.NewRuntime(context.Background())
	t.Cleanup(func() { _ = r.Close(context.Background()) })
	if err := Instantiate(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	return r
}

func instantiate(t testing.TB, ctx context.Context, r wazero.Runtime, cfg wazero.ModuleConfig) proxy {
	t.Helper()
	m, err := r.InstantiateWithConfig(ctx, proxyModule(), cfg.WithName(""))
	if err != nil {
		t.Fatal(err)
	}
	return proxy{m, ctx}
}

// start starts a process with cfg in a guest of its own.
func start(t testing.TB, ctx context.Context, cfg Config) proxy {
	t.Helper()
	p := new(Process)
	guest := instantiate(t, p.Start(ctx, cfg), newRuntime(t), wazero.NewModuleConfig())
	t.Cleanup(p.Close)
	return guest
}

// call calls a function; ended means that it ended the guest.
func (p proxy) call(function string, args ...uint64) (e errno, ended bool) {
	results, err := p.ExportedFunction(function).Call(p.ctx, args...)
	if exit := new(wasmsys.ExitError); errors.As(err, &exit) {
		return 0, true
	}
	if err != nil {
		panic(fmt.Sprint(function, ": ", err))
	}
	return errno(results[0]), false
}

// must is call for what has to succeed.
func (p proxy) must(t testing.TB, function string, args ...uint64) {
	t.Helper()
	if e, ended := p.call(function, args...); e != ok || ended {
		t.Fatalf("%s%v: errno %d, ended %v", function, args, e, ended)
	}
}

// put writes text to memory and returns the two arguments that say where.
func (p proxy) put(at uint32, text string) (address, size uint64) {
	p.Memory().WriteString(at, text)
	return uint64(at), uint64(len(text))
}

// vector writes a list of one buffer to memory, at 1024, and returns the two
// arguments.
func (p proxy) vector(buf, size uint32) (address, number uint64) {
	const at = 1024
	p.Memory().WriteUint32Le(at, buf)
	p.Memory().WriteUint32Le(at+4, size)
	return uint64(at), 1
}

func (p proxy) text(at, size uint32) string {
	b, _ := p.Memory().Read(at, size)
	return string(b)
}

func (p proxy) number(at uint32) uint32 {
	n, _ := p.Memory().ReadUint32Le(at)
	return n
}

// write writes text to a descriptor.
func (p proxy) write(fd uint64, text string) (errno, bool) {
	p.put(4096, text)
	at, n := p.vector(4096, uint32(len(text)))
	return p.call("fd_write", fd, at, n, 1040)
}

// read reads up to size bytes from a descriptor.
func (p proxy) read(fd uint64, size uint32) (string, errno, bool) {
	at, n := p.vector(4096, size)
	e, ended := p.call("fd_read", fd, at, n, 1040)
	if e != ok || ended {
		return "", e, ended
	}
	return p.text(4096, p.number(1040)), ok, false
}
