package local

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// settle is how long files must be left alone before a change counts: compilers
// write in pieces, and editors remove and rename.
const settle = 100 * time.Millisecond

// watcher tells of changed content of files. It watches their folders: a file
// that is replaced is another one.
type watcher struct {
	files   []string
	changed chan struct{} // holds one token
	notify  *fsnotify.Watcher
	last    string // content, as of the latest token
	running sync.WaitGroup
}

func newWatcher(files []string) (*watcher, error) {
	w := &watcher{files: files, changed: make(chan struct{}, 1), last: contentOf(files)}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	w.notify = notify
	for _, file := range files {
		if err := notify.Add(filepath.Dir(file)); err != nil {
			_ = notify.Close()
			return nil, fmt.Errorf("watch %s: %w", file, err)
		}
	}
	w.running.Go(w.run)
	return w, nil
}

func (w *watcher) close() {
	_ = w.notify.Close() // ends run
	w.running.Wait()
}

func (w *watcher) run() {
	timer := time.NewTimer(settle)
	timer.Stop()
	defer timer.Stop()
	for {
		select {
		case _, ok := <-w.notify.Events:
			if !ok {
				return
			}
			timer.Reset(settle)
		case _, ok := <-w.notify.Errors:
			if !ok {
				return
			}
			timer.Reset(settle) // some events may be lost: look
		case <-timer.C:
			if now := contentOf(w.files); now != w.last {
				w.last = now
				select {
				case w.changed <- struct{}{}:
				default: // nobody has looked at the last change yet
				}
			}
		}
	}
}

// contentOf stands for what is in the files. One that can't be read is in the
// middle of being replaced, or wrong in a way that whoever uses it will tell.
func contentOf(files []string) string {
	sum := sha256.New()
	for _, file := range files {
		text, err := os.ReadFile(file)
		fmt.Fprintf(sum, "%t %d ", err == nil, len(text))
		sum.Write(text)
	}
	return string(sum.Sum(nil))
}
