package wasi

import (
	"io/fs"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/experimental/sysfs"

	"github.com/wisp-serving/wisp/runtime/memfs"
)

// plenty is a Room without a limit.
type plenty struct{}

func (plenty) Hold(int64) bool { return true }

// open opens a path below the first mount and returns its descriptor.
func (p proxy) open(t *testing.T, path string, how, rights uint64) (uint64, errno) {
	t.Helper()
	at, n := p.put(8192, path)
	e, ended := p.call("path_open", 3, lookupFollow, at, n, how, rights, rights, 0, 1040)
	if ended {
		t.Fatalf("open %s: the guest has ended", path)
	}
	return uint64(p.number(1040)), e
}

// names returns what a directory is seen to hold.
func (p proxy) names(t *testing.T, fd uint64) []string {
	t.Helper()
	p.must(t, "fd_readdir", fd, 16384, 4096, 0, 1040)
	b, _ := p.Memory().Read(16384, p.number(1040))
	var names []string
	for len(b) > 0 {
		n := le.Uint32(b[16:])
		names = append(names, string(b[direntSize:direntSize+n]))
		b = b[direntSize+n:]
	}
	return names
}

// TestSingleFiles is about files that are mounted by themselves in a folder that
// has others.
func TestSingleFiles(t *testing.T) {
	image := fstest.MapFS{
		"etc/app.conf": {Data: []byte("the image's")},
		"etc/motd":     {Data: []byte("hello")},
	}
	volume := fstest.MapFS{"color": {Data: []byte("red")}, "size": {Data: []byte("7")}}
	var messages memfs.FS
	messages.Init(plenty{})
	f, _ := messages.OpenFile("message", sys.O_CREAT|sys.O_WRONLY, 0o600)
	f.Close()
	guest := start(t, t.Context(), Config{Mounts: []Mount{{
		Path: "/", FS: &sysfs.AdaptFS{FS: image}, ReadOnly: true,
		Files: map[string]File{
			"etc/app.conf": {FS: &sysfs.AdaptFS{FS: volume}, Path: "color", ReadOnly: true},
			"etc/log":      {FS: &messages, Path: "message"},
		},
	}}})
	read := func(path string) string {
		t.Helper()
		fd, e := guest.open(t, path, 0, rightFdRead)
		if e != ok {
			t.Fatalf("open %s: errno %d", path, e)
		}
		at, n := guest.vector(4096, 100)
		guest.must(t, "fd_read", fd, at, n, 1040)
		return guest.text(4096, guest.number(1040))
	}
	for path, want := range map[string]string{"etc/app.conf": "red", "etc/motd": "hello", "etc/log": ""} {
		if got := read(path); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	dir, e := guest.open(t, "etc", openDirectory, rightFdRead)
	if e != ok {
		t.Fatalf("open the folder: errno %d", e)
	}
	if diff := cmp.Diff([]string{".", "..", "app.conf", "log", "motd"}, guest.names(t, dir)); diff != "" {
		t.Errorf("in the folder (-want +got):\n%s", diff)
	}

	if _, e := guest.open(t, "etc/app.conf", openTruncate, rightFdWrite); e != eROFS {
		t.Errorf("write to the read-only file: errno %d, want %d", e, eROFS)
	}
	fd, e := guest.open(t, "etc/log", openTruncate|openCreate, rightFdWrite)
	if e != ok {
		t.Fatalf("open the other: errno %d", e)
	}
	if e, _ := guest.write(fd, "done"); e != ok {
		t.Errorf("write to it: errno %d", e)
	}
	if got := read("etc/log"); got != "done" {
		t.Errorf("got %q, want what was written", got)
	}
	at, n := guest.put(8192, "etc/log")
	if e, _ := guest.call("path_unlink_file", 3, at, n); e != eBUSY {
		t.Errorf("unlink it: errno %d, want %d", e, eBUSY)
	}
	if _, e := guest.open(t, "etc/motd", openTruncate, rightFdWrite); e != eROFS {
		t.Errorf("write to another file of the folder: errno %d, want %d", e, eROFS)
	}
	if _, e := guest.open(t, "etc/app.conf/", openDirectory, rightFdRead); e == ok {
		t.Error("a file was opened as a folder")
	}
	if _, err := fs.Stat(image, "etc/log"); err == nil {
		t.Error("the image has got the file")
	}
}
