package oci

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// headerSize is the size of a wasm file's magic and version.
const headerSize = 8

var (
	magic = []byte("\x00asm")
	// core is the version of core modules; component is the version and layer
	// of the component model's binaries as of WASI preview 2. See
	// https://github.com/WebAssembly/component-model/blob/main/design/mvp/Binary.md
	core      = []byte{1, 0, 0, 0}
	component = []byte{0x0d, 0, 1, 0}
)

// checkHeader returns an error unless head, the first bytes of a file, begins a
// core wasm module.
func checkHeader(head []byte) error {
	head = head[:min(len(head), headerSize)]
	switch {
	case !bytes.HasPrefix(head, magic):
		return fmt.Errorf("not a wasm module: starts with % x", head)
	case bytes.HasSuffix(head, core) && len(head) == headerSize:
		return nil
	case bytes.HasSuffix(head, component) && len(head) == headerSize:
		return errors.New("a WASI p2 component, which is not supported: build a core module, as for target wasm32-wasip1")
	default:
		return fmt.Errorf("not a core wasm module: version % x", head[len(magic):])
	}
}

// CheckModule returns an error unless module is framed as a core wasm module:
// the header, then whole sections to the end. It doesn't look into the sections,
// which compiling does; it finds the wrong file and the truncated one.
func CheckModule(module []byte) error {
	if err := checkHeader(module); err != nil {
		return err
	}
	for at := headerSize; at < len(module); {
		size, n := binary.Uvarint(module[at+1:])
		if n <= 0 || size > uint64(len(module)-at-1-n) {
			return fmt.Errorf("truncated wasm module: section %d at byte %d doesn't end within its %d bytes", module[at], at, len(module))
		}
		at += 1 + n + int(size)
	}
	return nil
}
