// Package wasmtest has the modules that the runtime's tests run: tiny ones,
// encoded here by hand, and guests compiled from test/guests by Go.
package wasmtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"sync"
)

// Instructions for the bodies of Command. See
// https://webassembly.github.io/spec/core/binary/instructions.html
var (
	// Nothing returns at once.
	Nothing = []byte{}
	// Trap traps.
	Trap = []byte{0x00} // unreachable
	// Loop never returns: loop; br 0; end.
	Loop = []byte{0x03, 0x40, 0x0c, 0x00, 0x0b}
	// Recurse calls itself until the stack is full: call 0.
	Recurse = []byte{0x10, 0x00}
	// Broken doesn't validate: i32.const 0, left on the stack.
	Broken = []byte{0x41, 0x00}
)

// Header is the magic and version of a core module; a module without sections.
var Header = []byte("\x00asm\x01\x00\x00\x00")

// Component begins a WASI p2 component.
var Component = []byte("\x00asm\x0d\x00\x01\x00")

// Module returns a module of the given sections.
func Module(sections ...[]byte) []byte {
	module := Header[:len(Header):len(Header)]
	for _, s := range sections {
		module = append(module, s...)
	}
	return module
}

// Section returns a section.
func Section(id byte, content ...byte) []byte {
	return append(binary.AppendUvarint([]byte{id}, uint64(len(content))), content...)
}

// The sections of a module whose function 0 takes and returns nothing.
var (
	types     = Section(1, 1, 0x60, 0, 0)
	functions = Section(3, 1, 0)
	memory    = Section(5, 1, 0, 1)
	exports   = Section(7, append(append([]byte{1, 6}, "_start"...), 0, 0)...)
	started   = Section(8, 0)
)

func code(body []byte) []byte {
	content := append([]byte{1, byte(len(body) + 2), 0}, body...)
	return Section(10, append(content, 0x0b)...)
}

// Command returns a WASI command whose _start is body.
func Command(body []byte) []byte {
	return Module(types, functions, memory, exports, code(body))
}

// Starting returns a WASI command whose start function is body too, which runs
// when it is instantiated.
func Starting(body []byte) []byte {
	return Module(types, functions, memory, exports, started, code(body))
}

// Functions returns a module of n functions with the given bodies, without their sizes
// but with their locals, of which the first is _start.
func Functions(n int, body []byte) []byte {
	function := append(binary.AppendUvarint(nil, uint64(len(body))), body...)
	count := binary.AppendUvarint(nil, uint64(n))
	return Module(
		Section(1, 1, 0x60, 0, 0),
		Section(3, append(count[:len(count):len(count)], make([]byte, n)...)...),
		Section(5, 1, 0, 1),
		Section(7, append(append([]byte{1, 6}, "_start"...), 0, 0)...),
		Section(10, append(count, bytes.Repeat(function, n)...)...))
}

// Reactor returns a module that exports nothing.
func Reactor() []byte { return Module(types, functions, memory, code(Nothing)) }

// Memory returns a WASI command with pages of memory, less than 2^14.
func Memory(pages int) []byte {
	return Module(types, functions, Section(5, 1, 0, byte(pages)|0x80, byte(pages>>7)), exports, code(Nothing))
}

// Importing returns a WASI command that imports functions, each a pair of a
// module's name and its own.
func Importing(imports ...[2]string) []byte {
	content := []byte{byte(len(imports))}
	for _, i := range imports {
		for _, name := range i {
			content = append(append(content, byte(len(name))), name...)
		}
		content = append(content, 0, 0) // a function of type 0
	}
	export := Section(7, append(append([]byte{1, 6}, "_start"...), 0, byte(len(imports)))...)
	return Module(types, Section(2, content...), functions, memory, export, code(Nothing))
}

var puppet = sync.OnceValues(func() ([]byte, error) { return build("puppet") })

// Puppet returns the module of test/guests/puppet, compiled once per process.
func Puppet() ([]byte, error) { return puppet() }

var documents = sync.OnceValues(func() ([]byte, error) { return build("documents") })

// Documents returns the module of test/guests/documents, compiled once per
// process.
func Documents() ([]byte, error) { return documents() }

// build compiles a guest with the Go that runs the test.
func build(name string) (module []byte, err error) {
	_, here, _, _ := goruntime.Caller(0)
	source := filepath.Join(filepath.Dir(here), "../../../test/guests", name)
	dir, err := os.MkdirTemp("", "wasmtest-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	out := filepath.Join(dir, name+".wasm")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, ".")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build guest %s: %w\n%s", name, err, text)
	}
	return os.ReadFile(out)
}
