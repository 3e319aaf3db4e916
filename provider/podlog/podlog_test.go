package podlog_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/wisp-serving/wisp/provider/podlog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var small = podlog.Limits{FileSize: 200, Files: 3}

func begin(t *testing.T, l *podlog.Log, run int) *podlog.Writer {
	t.Helper()
	w, err := l.Begin(run)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func write(w *podlog.Writer, lines ...string) {
	for _, line := range lines {
		fmt.Fprintln(w.Stream("stdout"), line)
	}
}

func read(t *testing.T, l *podlog.Log, o podlog.Options) string {
	t.Helper()
	var b bytes.Buffer
	if err := l.Copy(t.Context(), &b, o); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

var all = podlog.Options{Tail: -1}

func TestFormat(t *testing.T) {
	dir := t.TempDir()
	w := begin(t, podlog.New(dir, small), 0)
	write(w, "out")
	fmt.Fprint(w.Stream("stderr"), "no line break")
	w.Close()
	text, err := os.ReadFile(filepath.Join(dir, "0.0.log"))
	if err != nil {
		t.Fatal(err)
	}
	const stamp = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z`
	if !regexp.MustCompile(`^` + stamp + ` stdout F out\n` + stamp + ` stderr F no line break\n$`).Match(text) {
		t.Errorf("got %q, want lines in the CRI format", text)
	}
}

func TestCopy(t *testing.T) {
	dir := t.TempDir()
	l := podlog.New(dir, podlog.Limits{FileSize: 1 << 20, Files: 3})
	w := begin(t, l, 0)
	write(w, "one", "two", "three")
	w.Close()
	tests := []struct {
		name    string
		options podlog.Options
		want    string
	}{
		{"all", all, "one\ntwo\nthree\n"},
		{"the last two", podlog.Options{Tail: 2}, "two\nthree\n"},
		{"none", podlog.Options{Tail: 0}, ""},
		{"more than there are", podlog.Options{Tail: 9}, "one\ntwo\nthree\n"},
		{"since long ago", podlog.Options{Tail: -1, Since: time.Now().Add(-time.Hour)}, "one\ntwo\nthree\n"},
		{"since later", podlog.Options{Tail: -1, Since: time.Now().Add(time.Hour)}, ""},
		{"limited", podlog.Options{Tail: -1, LimitBytes: 6}, "one\ntw"},
		{"limited to more", podlog.Options{Tail: -1, LimitBytes: 100}, "one\ntwo\nthree\n"},
		{"followed after its end", podlog.Options{Tail: -1, Follow: true}, "one\ntwo\nthree\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := read(t, l, test.options); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			// As after a restart of the node.
			if got := read(t, podlog.New(dir, small), test.options); got != test.want {
				t.Errorf("opened anew: got %q, want %q", got, test.want)
			}
		})
	}
	if got := read(t, l, podlog.Options{Tail: 1, Timestamps: true}); !regexp.MustCompile(`^\d{4}-\S+Z three\n$`).MatchString(got) {
		t.Errorf("got %q with timestamps", got)
	}
	if got := l.Tail(2, 7); got != "\nthree\n" {
		t.Errorf("got %q, want the last seven bytes", got)
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	l := podlog.New(dir, small)
	w := begin(t, l, 0)
	for i := range 100 {
		write(w, fmt.Sprintf("line %d", i))
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if len(files) != small.Files || size > int64(small.Files)*small.FileSize {
		t.Errorf("got %d files of %d bytes, want %d of at most %d each", len(files), size, small.Files, small.FileSize)
	}
	got := read(t, l, all)
	if !strings.HasSuffix(got, "line 98\nline 99\n") || strings.Count(got, "\n") < 6 {
		t.Errorf("got %q, want the last lines, over several files", got)
	}
	if got := read(t, l, podlog.Options{Tail: 7}); got != "line 93\nline 94\nline 95\nline 96\nline 97\nline 98\nline 99\n" {
		t.Errorf("got %q, want the last seven lines, over several files", got)
	}
}

func TestRuns(t *testing.T) {
	l := podlog.New(t.TempDir(), small)
	if err := l.Copy(t.Context(), io.Discard, all); !errors.Is(err, podlog.ErrNoRun) {
		t.Errorf("got %v before the first run, want ErrNoRun", err)
	}
	for run := range 3 {
		w := begin(t, l, run)
		write(w, fmt.Sprintf("run %d", run))
		if run == 0 {
			if err := l.Copy(t.Context(), io.Discard, podlog.Options{Tail: -1, Previous: true}); !errors.Is(err, podlog.ErrNoRun) {
				t.Errorf("got %v for the run before the first, want ErrNoRun", err)
			}
		}
	}
	if got := read(t, l, all); got != "run 2\n" {
		t.Errorf("got %q, want the last run", got)
	}
	if got := read(t, l, podlog.Options{Tail: -1, Previous: true}); got != "run 1\n" {
		t.Errorf("got %q, want the run before", got)
	}
}

// TestFollow holds that a follower gets every line, in order, over rotations,
// and ends with the run.
func TestFollow(t *testing.T) {
	l := podlog.New(t.TempDir(), podlog.Limits{FileSize: 1 << 10, Files: 1000})
	w := begin(t, l, 0)
	var followers sync.WaitGroup
	var got [4]bytes.Buffer
	for i := range got {
		followers.Go(func() {
			if err := l.Copy(t.Context(), &got[i], podlog.Options{Tail: -1, Follow: true}); err != nil {
				t.Error(err)
			}
		})
	}
	var want strings.Builder
	for i := range 2000 {
		line := fmt.Sprintf("line %d", i)
		write(w, line)
		fmt.Fprintln(&want, line)
	}
	w.Close()
	followers.Wait()
	for i := range got {
		if got[i].String() != want.String() {
			t.Errorf("follower %d got %d bytes, want %d", i, got[i].Len(), want.Len())
		}
	}
}

// TestFollowEndsWithItsRun is a container that restarts: what follows the run
// before has no part in the next.
func TestFollowEndsWithItsRun(t *testing.T) {
	l := podlog.New(t.TempDir(), small)
	w := begin(t, l, 0)
	write(w, "first")
	from, to := io.Pipe()
	go func() { to.CloseWithError(l.Copy(t.Context(), to, podlog.Options{Tail: -1, Follow: true})) }()
	lines := bufio.NewReader(from)
	if line, err := lines.ReadString('\n'); line != "first\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	write(begin(t, l, 1), "second")
	if rest, err := io.ReadAll(lines); len(rest) > 0 || err != nil {
		t.Errorf("got %q, %v after the run's end, want nothing", rest, err)
	}
	begin(t, l, 2).Close()
}

func TestFollowEndsWithItsContext(t *testing.T) {
	l := podlog.New(t.TempDir(), small)
	w := begin(t, l, 0)
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Copy(ctx, io.Discard, podlog.Options{Tail: -1, Follow: true}); err != nil {
		t.Error(err)
	}
}

func TestRate(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l := podlog.New(dir, podlog.Limits{FileSize: 1 << 20, Files: 1, Rate: 1000})
		w, err := l.Begin(0)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		line := strings.Repeat("x", 499) + "\n"
		for range 10 { // 5000 bytes: one second's at once, the rest at the rate
			fmt.Fprint(w.Stream("stdout"), line)
		}
		if took := time.Since(began); took < 3*time.Second || took > 4*time.Second {
			t.Errorf("5000 bytes took %s at 1000 a second", took)
		}
		blocked := make(chan struct{})
		go func() {
			defer close(blocked)
			for range 100 {
				fmt.Fprint(w.Stream("stdout"), line)
			}
		}()
		synctest.Wait()
		w.Close()
		<-blocked // a closed log makes nobody wait
	})
}

func TestLinesThatCannotBeWrittenAreCounted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	l := podlog.New(dir, podlog.Limits{FileSize: 40, Files: 3})
	w := begin(t, l, 0)
	write(w, "fills the first file")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	write(w, "lost", "lost too")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(w, "there again")
	if got := read(t, l, all); !strings.Contains(got, "2 lines lost here") || !strings.HasSuffix(got, "there again\n") {
		t.Errorf("got %q, want the loss said", got)
	}
}
