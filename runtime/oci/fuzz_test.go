package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
)

// FuzzUnpack: whatever a layer is, unpacking ends, stays in its folder and
// within its bounds, and blames nobody but the layer.
func FuzzUnpack(f *testing.F) {
	f.Add(tarOf(f, file{name: "fn.wasm", content: module}))
	f.Add(tarOf(f, file{name: "./a/../fn.wasm", content: module}, file{name: "fn.wasm/below"}))
	f.Add(tarOf(f, file{name: "a/b"}, file{name: "a/.wh..wh..opq"}, file{name: ".wh.a"}))
	f.Add(tarOf(f, file{name: "up", kind: tar.TypeSymlink, link: "../../.."}, file{name: "up/x", content: module}))
	f.Add(tarOf(f, file{name: "hard", kind: tar.TypeLink, link: "../../etc/passwd"}))
	f.Add([]byte("no tar"))
	f.Fuzz(func(t *testing.T, archive []byte) {
		around := t.TempDir()
		if err := os.Mkdir(filepath.Join(around, "root"), 0o700); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(filepath.Join(around, "root"))
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		err = (&unpacker{root: root}).apply(&bounded{r: bytes.NewReader(archive), left: 1 << 20, limit: 1 << 20})
		if broken := new(contentError); err != nil && !errors.As(err, &broken) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v, want an error of the layer's", err)
		}
		beside, err := os.ReadDir(around)
		if err != nil || len(beside) != 1 {
			t.Errorf("beside the folder there is %v (%v)", beside, err)
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
