// Package follow notices that a file of settings has become another. It knows
// nothing of what is in it.
package follow

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// File calls changed whenever the content of the file at path is another than it
// was, until ctx ends, and then returns nil. Calls don't overlap. A file that is
// gone for a while is none; what is written in two steps may be two changes.
//
// The folder is watched and not the file: a volume of a ConfigMap changes by a
// symbolic link beside it, and editors replace files.
func File(ctx context.Context, path string, changed func()) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("follow %s: %w", path, err)
	}
	defer func() { _ = watcher.Close() }()
	if err := watcher.Add(filepath.Dir(path)); err != nil {
		return fmt.Errorf("follow %s: %w", path, err)
	}
	was, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("follow %s: %w", path, err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-watcher.Events: // of any file there
		case <-watcher.Errors: // events may be lost
		}
		is, err := os.ReadFile(path)
		if err != nil || bytes.Equal(was, is) {
			continue
		}
		was = is
		changed()
	}
}
