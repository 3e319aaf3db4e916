package follow_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/wisp-serving/wisp/config/follow"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start follows the file and returns what it is at each change.
func start(t *testing.T, path string) <-chan string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	got, ended := make(chan string), make(chan error, 1)
	go func() {
		ended <- follow.File(ctx, path, func() {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Error(err)
			}
			select {
			case got <- string(text):
			case <-ctx.Done():
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("follow: %v", err)
		}
	})
	return got
}

// await waits for want. Until the file is followed, nothing tells of a change: so
// it is made again and again.
func await(t *testing.T, got <-chan string, want string, change func()) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for change(); ; {
		select {
		case text := <-got:
			if text == want {
				return
			}
		case <-tick.C:
			change()
		case <-late:
			t.Fatalf("no change to %q is noticed", want)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFileThatIsWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "settings.yaml")
	write(t, path, "one")
	got := start(t, path)
	n := 0
	toggle := func() { // an equal text is no change
		n++
		write(t, path, []string{"two", "one"}[n%2])
	}
	await(t, got, "two", toggle)
	write(t, path+".new", "three")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	await(t, got, "three", func() {})
}

// TestFileOfConfigMap changes a file as the kubelet does: by a link beside it.
func TestFileOfConfigMap(t *testing.T) {
	dir := t.TempDir()
	for _, version := range []string{"one", "two"} {
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, version, "settings.yaml"), version)
	}
	lead := func(to string) {
		link := filepath.Join(dir, "..data")
		if err := os.Symlink(to, link+"_tmp"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link+"_tmp", link); err != nil {
			t.Fatal(err)
		}
	}
	lead("one")
	path := filepath.Join(dir, "settings.yaml")
	if err := os.Symlink("..data/settings.yaml", path); err != nil {
		t.Fatal(err)
	}
	got := start(t, path)
	n := 0
	await(t, got, "two", func() {
		n++
		lead([]string{"one", "two"}[n%2])
	})
}

func TestNoFile(t *testing.T) {
	err := follow.File(t.Context(), filepath.Join(t.TempDir(), "settings.yaml"), func() {})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error is %v, want %v", err, fs.ErrNotExist)
	}
}
