package memfs

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/experimental/sysfs"
)

// room has a limit.
type room struct{ used, limit int64 }

func (r *room) Hold(n int64) bool {
	if n > 0 && r.used+n > r.limit {
		return false
	}
	r.used += n
	return true
}

func newFS(limit int64) (*FS, *room) {
	r := &room{limit: limit}
	f := new(FS)
	f.Init(r)
	return f, r
}

func open(t *testing.T, f sys.FS, name string, flag sys.Oflag) sys.File {
	t.Helper()
	file, errno := f.OpenFile(name, flag, 0o600)
	if errno != 0 {
		t.Fatalf("open %s: %v", name, errno)
	}
	return file
}

func put(t *testing.T, f sys.FS, name, content string) {
	t.Helper()
	file := open(t, f, name, sys.O_WRONLY|sys.O_CREAT|sys.O_TRUNC)
	if n, errno := file.Write([]byte(content)); errno != 0 || n != len(content) {
		t.Fatalf("write %s: %d, %v", name, n, errno)
	}
	file.Close()
}

func read(t *testing.T, f sys.FS, name string) string {
	t.Helper()
	file := open(t, f, name, sys.O_RDONLY)
	defer file.Close()
	b := make([]byte, 1<<10)
	n, errno := file.Read(b)
	if errno != 0 {
		t.Fatalf("read %s: %v", name, errno)
	}
	return string(b[:n])
}

func TestEverythingIsGivenBack(t *testing.T) {
	f, r := newFS(1 << 20)
	f.Mkdir("d", 0o700)
	put(t, f, "d/a", strings.Repeat("x", 5000))
	put(t, f, "d/b", "b")
	f.Link("d/b", "d/c")
	f.Symlink("d/b", "l")
	f.Rename("d/a", "d/b")
	held := open(t, f, "d/b", sys.O_RDONLY)
	for _, name := range []string{"d/b", "d/c", "l"} {
		if errno := f.Unlink(name); errno != 0 {
			t.Errorf("unlink %s: %v", name, errno)
		}
	}
	f.Rmdir("d")
	b := make([]byte, 10)
	if n, errno := held.Read(b); n != 10 || errno != 0 {
		t.Errorf("a file without a name that is open reads %d, %v", n, errno)
	}
	held.Close()
	held.Close()
	if r.used != perNode { // of the second name, which no node has
		t.Errorf("%d bytes are still charged", r.used)
	}
}

func TestFull(t *testing.T) {
	f, _ := newFS(10_000)
	put(t, f, "a", "kept")
	file := open(t, f, "a", sys.O_RDWR)
	if n, errno := file.Pwrite(make([]byte, 1), 1<<40); n != 0 || errno != sys.EIO {
		t.Errorf("a write far beyond the end: %d, %v", n, errno)
	}
	if errno := file.Truncate(1 << 62); errno != sys.EIO {
		t.Errorf("truncate: %v", errno)
	}
	if n, errno := file.Pwrite([]byte("x"), 1<<63-1); n != 0 || errno != sys.EINVAL {
		t.Errorf("a write at the largest offset: %d, %v", n, errno)
	}
	if got := read(t, f, "a"); got != "kept" {
		t.Errorf("the file holds %q", got)
	}
	made := 0
	for f.Mkdir(fmt.Sprint(made), 0o700) == 0 {
		made++
	}
	if made == 0 || made > 10_000/perNode {
		t.Errorf("%d folders of %d bytes in 10,000", made, perNode)
	}
	if _, errno := f.OpenFile("b", sys.O_WRONLY|sys.O_CREAT, 0o600); errno != sys.EIO {
		t.Errorf("one more file: %v", errno)
	}
	if errno := f.Symlink("a", "l"); errno != sys.EIO {
		t.Errorf("one more link: %v", errno)
	}
}

func TestPaths(t *testing.T) {
	f, _ := newFS(1 << 20)
	f.Mkdir("d", 0o700)
	f.Mkdir("d/e", 0o700)
	put(t, f, "d/e/file", "deep")
	f.Symlink("d/e", "l")
	f.Symlink("l/file", "ll")
	f.Symlink("loop", "loop")
	for name, want := range map[string]sys.Errno{
		"d/e/file": 0, "./d//e/./file": 0, "l/file": 0, "ll": 0, "d/../d/e/file": 0, "../../d/e/file": 0, ".": 0, "": 0, "d/": 0, "l/": 0,
		"none": sys.ENOENT, "none/x": sys.ENOENT, "d/e/file/": sys.ENOTDIR, "d/e/file/x": sys.ENOTDIR, "loop": sys.ELOOP, "loop/x": sys.ELOOP,
	} {
		if _, errno := f.Stat(name); errno != want {
			t.Errorf("stat %q: %v, want %v", name, errno, want)
		}
	}
	for _, target := range []string{"/etc", "..", "../x", "a/../../x", ""} {
		if errno := f.Symlink(target, "out"); errno != sys.EPERM {
			t.Errorf("a link to %q: %v, want EPERM", target, errno)
		}
	}
	if errno := f.Rename("d", "d/e/d"); errno != sys.EINVAL {
		t.Errorf("a folder moved into itself: %v", errno)
	}
}

func TestReaddirInParts(t *testing.T) {
	f, _ := newFS(1 << 20)
	for i := range 5 {
		put(t, f, fmt.Sprint(i), "")
	}
	dir := open(t, f, ".", sys.O_RDONLY)
	var got []string
	next := func(n int) {
		entries, errno := dir.Readdir(n)
		if errno != 0 {
			t.Fatal(errno)
		}
		for _, e := range entries {
			got = append(got, e.Name)
		}
	}
	next(2)
	f.Unlink("1")
	f.Unlink("3")
	put(t, f, "new", "")
	next(-1)
	if diff := cmp.Diff([]string{"0", "1", "2", "4"}, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	got = nil
	dir.Seek(0, io.SeekStart)
	next(-1)
	if diff := cmp.Diff([]string{"0", "2", "4", "new"}, got); diff != "" {
		t.Errorf("names after a rewind (-want +got):\n%s", diff)
	}
}

// FuzzAgainstDisk does the same to a file system in memory and to a folder on
// disk: every answer and all that is there in the end must be the same.
func FuzzAgainstDisk(f *testing.F) {
	f.Add([]byte("\x00\x01\x05\x02\x11\x03\x02\x04\x21\x05\x12\x06\x31\x07\x41\x08\x51"))
	f.Add([]byte("\x01\x00\x01\x10\x00\x20\x02\x21\x04\x01\x03\x10\x05\x12\x06\x00"))
	f.Add(bytes.Repeat([]byte("\x00\x13\x01\x20\x06\x02\x07\x30\x04\x11"), 8))
	f.Fuzz(func(t *testing.T, script []byte) {
		memory, _ := newFS(1 << 30)
		disk := sysfs.DirFS(t.TempDir())
		names := []string{"a", "b", "c", "a/x", "a/y", "b/x", "b/a", "c/x"}
		for len(script) > 1 {
			what, which := script[0]%9, int(script[1])
			one, other := names[which%8], names[which/8%8]
			got, want := act(memory, what, one, other), act(disk, what, one, other)
			// wazero says ENOENT for some of Linux's ENOTDIR.
			if strings.ReplaceAll(got, sys.ENOTDIR.Error(), sys.ENOENT.Error()) != strings.ReplaceAll(want, sys.ENOTDIR.Error(), sys.ENOENT.Error()) {
				t.Fatalf("%d %s %s: %s in memory, %s on disk", what, one, other, got, want)
			}
			script = script[2:]
		}
		if diff := cmp.Diff(list(t, disk), list(t, memory)); diff != "" {
			t.Errorf("what is there (-disk +memory):\n%s", diff)
		}
	})
}

// act does one thing and returns all that a guest would see of it.
func act(f sys.FS, what byte, one, other string) string {
	switch what {
	case 0:
		file, errno := f.OpenFile(one, sys.O_RDWR|sys.O_CREAT, 0o600)
		if errno != 0 {
			return errno.Error()
		}
		defer file.Close()
		n, errno := file.Write([]byte(other))
		_, sought := file.Seek(0, io.SeekEnd)
		return fmt.Sprint(n, errno, sought)
	case 1:
		return f.Mkdir(one, 0o700).Error()
	case 2:
		return f.Unlink(one).Error()
	case 3:
		return f.Rmdir(one).Error()
	case 4:
		if one == other {
			return "" // which wazero doesn't ask the disk about
		}
		return f.Rename(one, other).Error()
	case 5:
		return f.Link(one, other).Error()
	case 6:
		file, errno := f.OpenFile(one, sys.O_RDWR|sys.O_APPEND, 0)
		if errno != 0 {
			return errno.Error()
		}
		defer file.Close()
		n, errno := file.Write([]byte("+"))
		at, errno2 := file.Seek(0, io.SeekCurrent)
		return fmt.Sprint(n, errno, at, errno2)
	case 7:
		file, errno := f.OpenFile(one, sys.O_RDWR, 0)
		if errno != 0 {
			return errno.Error()
		}
		defer file.Close()
		errno = file.Truncate(int64(len(other)))
		b := make([]byte, 8)
		n, errno2 := file.Pread(b, 0)
		return fmt.Sprintf("%v %d %v %x", errno, n, errno2, b)
	default:
		st, errno := f.Stat(one)
		if errno != 0 || st.Mode.IsDir() {
			return fmt.Sprint(errno, st.Mode.IsDir())
		}
		return fmt.Sprint(st.Size, st.Nlink, st.Mode)
	}
}

// list returns all files with their content.
func list(t *testing.T, f sys.FS) map[string]string {
	t.Helper()
	found := map[string]string{}
	var walk func(at string)
	walk = func(at string) {
		folder, errno := f.OpenFile(at, sys.O_RDONLY, 0)
		if errno != 0 {
			t.Fatalf("open %s: %v", at, errno)
		}
		defer folder.Close()
		entries, errno := folder.Readdir(-1)
		if errno != 0 {
			t.Fatalf("read %s: %v", at, errno)
		}
		for _, e := range entries {
			name := filepath.Join(at, e.Name)
			if e.Type.IsDir() {
				found[name] = "a folder"
				walk(name)
				continue
			}
			found[name] = read(t, f, name)
		}
	}
	walk(".")
	return found
}

// A guest's own rules are POSIX's: what the tests above can't compare.
func TestOpen(t *testing.T) {
	f, _ := newFS(1 << 20)
	f.Mkdir("d", 0o700)
	put(t, f, "a", "abc")
	f.Symlink("a", "l")
	tests := []struct {
		name string
		flag sys.Oflag
		want sys.Errno
	}{
		{"d", sys.O_RDONLY, 0},
		{"d", sys.O_RDWR, sys.EISDIR},
		{"d", sys.O_RDONLY | sys.O_CREAT, sys.EISDIR},
		{"a", sys.O_RDONLY | sys.O_DIRECTORY, sys.ENOTDIR},
		{"a", sys.O_WRONLY | sys.O_CREAT | sys.O_EXCL, sys.EEXIST},
		{"l", sys.O_RDONLY, 0},
		{"l", sys.O_RDONLY | sys.O_NOFOLLOW, sys.ELOOP},
		{"new/", sys.O_WRONLY | sys.O_CREAT, sys.EISDIR},
	}
	for _, test := range tests {
		file, errno := f.OpenFile(test.name, test.flag, 0o600)
		if errno != test.want {
			t.Errorf("open %s with %b: %v, want %v", test.name, test.flag, errno, test.want)
		}
		if errno == 0 {
			file.Close()
		}
	}
	reader, writer := open(t, f, "a", sys.O_RDONLY), open(t, f, "a", sys.O_WRONLY)
	if _, errno := reader.Write([]byte("x")); errno != sys.EBADF {
		t.Errorf("a write to what is open to read: %v", errno)
	}
	if _, errno := writer.Read(make([]byte, 1)); errno != sys.EBADF {
		t.Errorf("a read of what is open to write: %v", errno)
	}
	if got := read(t, f, "a"); got != "abc" {
		t.Errorf("the file holds %q", got)
	}
	if st, errno := f.Lstat("l"); errno != 0 || st.Mode.Type() != fs.ModeSymlink || !slices.Equal([]int64{st.Size}, []int64{1}) {
		t.Errorf("the link: %+v, %v", st, errno)
	}
}

// TestShared is about guests that have one file system: what is written is
// whole, and what it holds is counted right.
func TestShared(t *testing.T) {
	f, r := newFS(1 << 20)
	const guests, lines = 8, 50
	var all sync.WaitGroup
	for g := range guests {
		all.Go(func() {
			own := fmt.Sprintf("own-%d", g)
			for range lines {
				file, errno := f.OpenFile("log", sys.O_WRONLY|sys.O_CREAT|sys.O_APPEND, 0o600)
				if errno != 0 {
					t.Errorf("open log: %v", errno)
					return
				}
				file.Write([]byte("0123456789abcdef\n"))
				file.Close()
				f.Mkdir(own, 0o700)
				f.Rename(own, own+"-moved")
				f.Rmdir(own + "-moved")
			}
		})
	}
	all.Wait()
	st, errno := f.Stat("log")
	if errno != 0 || st.Size != guests*lines*17 {
		t.Errorf("got %d bytes, %v, want %d", st.Size, errno, guests*lines*17)
	}
	f.Unlink("log")
	if r.used != 0 {
		t.Errorf("%d bytes are counted for nothing", r.used)
	}
}
