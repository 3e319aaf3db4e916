package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"path"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
)

// FuzzFindFile: whatever a layer is, the walker ends, keeps at most one file,
// reads no more of it than is there, and hands over only what it says it found.
func FuzzFindFile(f *testing.F) {
	f.Add(tarOf(f, file{name: "fn.wasm", content: module}), "fn.wasm")
	f.Add(tarOf(f, file{name: "./a/../fn.wasm", content: module}), "fn.wasm")
	f.Add(tarOf(f, file{name: "a/.wh..wh..opq"}, file{name: ".wh.a"}), "a/b")
	f.Add(tarOf(f, file{name: "fn.wasm", kind: tar.TypeSymlink}), "fn.wasm")
	f.Add([]byte("no tar"), "x")
	f.Fuzz(func(t *testing.T, layer []byte, name string) {
		if modulePath(name, "/") != name {
			t.Skip() // not a clean path, as findFile wants it
		}
		kept := 0
		at, err := findFile(&bounded{r: bytes.NewReader(layer), left: 1 << 20, limit: 1 << 20}, name, func(r io.Reader) error {
			kept++
			n, err := io.Copy(io.Discard, &bounded{r: r, left: 1 << 16, limit: 1 << 16})
			if n > 1<<16 {
				t.Errorf("%d bytes got past the bound", n)
			}
			return err
		})
		if kept > 1 || err == nil && (kept == 1) != (at == present) {
			t.Errorf("kept %d files, found %v, %v", kept, at, err)
		}
	})
}

// FuzzDescribe: whatever a config says, the module's path stays in the image.
func FuzzDescribe(f *testing.F) {
	f.Add([]byte(`{"config":{"Entrypoint":["/fn.wasm","-x"],"Cmd":["y"],"Env":["A=b"],"Labels":{"wisp.dev/abi":"argv"},"WorkingDir":"/app"}}`))
	f.Add([]byte(`{"config":{"Entrypoint":["../../etc/passwd"]}}`))
	f.Add([]byte(`{"config":{"Cmd":["./x"],"WorkingDir":"../.."}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		config, err := v1.ParseConfigFile(bytes.NewReader(text))
		if err != nil {
			t.Skip()
		}
		img, err := describe(config.Config)
		if err != nil {
			return
		}
		if p := img.ModulePath; p == "" || path.Clean("/"+p) != "/"+p || strings.HasPrefix(p, "../") || p == ".." {
			t.Errorf("path %q", p)
		}
		if n := len(config.Config.Entrypoint) + len(config.Config.Cmd); len(img.Args) != n-1 {
			t.Errorf("%d arguments of %d words", len(img.Args), n)
		}
	})
}

// FuzzCheckModule: what passes is a header and whole sections, and stays so
// with one more.
func FuzzCheckModule(f *testing.F) {
	f.Add(module)
	f.Add(wasmtest.Component)
	f.Add(wasmtest.Module(wasmtest.Section(0, 1, 'x')))
	f.Fuzz(func(t *testing.T, m []byte) {
		if CheckModule(m) != nil {
			return
		}
		section := wasmtest.Section(0, 1, 'x')
		longer := append(bytes.Clone(m), section...)
		if err := CheckModule(longer); err != nil {
			t.Errorf("% x is whole, but not with one more section: %v", m, err)
		}
		if CheckModule(longer[:len(longer)-1]) == nil {
			t.Errorf("% x is whole without its last byte", longer)
		}
	})
}

func TestBounded(t *testing.T) {
	for _, size := range []int{0, 9, 10, 11, 1000} {
		got, err := io.ReadAll(&bounded{r: strings.NewReader(strings.Repeat("x", size)), left: 10, limit: 10})
		broken := new(contentError)
		if len(got) != min(size, 10) || errors.As(err, &broken) != (size > 10) {
			t.Errorf("%d bytes: read %d, %v", size, len(got), err)
		}
	}
}
