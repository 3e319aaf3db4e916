package sandbox

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/tetratelabs/wazero/experimental/sysfs"

	"github.com/wisp-serving/wisp/runtime/memfs"
	"github.com/wisp-serving/wisp/runtime/memory"
	"github.com/wisp-serving/wisp/runtime/wasi"
)

// image makes a folder as the store has it for an image, with links that lead
// astray.
func image(t *testing.T) string {
	t.Helper()
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(outside, "root")
	for name, content := range map[string]string{"etc/motd": "hello\n", "app/data": "data\n"} {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"up": "../secret", "far": "../../../../../../../../etc/passwd", "dir": "..", "inside": "etc/motd"} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestImageFiles(t *testing.T) {
	root := image(t)
	s := start(t, Spec{Root: root})
	for path, want := range map[string]string{"/etc/motd": "hello\n", "app/data": "data\n", "/app/../etc/motd": "hello\n", "/inside": "hello\n"} {
		if got := call(t.Context(), s, "cat", path); got.Body.String() != want {
			t.Errorf("%s: got %q, want %q", path, got.Body, want)
		}
	}
	for _, path := range []string{"/up", "/far", "/dir/secret", "/../secret", "../secret", "/dir/root/etc/motd"} {
		got := call(t.Context(), s, "cat", path).Body.String()
		if strings.Contains(got, "secret\n") || strings.Contains(got, "root:") || got == "secret" || got == "hello\n" || !strings.HasPrefix(got, "open ") {
			t.Errorf("%s leads to %q, want an error", path, got)
		}
	}
	for _, path := range []string{"/etc/motd", "/new", "/etc/new"} {
		if got := call(t.Context(), s, "append", path).Body.String(); got == "" {
			t.Errorf("append to %s: got %q, want an error", path, got)
		}
	}
	if content, err := os.ReadFile(filepath.Join(root, "etc/motd")); err != nil || string(content) != "hello\n" {
		t.Errorf("the image's file holds %q (%v)", content, err)
	}
}

func TestTmpIsAnInstancesOwn(t *testing.T) {
	s := start(t, Spec{})
	for range 2 {
		got := call(t.Context(), s, "append", "/tmp/x", "append", "/tmp/x", "cat", "/tmp/x").Body.String()
		if got != "line\nline\n" {
			t.Errorf("got %q, want the two lines of this request", got)
		}
	}
}

// What a guest writes counts as its pod's memory, and is free again when it ends.
func TestTmpIsBounded(t *testing.T) {
	s := start(t, Spec{Memory: 64 << 20})
	first := call(t.Context(), s, "fill", "/tmp/x").Body.String()
	written, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || written < 8 || written >= 64 {
		t.Fatalf("%q MiB were written into a pod of 64", first)
	}
	if again := call(t.Context(), s, "fill", "/tmp/x").Body.String(); again != first {
		t.Errorf("%q MiB were written the next time, %q before", again, first)
	}
	if used := s.group.Usage().Memory; used != 0 {
		t.Errorf("%d bytes are still counted", used)
	}
}

// A file that is mounted by itself is seen beside what is in its folder.
func TestSingleFiles(t *testing.T) {
	file := func(at string) File {
		return File{At: at, File: wasi.File{FS: &sysfs.AdaptFS{FS: fstest.MapFS{"key": {Data: []byte("of " + at + "\n")}}}, Path: "key", ReadOnly: true}}
	}
	volume := wasi.Mount{Path: "/vol", FS: &sysfs.AdaptFS{FS: fstest.MapFS{"sub/other": {Data: []byte("other\n")}}}, ReadOnly: true}
	s := start(t, Spec{Root: image(t), Mounts: []wasi.Mount{volume}, Files: []File{
		file("/etc/key"), file("/nowhere/deep/key"), file("/nowhere/deep/key2"), file("/vol/sub/key"), file("/tmp/key"), file("/key"),
	}})
	for path, want := range map[string]string{
		"/etc/key": "of /etc/key\n", "/etc/motd": "hello\n",
		"/nowhere/deep/key": "of /nowhere/deep/key\n", "/nowhere/deep/key2": "of /nowhere/deep/key2\n",
		"/vol/sub/key": "of /vol/sub/key\n", "/vol/sub/other": "other\n",
		"/tmp/key": "of /tmp/key\n", "/key": "of /key\n", "/app/data": "data\n",
	} {
		if got := call(t.Context(), s, "cat", path).Body.String(); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	if got := call(t.Context(), s, "append", "/tmp/x", "cat", "/tmp/x").Body.String(); got != "line\n" {
		t.Errorf("beside the file in /tmp: got %q", got)
	}
	for _, path := range []string{"/etc/key", "/etc/new", "/nowhere/deep/new"} {
		if got := call(t.Context(), s, "append", path).Body.String(); got == "" {
			t.Errorf("append to %s: got %q, want an error", path, got)
		}
	}
}

// What sandboxes hold together counts as each one's memory.
func TestSharedMemory(t *testing.T) {
	room := memory.NewCommon(1 << 30)
	volume := new(memfs.FS)
	volume.Init(room)
	spec := Spec{Memory: 64 << 20, Mounts: []wasi.Mount{{Path: "/ram", FS: volume}}, Shared: []*memory.Common{room}}
	first, second := start(t, spec), start(t, spec)
	call(t.Context(), first, "append", "/ram/line")
	if got := call(t.Context(), second, "cat", "/ram/line").Body.String(); got != "line\n" {
		t.Errorf("got %q from the other's volume", got)
	}
	text := call(t.Context(), first, "fill", "/ram/x").Body.String()
	if written, err := strconv.Atoi(strings.TrimSpace(text)); err != nil || written < 8 || written >= 64 {
		t.Errorf("%q MiB were written in a pod of 64", text)
	}
	if first.Usage().Memory == 0 || first.Usage().Memory != second.Usage().Memory {
		t.Errorf("got %d and %d bytes used, want the volume in both", first.Usage().Memory, second.Usage().Memory)
	}
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if used := first.Usage().Memory; used != 0 {
		t.Errorf("%d bytes count for a sandbox that is closed", used)
	}
}
