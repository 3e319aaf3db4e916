package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"go.uber.org/goleak"

	"github.com/wisp-serving/wisp/runtime/api"
	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testRegistry is a real registry whose requests a test can see and change.
type testRegistry struct {
	host string
	// intercept, unless nil, may answer instead of the registry.
	intercept atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]

	mu       sync.Mutex
	requests []string
}

func newRegistry(t testing.TB) *testRegistry {
	t.Helper()
	r := &testRegistry{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		r.requests = append(r.requests, q.Method+" "+q.URL.Path)
		r.mu.Unlock()
		if f := r.intercept.Load(); f == nil || !(*f)(w, q) {
			inner.ServeHTTP(w, q)
		}
	}))
	t.Cleanup(func() {
		srv.Close()
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		remote.DefaultTransport.(*http.Transport).CloseIdleConnections()
	})
	r.host = strings.TrimPrefix(srv.URL, "http://")
	return r
}

func (r *testRegistry) onRequest(f func(http.ResponseWriter, *http.Request) bool) {
	r.intercept.Store(&f)
}

// protect lets only this user in.
func (r *testRegistry) protect(user, password string) {
	r.onRequest(func(w http.ResponseWriter, q *http.Request) bool {
		if u, p, ok := q.BasicAuth(); ok && u == user && p == password {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
}

// count returns how many requests so far contain what.
func (r *testRegistry) count(what string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, q := range r.requests {
		if strings.Contains(q, what) {
			n++
		}
	}
	return n
}

func newStore(t testing.TB, size int64) *Store {
	t.Helper()
	s, err := NewStore(StoreConfig{Dir: t.TempDir(), ModuleSize: size, Budget: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

var module = wasmtest.Command(wasmtest.Nothing)

func moduleDigest(m []byte) string {
	sum := sha256.Sum256(m)
	return digestOf(sum[:])
}

func pushModule(t testing.TB, r *testRegistry, tag string) (ref, digest string) {
	t.Helper()
	ref = r.host + "/fn:" + tag
	pushed, err := Push(t.Context(), PushConfig{
		Reference: ref, Module: module, FileName: "fn.wasm", Labels: map[string]string{"wisp.dev/abi": "argv"},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, digest, _ = strings.Cut(pushed, "@")
	return ref, digest
}

func TestPushThenPull(t *testing.T) {
	r := newRegistry(t)
	ref, digest := pushModule(t, r, "v1")
	if _, again := pushModule(t, r, "v2"); again != digest {
		t.Errorf("the same module gave %s, then %s", digest, again)
	}
	s := newStore(t, 1<<20)
	want := Image{
		Reference: r.host + "/fn@" + digest,
		Digest:    digest,
		Module: Module{
			ModuleDigest: moduleDigest(module),
			ModulePath:   "fn.wasm",
			ModuleSize:   int64(len(module)),
		},
		Labels: map[string]string{"wisp.dev/abi": "argv"},
	}
	for i, name := range []string{ref, r.host + "/fn@" + digest, r.host + "/fn:v2"} {
		got, err := s.Pull(t.Context(), Request{Reference: name})
		if err != nil {
			t.Fatal(err)
		}
		if want.Cached = i > 0; got.Size == 0 {
			t.Error("the image has no size")
		}
		got.Size = 0
		if diff := cmp.Diff(got, want, cmp.FilterValues(func(a, b []string) bool { return len(a)+len(b) == 0 }, cmp.Ignore())); diff != "" {
			t.Errorf("pull %s: got -, want +:\n%s", name, diff)
		}
	}
	if n := r.count("GET /v2/fn/blobs"); n != 2 {
		t.Errorf("%d blobs were fetched, want 2 (config and layer, once)", n)
	}
	got, err := s.Module(want.ModuleDigest)
	if err != nil || !bytes.Equal(got, module) {
		t.Errorf("module: got %d bytes, %v; want %d", len(got), err, len(module))
	}
	if want.FileName() != "fn.wasm" {
		t.Errorf("file name %q", want.FileName())
	}
}

func TestPulledDigestNeedsNoRegistry(t *testing.T) {
	r := newRegistry(t)
	ref, digest := pushModule(t, r, "v1")
	s := newStore(t, 1<<20)
	if _, err := s.Pull(t.Context(), Request{Reference: ref}); err != nil {
		t.Fatal(err)
	}
	reopened, err := NewStore(StoreConfig{Dir: s.dir, ModuleSize: 1 << 20, Budget: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer reopened.Close()
	before := r.count("")
	if _, err := reopened.Pull(t.Context(), Request{Reference: r.host + "/fn@" + digest}); err != nil {
		t.Error(err)
	}
	if n := r.count("") - before; n != 0 {
		t.Errorf("%d requests for an image in the store", n)
	}
}

// TestPushedForms pulls what was pushed in each form, and imports the same: a
// node and `wisp run` must find one thing.
func TestPushedForms(t *testing.T) {
	tests := map[string]struct {
		cfg   PushConfig
		want  Image
		files map[string]string
	}{
		"an entrypoint, arguments and files": {
			PushConfig{Entrypoint: "/bin/tool.wasm", Args: []string{"-v", "x"}, Files: []File{{"/etc/motd", []byte("hello")}, {"data/a", []byte("1")}}},
			Image{Module: Module{ModulePath: "bin/tool.wasm"}, Args: []string{"-v", "x"}, HasRoot: true},
			map[string]string{"etc/motd": "hello", "data/a": "1"},
		},
		"an artifact": {
			PushConfig{Artifact: true, Labels: map[string]string{"wisp.dev/abi": "argv"}},
			Image{Module: Module{ModulePath: "fn.wasm"}, Labels: map[string]string{"wisp.dev/abi": "argv"}},
			nil,
		},
		"an artifact with an entrypoint": {
			PushConfig{Artifact: true, Entrypoint: "/bin/tool.wasm"},
			Image{Module: Module{ModulePath: "tool.wasm"}},
			nil,
		},
	}
	r := newRegistry(t)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			test.cfg.Module, test.cfg.FileName, test.cfg.Reference = module, "fn.wasm", r.host+"/form:v1"
			test.want.ModuleDigest, test.want.ModuleSize = moduleDigest(module), int64(len(module))
			reference, err := Push(t.Context(), test.cfg)
			if err != nil {
				t.Fatal(err)
			}
			pulled, err := newStore(t, 1<<20).Pull(t.Context(), Request{Reference: reference})
			if err != nil {
				t.Fatal(err)
			}
			built, err := Build(test.cfg)
			if err != nil {
				t.Fatal(err)
			}
			imported, err := newStore(t, 1<<20).Import(built)
			if err != nil {
				t.Fatal(err)
			}
			if pulled.Reference != reference || imported.Reference != pulled.Digest || imported.Size != pulled.Size {
				t.Errorf("pushed %s, pulled %+v, imported %+v", reference, pulled, imported)
			}
			for _, got := range []Image{pulled, imported} {
				found := map[string]string{}
				if got.HasRoot {
					found = tree(t, got.Root)
				}
				for path, want := range test.files {
					if found[path] != want {
						t.Errorf("%s holds %q, want %q", path, found[path], want)
					}
				}
				got.Reference, got.Digest, got.Root, got.Size = "", "", "", 0
				if diff := cmp.Diff(test.want, got, cmp.FilterValues(func(a, b []string) bool { return len(a)+len(b) == 0 }, cmp.Ignore())); diff != "" {
					t.Errorf("image (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestImportIsHeldToTheLimits(t *testing.T) {
	image, err := Build(PushConfig{FileName: "fn.wasm", Module: module, Files: []File{{"big", make([]byte, 4<<20)}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newStore(t, 1<<20).Import(image); !errors.Is(err, api.ErrUnusable) {
		t.Errorf("got %v, want ErrUnusable", err)
	}
}

// TestPullWithTheUsersCredentials reads them where docker has them, and doesn't
// for a pod.
func TestPullWithTheUsersCredentials(t *testing.T) {
	r := newRegistry(t)
	ref, _ := pushModule(t, r, "v1")
	r.protect("ada", "secret")
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	auth := fmt.Sprintf(`{"auths":{%q:{"username":"ada","password":"secret"}}}`, r.host)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(auth), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newStore(t, 1<<20).Pull(t.Context(), Request{Reference: ref}); !errors.Is(err, api.ErrImagePull) {
		t.Errorf("a pod's pull: got %v, want ErrImagePull", err)
	}
	if _, err := newStore(t, 1<<20).Pull(t.Context(), Request{Reference: ref, Own: true}); err != nil {
		t.Errorf("the user's own pull: %v", err)
	}
	if _, err := Push(t.Context(), PushConfig{Reference: r.host + "/fn:v2", Module: module, FileName: "fn.wasm"}); err != nil {
		t.Errorf("a push: %v", err)
	}
}

func TestPushRefuses(t *testing.T) {
	tests := map[string]struct {
		cfg  PushConfig
		want string
	}{
		"component":      {PushConfig{Reference: "localhost:1/x", FileName: "x.wasm", Module: wasmtest.Component}, "component"},
		"not wasm":       {PushConfig{Reference: "localhost:1/x", FileName: "x.wasm", Module: []byte("\x7fELF....")}, "starts with 7f 45 4c 46"},
		"empty":          {PushConfig{Reference: "localhost:1/x", FileName: "x.wasm"}, "not a wasm module"},
		"truncated":      {PushConfig{Reference: "localhost:1/x", FileName: "x.wasm", Module: module[:len(module)-1]}, "truncated"},
		"path":           {PushConfig{Reference: "localhost:1/x", FileName: "../x.wasm", Module: module}, "plain file name"},
		"dots":           {PushConfig{Reference: "localhost:1/x", FileName: "..", Module: module}, "plain file name"},
		"bad reference":  {PushConfig{Reference: "UPPER", FileName: "x.wasm", Module: module}, "image name"},
		"unreachable":    {PushConfig{Reference: "127.0.0.1:1/x", FileName: "x.wasm", Module: module}, "connection refused"},
		"future version": {PushConfig{Reference: "localhost:1/x", FileName: "x.wasm", Module: []byte("\x00asm\x02\x00\x00\x00")}, "version 02 00 00 00"},
		"root":           {PushConfig{Reference: "localhost:1/x", FileName: "x.wasm", Module: module, Entrypoint: "/"}, `entrypoint = "/", must be`},
		"file at root":   {PushConfig{Reference: "localhost:1/x", FileName: "x.wasm", Module: module, Files: []File{{Path: "/.."}}}, `file path = "/..", must be`},
		"file twice":     {PushConfig{Reference: "localhost:1/x", FileName: "x.wasm", Module: module, Files: []File{{Path: "a"}, {Path: "/a"}}}, `"/a", must not be there already`},
		"over module":    {PushConfig{Reference: "localhost:1/x", FileName: "x.wasm", Module: module, Files: []File{{Path: "/x.wasm"}}}, `"/x.wasm", must not be there already`},
		"whiteout":       {PushConfig{Reference: "localhost:1/x", FileName: "x.wasm", Module: module, Files: []File{{Path: "a/.wh.b"}}}, "must not begin with .wh."},
		"artifact files": {PushConfig{Reference: "localhost:1/x", FileName: "x.wasm", Module: module, Artifact: true, Files: []File{{Path: "a"}}}, "an artifact holds a module and nothing else"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Push(t.Context(), tc.cfg)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
	remote.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

// file is one entry of a layer.
type file struct {
	name    string
	content []byte
	kind    byte
	link    string
}

func layer(t testing.TB, files ...file) v1.Layer {
	t.Helper()
	archive := tarOf(t, files...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: f.kind, Size: int64(len(f.content)), Mode: 0o644}
		if f.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		h.Linkname = f.link
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func image(t testing.TB, config v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64", Config: config, RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, layers...); err != nil {
		t.Fatal(err)
	}
	return img
}

// artifactOf returns a Wasm OCI artifact with one layer.
func artifactOf(t testing.TB, module v1.Layer, layer, manifest map[string]string) v1.Image {
	t.Helper()
	img, err := mutate.Append(empty.Image, mutate.Addendum{Layer: module, Annotations: layer})
	if err != nil {
		t.Fatal(err)
	}
	return mutate.ConfigMediaType(mutate.Annotations(img, manifest).(v1.Image), wasmConfig)
}

func entrypoint(argv ...string) v1.Config { return v1.Config{Entrypoint: argv} }

func write(t testing.TB, ref string, what remote.Taggable) {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	switch w := what.(type) {
	case v1.Image:
		err = remote.Write(parsed, w)
	case v1.ImageIndex:
		err = remote.WriteIndex(parsed, w)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestPullFindsTheModule(t *testing.T) {
	other := wasmtest.Command(wasmtest.Trap)
	plain := layer(t, file{name: "fn.wasm", content: module})
	on := func(os, arch string) v1.Descriptor {
		return v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: arch}}
	}
	native := image(t, entrypoint("fn.wasm"), layer(t, file{name: "fn.wasm", content: other}))
	wasm := image(t, entrypoint("fn.wasm"), plain)
	tests := map[string]struct {
		image remote.Taggable
		path  string
		args  []string
	}{
		"name":                      {image(t, entrypoint("fn.wasm"), plain), "fn.wasm", nil},
		"leading slash":             {image(t, entrypoint("/fn.wasm"), plain), "fn.wasm", nil},
		"leading dot":               {image(t, entrypoint("./fn.wasm"), plain), "fn.wasm", nil},
		"CMD alone":                 {image(t, v1.Config{Cmd: []string{"fn.wasm", "-x"}}, plain), "fn.wasm", []string{"-x"}},
		"ENTRYPOINT and CMD":        {image(t, v1.Config{Entrypoint: []string{"fn.wasm", "-x"}, Cmd: []string{"y"}}, plain), "fn.wasm", []string{"-x", "y"}},
		"folder":                    {image(t, entrypoint("/bin/fn.wasm"), layer(t, file{name: "./bin/fn.wasm", content: module})), "bin/fn.wasm", nil},
		"working directory":         {image(t, v1.Config{Entrypoint: []string{"./fn.wasm"}, WorkingDir: "/app"}, layer(t, file{name: "app/fn.wasm", content: module})), "app/fn.wasm", nil},
		"upper layer wins":          {image(t, entrypoint("fn.wasm"), layer(t, file{name: "fn.wasm", content: other}), plain), "fn.wasm", nil},
		"lower layer":               {image(t, entrypoint("fn.wasm"), plain, layer(t, file{name: "readme"})), "fn.wasm", nil},
		"file beside its whiteout":  {image(t, entrypoint("a/fn.wasm"), layer(t, file{name: "a/.wh..wh..opq"}, file{name: "a/fn.wasm", content: module})), "a/fn.wasm", nil},
		"twice in a layer":          {image(t, entrypoint("fn.wasm"), layer(t, file{name: "fn.wasm", content: other}, file{name: "fn.wasm", content: module})), "fn.wasm", nil},
		"symlink":                   {image(t, entrypoint("run"), layer(t, file{name: "bin/fn.wasm", content: module}, file{name: "run", kind: tar.TypeSymlink, link: "/bin/fn.wasm"})), "run", nil},
		"hard link":                 {image(t, entrypoint("run"), layer(t, file{name: "fn.wasm", content: module}, file{name: "run", kind: tar.TypeLink, link: "fn.wasm"})), "run", nil},
		"artifact":                  {mutate.ConfigMediaType(image(t, v1.Config{}, static.NewLayer(module, wasmLayer)), wasmConfig), "module.wasm", nil},
		"older artifact":            {image(t, v1.Config{}, static.NewLayer(module, wasmContentType)), "module.wasm", nil},
		"index, wasip1/wasm":        {mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: native, Descriptor: on("linux", "amd64")}, mutate.IndexAddendum{Add: wasm, Descriptor: on("wasip1", "wasm")}), "fn.wasm", nil},
		"index, wasi/wasm":          {mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: native, Descriptor: on("linux", "amd64")}, mutate.IndexAddendum{Add: wasm, Descriptor: on("wasi", "wasm")}), "fn.wasm", nil},
		"index, the only entry":     {mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: wasm, Descriptor: on("linux", "amd64")}), "fn.wasm", nil},
		"index, no platform at all": {mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: wasm}), "fn.wasm", nil},
	}
	r := newRegistry(t)
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			ref := r.host + "/case:v1"
			write(t, ref, tc.image)
			got, err := newStore(t, 1<<20).Pull(t.Context(), Request{Reference: ref})
			if err != nil {
				t.Fatal(err)
			}
			if got.ModuleDigest != moduleDigest(module) || got.ModulePath != tc.path || strings.Join(got.Args, " ") != strings.Join(tc.args, " ") {
				t.Errorf("got %+v, want path %s, args %q, module %s", got, tc.path, tc.args, moduleDigest(module))
			}
			top, err := tc.image.(interface{ Digest() (v1.Hash, error) }).Digest()
			if err != nil || got.Digest != top.String() {
				t.Errorf("digest %s, want that of what the reference names, %s (%v)", got.Digest, top, err)
			}
		})
	}
}

func TestPullRefuses(t *testing.T) {
	good := file{name: "fn.wasm", content: module}
	other := static.NewLayer(module, "application/x-other")
	big := make([]byte, 1<<20)
	copy(big, module)
	tests := map[string]struct {
		image remote.Taggable
		want  string
	}{
		"layer type":         {image(t, entrypoint("fn.wasm"), other), `not a wasm image: layer media type "application/x-other"`},
		"empty artifact":     {mutate.ConfigMediaType(image(t, v1.Config{}, other), wasmConfig), `not a wasm artifact: none of 1 layers has media type "application/wasm"`},
		"two in an artifact": {image(t, v1.Config{}, static.NewLayer(module, wasmLayer), static.NewLayer(append(bytes.Clone(module), wasmtest.Section(0, 1, 'x')...), wasmLayer)), "with 2 modules"},
		"component artifact": {image(t, v1.Config{}, static.NewLayer(wasmtest.Component, wasmLayer)), "a WASI p2 component"},
		"large artifact":     {image(t, v1.Config{}, static.NewLayer(big, wasmLayer)), "together"},
		"foreign layer":      {image(t, entrypoint("fn.wasm"), static.NewLayer(module, types.DockerForeignLayer)), "foreign"},
		"no layers":          {image(t, entrypoint("fn.wasm")), "0 layers"},
		"no entrypoint":      {image(t, v1.Config{}, layer(t, good)), "neither ENTRYPOINT nor CMD"},
		"empty entrypoint":   {image(t, entrypoint(""), layer(t, good)), "ENTRYPOINT names no file"},
		"root":               {image(t, entrypoint("/.."), layer(t, good)), "ENTRYPOINT names no file"},
		"missing":            {image(t, entrypoint("/other.wasm"), layer(t, good)), `entrypoint "/other.wasm" not found in image (platform linux/amd64)`},
		"removed":            {image(t, entrypoint("fn.wasm"), layer(t, good), layer(t, file{name: ".wh.fn.wasm"})), "not found"},
		"folder removed":     {image(t, entrypoint("a/fn.wasm"), layer(t, file{name: "a/fn.wasm", content: module}), layer(t, file{name: ".wh.a"})), "not found"},
		"folder opaque":      {image(t, entrypoint("a/fn.wasm"), layer(t, file{name: "a/fn.wasm", content: module}), layer(t, file{name: "a/.wh..wh..opq"})), "not found"},
		"native":             {image(t, entrypoint("sh"), layer(t, file{name: "sh", content: []byte("\x7fELF\x02\x01\x01\x00....")})), `entrypoint "sh": not a wasm module: starts with 7f 45 4c 46`},
		"component":          {image(t, entrypoint("fn.wasm"), layer(t, file{name: "fn.wasm", content: wasmtest.Component})), "a WASI p2 component"},
		"empty file":         {image(t, entrypoint("fn.wasm"), layer(t, file{name: "fn.wasm"})), "not a wasm module"},
		"dangling symlink":   {image(t, entrypoint("fn.wasm"), layer(t, file{name: "fn.wasm", kind: tar.TypeSymlink, link: "elsewhere"})), "not found"},
		"symlink outside":    {image(t, entrypoint("fn.wasm"), layer(t, file{name: "fn.wasm", kind: tar.TypeSymlink, link: "../../../../../../etc/passwd"})), "escapes"},
		"file as a folder":   {image(t, entrypoint("fn.wasm"), layer(t, good, file{name: "fn.wasm/x"}, file{name: "fn.wasm/x/y"})), "not a directory"},
		"hard link outside":  {image(t, entrypoint("fn.wasm"), layer(t, file{name: "fn.wasm", kind: tar.TypeLink, link: "/../../etc/passwd"})), "etc/passwd"},
		"directory":          {image(t, entrypoint("fn.wasm"), layer(t, file{name: "fn.wasm", kind: tar.TypeDir})), "not a regular file"},
		"no tar":             {image(t, entrypoint("fn.wasm"), static.NewLayer(bytes.Repeat([]byte("no tar "), 200), types.OCIUncompressedLayer)), "invalid tar header"},
		"module too large":   {image(t, entrypoint("fn.wasm"), layer(t, file{name: "fn.wasm", content: big})), "guest.moduleSize = 65536"},
		"layers too large":   {image(t, entrypoint("fn.wasm"), static.NewLayer(make([]byte, 40<<10), types.OCIUncompressedLayer), static.NewLayer(make([]byte, 40<<10+1), types.OCIUncompressedLayer)), "together"},
		"bomb beside it":     {image(t, entrypoint("fn.wasm"), layer(t, good, file{name: "zeros", content: make([]byte, 4<<20)})), "unpacks to more than"},
		"index without any":  {mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: image(t, entrypoint("fn.wasm"), layer(t, good)), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}}, mutate.IndexAddendum{Add: image(t, entrypoint("x"), layer(t, good)), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}}), "found linux/amd64, linux/arm64"},
		"empty index":        {empty.Index, "no entry of 0"},
	}
	r := newRegistry(t)
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			ref := r.host + "/case:v1"
			write(t, ref, tc.image)
			s := newStore(t, 64<<10)
			_, err := s.Pull(t.Context(), Request{Reference: ref})
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "pull "+ref+": ") {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
			if !errors.Is(err, api.ErrUnusable) || errors.Is(err, api.ErrImagePull) {
				t.Errorf("%v: want ErrUnusable alone", err)
			}
			if left := files(t, s); len(left) > 0 {
				t.Errorf("left in the store: %v", left)
			}
		})
	}
}

func files(t *testing.T, s *Store) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestPullBadName(t *testing.T) {
	_, err := newStore(t, 1<<20).Pull(t.Context(), Request{Reference: "http://x/y"})
	if !errors.Is(err, api.ErrUnusable) || !strings.Contains(err.Error(), "image name") {
		t.Errorf("got %v, want ErrUnusable", err)
	}
}

// endless answers with a manifest that goes on for as long as it is read.
func endless(w http.ResponseWriter, q *http.Request) {
	w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
	for q.Context().Err() == nil {
		if _, err := w.Write(make([]byte, 1<<20)); err != nil {
			return
		}
	}
}

func TestPullRegistryFaults(t *testing.T) {
	isBlob := func(q *http.Request) bool {
		return q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/blobs/")
	}
	tests := map[string]struct {
		answer func(w http.ResponseWriter, q *http.Request) bool
		want   string
	}{
		"unknown tag": {func(w http.ResponseWriter, q *http.Request) bool {
			if strings.Contains(q.URL.Path, "/manifests/") {
				http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown tag"}]}`, http.StatusNotFound)
				return true
			}
			return false
		}, "MANIFEST_UNKNOWN"},
		"denied": {func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusForbidden)
			return true
		}, "403"},
		"blob of other bytes": {func(w http.ResponseWriter, q *http.Request) bool {
			if !isBlob(q) {
				return false
			}
			_, _ = w.Write(bytes.Repeat([]byte("x"), 4096))
			return true
		}, "verif"},
		"blob cut short": {func(w http.ResponseWriter, q *http.Request) bool {
			if !isBlob(q) {
				return false
			}
			w.Header().Set("Transfer-Encoding", "chunked")
			_, _ = w.Write([]byte("{"))
			return true
		}, "verif"},
		"manifest without end": {func(w http.ResponseWriter, q *http.Request) bool {
			if !strings.Contains(q.URL.Path, "/manifests/") || q.Method != http.MethodGet {
				return false
			}
			endless(w, q)
			return true
		}, "too large"},
		"manifest without end elsewhere": {func(w http.ResponseWriter, q *http.Request) bool {
			switch {
			case q.URL.Path == "/elsewhere":
				endless(w, q)
			case strings.Contains(q.URL.Path, "/manifests/") && q.Method == http.MethodGet:
				http.Redirect(w, q, "/elsewhere", http.StatusTemporaryRedirect)
			default:
				return false
			}
			return true
		}, "too large"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			ref, _ := pushModule(t, r, "v1")
			r.onRequest(tc.answer)
			s := newStore(t, 1<<20)
			_, err := s.Pull(t.Context(), Request{Reference: ref})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
			if !errors.Is(err, api.ErrImagePull) || errors.Is(err, api.ErrUnusable) {
				t.Errorf("%v: want ErrImagePull alone", err)
			}
			if left := files(t, s); len(left) > 0 {
				t.Errorf("left in the store: %v", left)
			}
			// The fault passes, and nothing of it was kept.
			r.intercept.Store(nil)
			if _, err := s.Pull(t.Context(), Request{Reference: ref}); err != nil {
				t.Errorf("after the fault: %v", err)
			}
		})
	}
}

// A registry can't pass off other content under a layer's digest, not even as
// the reason why an image is refused.
func TestPullVerifiesBeforeItJudges(t *testing.T) {
	r := newRegistry(t)
	img := image(t, entrypoint("fn.wasm"), layer(t, file{name: "fn.wasm", content: module}))
	ref := r.host + "/fn:v1"
	write(t, ref, img)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, _ := layers[0].Digest()
	size, _ := layers[0].Size()
	forged := tarOf(t, file{name: "fn.wasm", content: []byte("\x7fELF")})[:size]
	r.onRequest(func(w http.ResponseWriter, q *http.Request) bool {
		if !strings.HasSuffix(q.URL.Path, digest.String()) {
			return false
		}
		_, _ = w.Write(forged)
		return true
	})
	if _, err := newStore(t, 1<<20).Pull(t.Context(), Request{Reference: ref}); !errors.Is(err, api.ErrImagePull) || errors.Is(err, api.ErrUnusable) {
		t.Errorf("got %v, want ErrImagePull", err)
	}
}

func TestPullUnreachable(t *testing.T) {
	_, err := newStore(t, 1<<20).Pull(t.Context(), Request{Reference: "127.0.0.1:1/fn:v1"})
	if !errors.Is(err, api.ErrImagePull) {
		t.Errorf("got %v, want ErrImagePull", err)
	}
}

// gate lets a test hold back the blobs of a registry.
type gate struct {
	reached chan struct{} // a blob was asked for
	open    chan struct{} // closed to let all through
	gone    chan struct{} // the puller hung up
}

func (r *testRegistry) gate() *gate {
	g := &gate{make(chan struct{}, 100), make(chan struct{}), make(chan struct{}, 100)}
	r.onRequest(func(_ http.ResponseWriter, q *http.Request) bool {
		if q.Method != http.MethodGet || !strings.Contains(q.URL.Path, "/blobs/") {
			return false
		}
		g.reached <- struct{}{}
		select {
		case <-g.open:
		case <-q.Context().Done():
			g.gone <- struct{}{}
		}
		return false
	})
	return g
}

func waitFor(t *testing.T, s *Store, callers int) {
	t.Helper()
	for {
		s.mu.Lock()
		n := 0
		for _, p := range s.pulls {
			n += p.waiting
		}
		s.mu.Unlock()
		if n == callers {
			return
		}
		goruntime.Gosched()
	}
}

func TestPullsAreJoined(t *testing.T) {
	r := newRegistry(t)
	ref, _ := pushModule(t, r, "v1")
	s := newStore(t, 1<<20)
	g := r.gate()
	const callers = 20
	errs := make(chan error, callers)
	first, leave := context.WithCancel(t.Context())
	go func() { _, err := s.Pull(first, Request{Reference: ref}); errs <- err }()
	<-g.reached
	for range callers - 1 {
		go func() { _, err := s.Pull(t.Context(), Request{Reference: ref}); errs <- err }()
	}
	waitFor(t, s, callers)
	// That the first caller leaves is nothing to the others.
	leave()
	if err := <-errs; !errors.Is(err, context.Canceled) || errors.Is(err, api.ErrImagePull) {
		t.Errorf("the caller who left got %v", err)
	}
	close(g.open)
	for range callers - 1 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := r.count("GET /v2/fn/blobs"); n != 2 {
		t.Errorf("%d blobs were fetched, want 2", n)
	}
}

func TestPullEndsWithItsLastCaller(t *testing.T) {
	r := newRegistry(t)
	ref, _ := pushModule(t, r, "v1")
	s := newStore(t, 1<<20)
	g := r.gate()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := s.Pull(ctx, Request{Reference: ref}); done <- err }()
	<-g.reached
	cancel()
	<-g.gone
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	close(g.open)
	if _, err := s.Pull(t.Context(), Request{Reference: ref}); err != nil {
		t.Errorf("the next caller: %v", err)
	}
}

func TestCloseEndsPulls(t *testing.T) {
	r := newRegistry(t)
	ref, _ := pushModule(t, r, "v1")
	s := newStore(t, 1<<20)
	g := r.gate()
	done := make(chan error, 1)
	go func() { _, err := s.Pull(t.Context(), Request{Reference: ref}); done <- err }()
	<-g.reached
	s.Close()
	if err := <-done; !errors.Is(err, api.ErrImagePull) {
		t.Errorf("got %v, want ErrImagePull", err)
	}
	if _, err := s.Pull(t.Context(), Request{Reference: ref}); !errors.Is(err, errClosed) {
		t.Errorf("after Close: got %v", err)
	}
}

func TestDamagedModuleIsPulledAgain(t *testing.T) {
	r := newRegistry(t)
	ref, _ := pushModule(t, r, "v1")
	s := newStore(t, 1<<20)
	img, err := s.Pull(t.Context(), Request{Reference: ref})
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(module)
	damaged[len(damaged)-1] ^= 1
	if err := os.WriteFile(s.modulePath(img.ModuleDigest), damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Module(img.ModuleDigest); !errors.Is(err, api.ErrImagePull) || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("got %v, want ErrImagePull", err)
	}
	if _, err := s.Pull(t.Context(), Request{Reference: ref}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Module(img.ModuleDigest); err != nil || !bytes.Equal(got, module) {
		t.Errorf("after another pull: %d bytes, %v", len(got), err)
	}
}

func TestModuleNotInStore(t *testing.T) {
	s := newStore(t, 1<<20)
	for _, digest := range []string{moduleDigest(module), "", "sha256:../../etc/passwd", "../x"} {
		if _, err := s.Module(digest); !errors.Is(err, api.ErrImagePull) {
			t.Errorf("%q: got %v, want ErrImagePull", digest, err)
		}
	}
}

func TestInsecureRegistries(t *testing.T) {
	for ref, want := range map[string]string{
		"localhost:5000/x":          "http",
		"127.0.0.1:5000/x":          "http",
		"registry.example/x":        "https",
		"plain.example:5000/x":      "http",
		"plain.example/x":           "https",
		"registry.example:5000/x/y": "https",
		"evil/plain.example:5000":   "https", // Docker Hub's, with a tag
		"plain.example:5000/a/b@sha256:" + strings.Repeat("a", 64): "http",
	} {
		parsed, err := parseReference(ref, []string{"plain.example:5000"})
		if err != nil {
			t.Errorf("%s: %v", ref, err)
		} else if got := parsed.Context().Scheme(); got != want {
			t.Errorf("%s: by %s, want %s", ref, got, want)
		}
	}
}

// TestPrivateAuthority is about a registry whose certificate only a setting lets
// the store trust.
func TestPrivateAuthority(t *testing.T) {
	server := httptest.NewTLSServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	plain := newRegistry(t)
	source, _ := pushModule(t, plain, "v1")
	ref := strings.TrimPrefix(server.URL, "https://") + "/fn:v1"
	from, err := name.ParseReference(source)
	if err != nil {
		t.Fatal(err)
	}
	image, err := remote.Image(from)
	if err != nil {
		t.Fatal(err)
	}
	to, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(to, image, remote.WithTransport(server.Client().Transport)); err != nil {
		t.Fatal(err)
	}

	if _, err := newStore(t, 1<<20).Pull(t.Context(), Request{Reference: ref}); err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Errorf("got %v from a store that doesn't know the authority, want it to say so", err)
	}
	authorities := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(authorities, block, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := StoreConfig{Dir: t.TempDir(), ModuleSize: 1 << 20, Budget: 1 << 30, RegistryCA: authorities}
	s, err := NewStore(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if _, err := s.Pull(t.Context(), Request{Reference: ref}); err != nil {
		t.Error(err)
	}

	if err := os.WriteFile(authorities, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewStore(cfg); err == nil || !strings.Contains(err.Error(), "ca.pem has no certificate") {
		t.Errorf("got %v for a file without certificates", err)
	}
}
