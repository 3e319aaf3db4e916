package wasi

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental/sysfs"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

// step is a call with its arguments; strings become two, the address and the
// size of a copy in memory. want, unless ok, is what we answer where wazero's
// WASI does otherwise.
type step struct {
	function string
	args     []any
	reads    uint32 // bytes at 2048 that must be alike too
	want     errno
}

func steps() []step {
	const (
		root, out, list = 3, 2048, 1024
		r, w            = 1 << 1, 1 << 6
	)
	s := func(function string, args ...any) step { return step{function: function, args: args} }
	reads := func(n uint32, s step) step { s.reads = n; return s }
	want := func(e errno, s step) step { s.want = e; return s }
	return []step{
		reads(8, s("args_sizes_get", out, out+4)),
		reads(16, s("args_get", out+64, out)),
		reads(8, s("environ_sizes_get", out, out+4)),
		reads(16, s("environ_get", out+64, out)),
		s("clock_time_get", 0, 0, out), s("clock_time_get", 1, 0, out), s("clock_time_get", 2, 0, out), s("clock_time_get", 9, 0, out),
		s("clock_res_get", 1, out), s("clock_res_get", 7, out),
		s("random_get", out, 16), s("random_get", 131070, 16), s("sched_yield"),
		reads(8, s("fd_prestat_get", root, out)), want(eBADF, s("fd_prestat_get", 0, out)), s("fd_prestat_get", 4, out), s("fd_prestat_get", -1, out),
		reads(1, s("fd_prestat_dir_name", root, out, 1)), s("fd_prestat_dir_name", root, out, 0), s("fd_prestat_dir_name", root, out, 2),
		reads(24, s("fd_fdstat_get", root, out)),
		s("fd_fdstat_get", 0, out),
		s("fd_fdstat_get", 77, out), s("fd_fdstat_get", root, -1), s("fd_fdstat_get", root, 131072-8),
		s("fd_close", 77), s("fd_close", -1),
		s("path_open", root, 1, "hello.txt", 0, r, r, 0, out), // 4
		reads(24, s("fd_fdstat_get", 4, out)),
		reads(4, s("fd_read", 4, list, 1, out)),
		reads(8, s("fd_tell", 4, out)), reads(8, s("fd_seek", 4, 2, 0, out)), s("fd_seek", 4, 2, 9, out), s("fd_seek", 4, -5, 0, out),
		reads(4, s("fd_pread", 4, list, 1, 1, out)),
		s("fd_pread", 4, list, 1, -1, out),
		s("fd_write", 4, list, 1, out), s("fd_pwrite", 4, list, 1, 0, out),
		s("fd_advise", 4, 0, 0, 0), s("fd_advise", 4, 0, 0, 6), s("fd_advise", 44, 0, 0, 0),
		s("fd_sync", 4), s("fd_datasync", 4), s("fd_sync", 5),
		s("fd_readdir", 4, out, 200, 0, list+8), s("fd_filestat_get", 4, out), s("fd_filestat_get", 4, 131071),
		s("fd_filestat_set_size", 4, 1), s("fd_close", 4), s("fd_read", 4, list, 1, out),
		s("path_open", root, 1, "new.txt", 1|4, r|w, 0, 0, out), // 4 again: create, exclusive
		s("path_open", root, 1, "new.txt", 1|4, r|w, 0, 0, out),
		reads(4, s("fd_write", 4, list, 1, out)), reads(4, s("fd_pwrite", 4, list, 1, 10, out)),
		s("fd_filestat_set_size", 4, 3), s("fd_filestat_set_size", 4, -3),
		s("fd_allocate", 4, 0, 100), s("fd_allocate", 4, 1<<62, 1<<62), s("fd_allocate", 9, 0, 1),
		s("fd_filestat_set_times", 4, 5, 6, 1|4), s("fd_filestat_set_times", 4, 5, 6, 1|2),
		s("fd_fdstat_set_flags", 4, 1), s("fd_fdstat_set_flags", 4, 2), s("fd_fdstat_set_flags", 4, 4), s("fd_fdstat_set_flags", root, 0),
		s("fd_fdstat_set_flags", 1, 0), s("fd_fdstat_set_flags", 1, 4), s("fd_fdstat_set_rights", 4, 0, 0),
		s("fd_renumber", 4, 3), s("fd_renumber", 3, 4), s("fd_renumber", 4, 9), s("fd_renumber", 4, 9), s("fd_tell", 9, out), s("fd_close", 9),
		s("path_open", root, 1, "none", 0, r, 0, 0, out), s("path_open", root, 1, "", 0, r, 0, 0, out),
		s("path_open", root, 1, "/hello.txt", 0, r, 0, 0, out), s("path_open", root, 1, "../x", 0, r, 0, 0, out),
		s("path_open", root, 1, "sub/../../x", 0, r, 0, 0, out), s("path_open", root, 1, "hello.txt", 2, r, 0, 0, out),
		s("path_open", root, 1, "hello.txt/", 0, r, 0, 0, out), s("path_open", root, 1, "hello.txt/x", 0, r, 0, 0, out),
		s("path_open", root, 1, "x", 1|2, r, 0, 0, out), s("path_open", 0, 1, "x", 0, r, 0, 0, out), s("path_open", 99, 1, "x", 0, r, 0, 0, out),
		s("path_open", root, 1, "sub", 2, r, 0, 0, out), // 4
		reads(24, s("fd_fdstat_get", 4, out)),
		s("fd_read", 4, list, 1, out), s("fd_seek", 4, 0, 0, out),
		s("path_filestat_get", 4, 1, "inner.txt", out), s("path_filestat_get", 4, 1, "../hello.txt", out), s("path_filestat_get", 4, 0, ".", out),
		s("fd_prestat_get", 4, out), s("fd_close", 4),
		s("path_filestat_get", root, 1, "hello.txt", out), s("path_filestat_get", root, 1, "no", out), s("path_filestat_get", root, 1, "hello.txt", 131071),
		s("path_create_directory", root, "made"), s("path_create_directory", root, "made"), s("path_create_directory", root, "no/made"),
		s("path_rename", root, "made", root, "moved"), s("path_rename", root, "made", root, "x"), s("path_rename", root, "hello.txt", root, "moved"),
		s("path_rename", root, "sub", root, "hello.txt"),
		s("path_unlink_file", root, "moved"), s("path_remove_directory", root, "moved"), s("path_remove_directory", root, "sub"),
		s("path_remove_directory", root, "hello.txt"), s("path_unlink_file", root, "no"),
		s("path_symlink", "hello.txt", root, "link"), s("path_symlink", "hello.txt", root, "link"), s("path_symlink", "", root, "l"),
		s("path_symlink", "/etc/passwd", root, "out"), want(ePERM, s("path_symlink", "a/../../x", root, "out")),
		reads(9, s("path_readlink", root, "link", out, 20, list+8)), s("path_readlink", root, "link", out, 2, list+8),
		s("path_readlink", root, "hello.txt", out, 20, list+8), s("path_readlink", root, "link", out, 0, list+8),
		s("path_open", root, 0, "link", 0, r, 0, 0, out),
		s("path_filestat_get", root, 0, "link", out),
		s("path_link", root, 0, "hello.txt", root, "hard"), s("path_link", root, 0, "hello.txt", root, "hard"), s("path_unlink_file", root, "hard"),
		s("path_filestat_set_times", root, 1, "hello.txt", 7, 8, 1|4), s("path_filestat_set_times", root, 0, "hello.txt", 7, 8, 1|4), s("path_filestat_set_times", root, 1, "no", 7, 8, 1|4),
		s("proc_raise", 3),
		s("poll_oneoff", 60000, 61000, 0, out), s("poll_oneoff", 131071, 61000, 1, out), s("poll_oneoff", 60000, 131071, 1, out),
		reads(4, s("poll_oneoff", 60000, 61000, 1, out)), // a clock without a timeout
		want(eNOTSOCK, s("sock_accept", root, 0, out)), s("sock_accept", 55, 0, out),
		want(eNOTSOCK, s("sock_recv", 0, list, 1, 0, out, out+8)), want(eNOTSOCK, s("sock_send", 0, list, 1, 0, out)), want(eNOTSOCK, s("sock_shutdown", 0, 1)),
		s("fd_read", root, -8, 1, out), want(eINVAL, s("fd_write", 1, list, -1, out)), s("fd_write", 1, list, 1, -1),
		s("fd_readdir", root, out, 4, 0, list+8), s("fd_readdir", root, 131070, 100, 0, list+8), s("fd_readdir", 0, out, 100, 0, list+8),
		s("fd_close", 1), s("fd_write", 1, list, 1, out), s("fd_close", root), s("path_open", root, 1, "hello.txt", 0, r, 0, 0, out),
	}
}

// prepare makes the directory in which the steps run.
func prepare(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"hello.txt": "hello, world\n", "sub/inner.txt": "inner"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// run calls the step and returns its errno and the bytes to compare.
func (s step) run(p proxy) (errno, string) {
	p.vector(3072, 5)
	at := uint32(512)
	var args []uint64
	for _, a := range s.args {
		if text, isText := a.(string); isText {
			address, size := p.put(at, text)
			args = append(args, address, size)
			at += 64
			continue
		}
		args = append(args, uint64(a.(int)))
	}
	for i, c := range []byte(paramsOf(s.function)) {
		if c == 'i' {
			args[i] = uint64(uint32(args[i]))
		}
	}
	e, _ := p.call(s.function, args...)
	return e, p.text(2048, s.reads)
}

func paramsOf(function string) string {
	for _, f := range functions {
		if f.name == function {
			return f.params
		}
	}
	panic(function)
}

// Whatever wazero's own WASI answers, ours does, but for the steps that say
// otherwise.
func TestAsWazeroDoes(t *testing.T) {
	args, env := []string{"prog", "one"}, []string{"A=b", "C="}

	theirs := wazero.NewRuntime(t.Context())
	defer theirs.Close(t.Context())
	wasi_snapshot_preview1.MustInstantiate(t.Context(), theirs)
	oracle := instantiate(t, t.Context(), theirs, wazero.NewModuleConfig().WithArgs(args...).WithEnv("A", "b").WithEnv("C", "").
		WithSysNanotime().WithSysWalltime().WithFSConfig(wazero.NewFSConfig().WithDirMount(prepare(t), "/")))
	guest := start(t, t.Context(), Config{Args: args, Env: env, Mounts: []Mount{{Path: "/", FS: sysfs.DirFS(prepare(t))}}})

	for i, s := range steps() {
		name := fmt.Sprintf("step %d: %s%v", i, s.function, s.args)
		e, text := s.run(guest)
		want, wantText := s.run(oracle)
		if s.want != ok {
			if want == s.want {
				t.Errorf("%s: wazero agrees after all", name)
			}
			want, wantText = s.want, text
		}
		if e != want || text != wantText {
			t.Errorf("%s: got errno %d %q, want %d %q", name, e, text, want, wantText)
		}
	}
}

// Reading a directory piece by piece gives what reading it at once does.
func TestReaddir(t *testing.T) {
	dir := t.TempDir()
	want := map[string]bool{".": true, "..": true}
	for i := range 200 {
		name := fmt.Sprint(strings.Repeat("n", i%50), i)
		want[name] = true
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	guest := start(t, t.Context(), Config{Mounts: []Mount{{Path: "/", FS: sysfs.DirFS(dir)}}})
	for _, size := range []uint64{100, 128, 1000, 60000} {
		got := map[string]bool{}
		for cookie := uint64(0); ; {
			guest.must(t, "fd_readdir", 3, 4096, size, cookie, 1024)
			used := guest.number(1024)
			buf, _ := guest.Memory().Read(4096, used)
			for len(buf) >= direntSize && len(buf) >= direntSize+int(le.Uint32(buf[16:])) {
				name := string(buf[direntSize : direntSize+le.Uint32(buf[16:])])
				if got[name] {
					t.Errorf("%q comes twice", name)
				}
				got[name] = true
				cookie = le.Uint64(buf)
				buf = buf[direntSize+len(name):]
			}
			if uint64(used) < size {
				break
			}
		}
		if len(got) != len(want) {
			t.Errorf("with %d bytes: %d entries, want %d", size, len(got), len(want))
		}
	}
	if e, _ := guest.call("fd_readdir", 3, 4096, 100, 1<<40, 1024); e != eINVAL {
		t.Errorf("a cookie that never was: errno %d", e)
	}
}
