package oci

import (
	"archive/tar"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/go-containerregistry/pkg/v1/static"

	"github.com/wisp-serving/wisp/runtime/api"
	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
)

// tree returns the files of a folder with what they hold, folders with a slash,
// links with where they point.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		switch {
		case entry.IsDir():
			found[name+"/"] = ""
		case entry.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			found[name] = "-> " + target
			return err
		default:
			content, err := os.ReadFile(path)
			found[name] = string(content)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func text(name, content string) file { return file{name: name, content: []byte(content)} }

func TestUnpack(t *testing.T) {
	dir := func(name string) file { return file{name: name, kind: tar.TypeDir} }
	link := func(name, to string) file { return file{name: name, kind: tar.TypeSymlink, link: to} }
	tests := map[string]struct {
		layers [][]file
		want   map[string]string
	}{
		"layers add up":                  {[][]file{{text("a/x", "1")}, {text("a/y", "2")}}, map[string]string{"a/": "", "a/x": "1", "a/y": "2"}},
		"the upper file wins":            {[][]file{{text("x", "1")}, {text("x", "2")}}, map[string]string{"x": "2"}},
		"a file replaces a folder":       {[][]file{{text("a/x", "1")}, {text("a", "2")}}, map[string]string{"a": "2"}},
		"a folder replaces a file":       {[][]file{{text("a", "1")}, {dir("a"), text("a/x", "2")}}, map[string]string{"a/": "", "a/x": "2"}},
		"a whiteout hides":               {[][]file{{text("a/x", "1"), text("a/y", "2")}, {text("a/.wh.x", "")}}, map[string]string{"a/": "", "a/y": "2"}},
		"an opaque folder hides all":     {[][]file{{text("a/x", "1")}, {text("a/y", "2"), text("a/.wh..wh..opq", "")}}, map[string]string{"a/": "", "a/y": "2"}},
		"a whiteout of nothing":          {[][]file{{text("no/.wh.x", ""), text("no/.wh..wh..opq", "")}}, map[string]string{}},
		"own files survive a whiteout":   {[][]file{{text("x", "1")}, {text("x", "2"), text(".wh.x", "")}}, map[string]string{"x": "2"}},
		"paths are cleaned":              {[][]file{{text("/../a/./x", "1")}}, map[string]string{"a/": "", "a/x": "1"}},
		"links from the root":            {[][]file{{text("a/b/x", "1"), link("a/b/l", "/a/b/x"), link("l", "/a")}}, map[string]string{"a/": "", "a/b/": "", "a/b/x": "1", "a/b/l": "-> ../../a/b/x", "l": "-> a"}},
		"a file through a link":          {[][]file{{text("a/x", "1"), link("l", "a")}, {text("l/y", "2")}}, map[string]string{"a/": "", "a/x": "1", "a/y": "2", "l": "-> a"}},
		"devices and pipes are left out": {[][]file{{{name: "dev/null", kind: tar.TypeChar}, {name: "p", kind: tar.TypeFifo}, text("x", "1")}}, map[string]string{"x": "1"}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			root, err := os.OpenRoot(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			u := &unpacker{root: root}
			for _, files := range tc.layers {
				if err := u.apply(strings.NewReader(string(tarOf(t, files...)))); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(tc.want, tree(t, root.Name())); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFilesBesideTheModule(t *testing.T) {
	r := newRegistry(t)
	ref := r.host + "/fn:v1"
	second := wasmtest.Command(wasmtest.Trap)
	write(t, ref, image(t, entrypoint("bin/fn.wasm", "-x"), layer(t,
		file{name: "bin/fn.wasm", content: module}, file{name: "bin/other.wasm", content: second}, text("etc/motd", "hello"))))
	s := newStore(t, 1<<20)
	img, err := s.Pull(t.Context(), Request{Reference: ref})
	if err != nil {
		t.Fatal(err)
	}
	if got := tree(t, img.Root)["etc/motd"]; got != "hello" {
		t.Errorf("etc/motd holds %q", got)
	}

	t.Run("command_names_another_module", func(t *testing.T) {
		for _, command := range []string{"/bin/other.wasm", "bin/other.wasm"} {
			other, err := s.Pull(t.Context(), Request{Reference: ref, Command: command})
			if err != nil {
				t.Fatal(err)
			}
			if other.ModuleDigest != moduleDigest(second) || other.FileName() != "other.wasm" || len(other.Args) > 0 {
				t.Errorf("%s: got %+v, want the other module, without the image's arguments", command, other.Module)
			}
			if _, err := s.Module(other.ModuleDigest); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("command_names_the_image's_module", func(t *testing.T) {
		same, err := s.Pull(t.Context(), Request{Reference: ref, Command: "/bin/fn.wasm"})
		if err != nil || same.Module != img.Module || len(same.Args) > 0 {
			t.Errorf("got %+v, %v; want the image's module", same, err)
		}
	})
	t.Run("command_names_no_module", func(t *testing.T) {
		for command, want := range map[string]string{"/bin/sh": `command "/bin/sh" not found`, "/etc/motd": "not a wasm module", "/etc": "not a regular file", "/..": "not found"} {
			_, err := s.Pull(t.Context(), Request{Reference: ref, Command: command})
			if !errors.Is(err, api.ErrUnusable) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want ErrUnusable with %q", command, err, want)
			}
		}
	})
	t.Run("a_reopened_store_has_them", func(t *testing.T) {
		again, err := NewStore(StoreConfig{Dir: s.dir, ModuleSize: 1 << 20, Budget: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		got, err := again.Pull(t.Context(), Request{Reference: ref, Policy: PullNever, Command: "/bin/other.wasm"})
		if err != nil || got.Root != img.Root || got.ModuleDigest != moduleDigest(second) {
			t.Errorf("got %+v, %v", got, err)
		}
	})
}

func TestArtifactNamesItsModule(t *testing.T) {
	r := newRegistry(t)
	ref := r.host + "/fn:v1"
	write(t, ref, artifactOf(t, static.NewLayer(module, wasmLayer), map[string]string{titleAnnotation: "dir/sort.wasm"}, map[string]string{"wisp.dev/abi": "argv"}))
	img, err := newStore(t, 1<<20).Pull(t.Context(), Request{Reference: ref})
	if err != nil {
		t.Fatal(err)
	}
	if img.ModulePath != "sort.wasm" || img.Labels["wisp.dev/abi"] != "argv" || img.Root != "" {
		t.Errorf("got %+v, want sort.wasm with the manifest's annotations and no files", img)
	}
}

func TestPolicies(t *testing.T) {
	r := newRegistry(t)
	ref, digest := pushModule(t, r, "v1")
	pinned := r.host + "/fn@" + digest
	tests := []struct {
		name      string
		reference string
		policy    Policy
		present   bool
		asks      bool
		want      error
	}{
		{"a_tag_is_asked_for", ref, "", true, true, nil},
		{"a_digest_isn't", pinned, "", true, false, nil},
		{"Always_asks_for_a_digest", pinned, PullAlways, true, true, nil},
		{"IfNotPresent_knows_the_tag", ref, PullIfNotPresent, true, false, nil},
		{"IfNotPresent_asks_for_what_is_missing", ref, PullIfNotPresent, false, true, nil},
		{"Never_takes_what_is_there", ref, PullNever, true, false, nil},
		{"Never_fails_without_asking", ref, PullNever, false, false, api.ErrImageNeverPull},
		{"Never_fails_for_a_digest", pinned, PullNever, false, false, api.ErrImageNeverPull},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t, 1<<20)
			if test.present {
				if _, err := s.Pull(t.Context(), Request{Reference: ref}); err != nil {
					t.Fatal(err)
				}
			}
			before := r.count("")
			img, err := s.Pull(t.Context(), Request{Reference: test.reference, Policy: test.policy})
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			if asked := r.count("") > before; asked != test.asks {
				t.Errorf("asked the registry: %t, want %t", asked, test.asks)
			}
			if err == nil && img.Cached != test.present {
				t.Errorf("cached: %t, want %t", img.Cached, test.present)
			}
			if err != nil && !errors.Is(err, api.ErrImagePull) {
				t.Errorf("%v: want ErrImagePull too", err)
			}
		})
	}
}

func TestSecrets(t *testing.T) {
	r := newRegistry(t)
	ref, digest := pushModule(t, r, "v1")
	r.protect("ada", "s3cret")
	right := `{"auths":{"` + r.host + `":{"auth":"YWRhOnMzY3JldA=="}}}`
	tests := []struct {
		name    string
		secrets []string
		ok      bool
	}{
		{"none", nil, false},
		{"right", []string{right}, true},
		{"the_older_form", []string{`{"` + r.host + `":{"username":"ada","password":"s3cret"}}`}, true},
		{"the_right_one_of_two", []string{`{"auths":{"other.example":{"auth":"eDp5"}}}`, right}, true},
		{"wrong_password", []string{`{"auths":{"` + r.host + `":{"auth":"YWRhOnh5eg=="}}}`}, false},
		{"another_registry's", []string{`{"auths":{"other.example":{"auth":"YWRhOnMzY3JldA=="}}}`}, false},
		{"not_JSON", []string{"s3cret"}, false},
	}
	for _, test := range tests {
		for _, reference := range []string{ref, r.host + "/fn@" + digest} {
			t.Run(test.name, func(t *testing.T) {
				var secrets [][]byte
				for _, secret := range test.secrets {
					secrets = append(secrets, []byte(secret))
				}
				_, err := newStore(t, 1<<20).Pull(t.Context(), Request{Reference: reference, Secrets: secrets})
				if (err == nil) != test.ok {
					t.Fatalf("got %v, want success: %t", err, test.ok)
				}
				if err != nil && (!errors.Is(err, api.ErrImagePull) || strings.Contains(err.Error(), "s3cret")) {
					t.Errorf("got %v, want ErrImagePull that tells no secret", err)
				}
			})
		}
	}
	t.Run("what_one_has_pulled_another_must_ask_for", func(t *testing.T) {
		s := newStore(t, 1<<20)
		if _, err := s.Pull(t.Context(), Request{Reference: ref, Secrets: [][]byte{[]byte(right)}}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Pull(t.Context(), Request{Reference: r.host + "/fn@" + digest, Policy: PullAlways}); !errors.Is(err, api.ErrImagePull) {
			t.Errorf("got %v, want ErrImagePull", err)
		}
	})
}

func TestSurplus(t *testing.T) {
	now := time.Unix(1e9, 0)
	ago := func(minutes, size, users int) *held {
		return &held{image: Image{Size: int64(size)}, lastUsed: now.Add(-time.Duration(minutes) * time.Minute), users: users}
	}
	tests := map[string]struct {
		images map[string]*held
		budget int64
		want   []string
	}{
		"all fits":                   {map[string]*held{"a": ago(9, 5, 0), "b": ago(8, 5, 0)}, 10, nil},
		"the longest unused goes":    {map[string]*held{"a": ago(8, 5, 0), "b": ago(9, 5, 0)}, 9, []string{"b"}},
		"as many as must":            {map[string]*held{"a": ago(7, 5, 0), "b": ago(9, 5, 0), "c": ago(8, 5, 0)}, 5, []string{"b", "c"}},
		"what is used stays":         {map[string]*held{"a": ago(9, 50, 1), "b": ago(8, 5, 0)}, 10, []string{"b"}},
		"what was just pulled stays": {map[string]*held{"a": ago(0, 50, 0)}, 10, nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, surplus(tc.images, tc.budget, now), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("to remove (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCollect(t *testing.T) {
	r := newRegistry(t)
	s := newStore(t, 1<<20)
	pull := func(tag string, files ...file) Image {
		t.Helper()
		write(t, r.host+"/fn:"+tag, image(t, entrypoint("fn.wasm"), layer(t, append(files, file{name: "fn.wasm", content: module})...)))
		img, err := s.Pull(t.Context(), Request{Reference: r.host + "/fn:" + tag})
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	used, idle := pull("used", text("a", "1")), pull("idle", text("b", "2"))
	release := s.Use(used.Digest)
	s.mu.Lock()
	s.budget = 1
	s.collect(time.Now().Add(time.Hour))
	s.mu.Unlock()
	if _, err := os.Stat(idle.Root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the idle image's files: %v, want them gone", err)
	}
	if _, err := os.Stat(used.Root); err != nil {
		t.Errorf("the used image's files: %v", err)
	}
	if _, err := s.Module(idle.ModuleDigest); err != nil {
		t.Errorf("the module that both images have: %v", err)
	}
	release()
	s.mu.Lock()
	s.collect(time.Now().Add(time.Hour))
	s.mu.Unlock()
	for _, path := range files(t, s) {
		if !strings.Contains(path, "/tags/") {
			t.Errorf("left in the store: %s", path)
		}
	}
	if again := pull("used", text("a", "1")); again.Cached {
		t.Error("an image that was removed counts as cached")
	}
}

// An image is bounded as a whole, not layer by layer.
func TestLayersTogetherAreBounded(t *testing.T) {
	r := newRegistry(t)
	ref := r.host + "/fn:v1"
	zeros := func(name string) file { return file{name: name, content: make([]byte, 700<<10)} }
	write(t, ref, image(t, entrypoint("fn.wasm"), layer(t, file{name: "fn.wasm", content: module}),
		layer(t, zeros("a")), layer(t, zeros("b")), layer(t, zeros("c"))))
	_, err := newStore(t, 1<<20).Pull(t.Context(), Request{Reference: ref})
	if !errors.Is(err, api.ErrUnusable) || !strings.Contains(err.Error(), "unpacks to more than") {
		t.Errorf("got %v, want ErrUnusable", err)
	}
}
