// Package podlog keeps what containers write, in files, and gives it back: the
// whole, the end, what comes.
//
// A [Log] is one container's, in a folder of its own. Each run of the container
// has a [Writer] and a series of files, "<run>.<number>.log", of which each is
// begun when the one before is full and the oldest is removed when there are too
// many. Of runs the last two are kept. The lines are in the format that container
// runtimes use (CRI): time, stream, tag, text.
//
// A Log starts no goroutine. Readers that follow are woken by writers, so nothing
// polls.
package podlog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Limits bound one container's log on disk.
type Limits struct {
	// FileSize is where a new file is begun, in bytes, and Files how many of one
	// run are kept. Both are above 0.
	FileSize int64
	Files    int
	// Rate is how many bytes a second a container may write for long, beyond
	// which it waits. 0 is any.
	Rate int64
}

// Log is one container's log. It is safe for concurrent use.
type Log struct {
	dir    string
	limits Limits

	mu      sync.Mutex
	writer  *Writer       // nil: none writes
	changed chan struct{} // closed at the next change; nil if nobody waits
}

// New returns the log in dir, which need not be there yet.
func New(dir string, limits Limits) *Log { return &Log{dir: dir, limits: limits} }

// Begin returns the writer of a run, which must be a later one than those before.
// It ends the writer before it, and removes the runs before that.
func (l *Log) Begin(run int) (*Writer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end()
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, fmt.Errorf("begin log: %w", err)
	}
	files, err := l.files()
	if err != nil {
		return nil, fmt.Errorf("begin log: %w", err)
	}
	number := 0
	for _, f := range files {
		if f.run < run-1 {
			os.Remove(l.path(f))
		}
		if f.run == run {
			number = f.number + 1 // an earlier process of the node had begun it
		}
	}
	w := &Writer{log: l, run: run, budget: l.limits.Rate, refilled: time.Now(), done: make(chan struct{})}
	if err := w.open(number); err != nil {
		return nil, fmt.Errorf("begin log: %w", err)
	}
	l.writer = w
	l.wake()
	return w, nil
}

// end ends the present writer. l.mu is held.
func (l *Log) end() {
	if w := l.writer; w != nil {
		l.writer = nil
		close(w.done)
		w.file.Close()
		l.wake()
	}
}

// wake wakes all who wait for a change. l.mu is held.
func (l *Log) wake() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// change returns a channel that is closed at the next change. l.mu is held.
func (l *Log) change() <-chan struct{} {
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}

// file is one file of a log.
type file struct{ run, number int }

func (l *Log) path(f file) string {
	return filepath.Join(l.dir, fmt.Sprintf("%d.%d.log", f.run, f.number))
}

// files returns the log's files in the order in which they were written.
func (l *Log) files() ([]file, error) {
	entries, err := os.ReadDir(l.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var files []file
	for _, e := range entries {
		var f file
		if n, err := fmt.Sscanf(e.Name(), "%d.%d.log", &f.run, &f.number); err == nil && n == 2 {
			files = append(files, f)
		}
	}
	slices.SortFunc(files, func(a, b file) int {
		if a.run != b.run {
			return a.run - b.run
		}
		return a.number - b.number
	})
	return files, nil
}

// Writer writes one run's log. It is safe for concurrent use.
type Writer struct {
	log *Log
	run int
	// done is closed when the writer has ended; it is one of log.mu's things, as
	// are those below.
	done chan struct{}

	file   *os.File
	number int
	size   int64
	line   []byte // the last line's buffer
	lost   int    // lines that could not be written

	budget   int64 // bytes that may be written at once
	refilled time.Time
}

// Stream returns the writer of one of the run's streams, stdout or stderr. Each
// Write is a line, with or without its line break. While the container is over
// its rate, a Write waits, at most until the Writer is closed. A Write never
// fails: what can't be written is counted, and said in the log when it can be.
func (w *Writer) Stream(name string) *Stream { return &Stream{w, name} }

// Stream is one of a Writer's streams.
type Stream struct {
	writer *Writer
	name   string
}

// Write writes one line.
func (s *Stream) Write(line []byte) (int, error) {
	s.writer.write(time.Now(), s.name, line)
	return len(line), nil
}

func (w *Writer) write(now time.Time, stream string, text []byte) {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	if !w.pace(int64(len(text))) {
		return
	}
	if w.lost > 0 {
		lost := w.lost
		w.lost = 0
		w.append(now, "stderr", fmt.Appendf(nil, "wisp: %d lines lost here: the log could not be written", lost))
	}
	w.append(now, stream, text)
	w.log.wake()
}

// pace waits until n more bytes may be written. It returns false if the writer
// was closed. log.mu is held, and let go while it waits.
func (w *Writer) pace(n int64) bool {
	rate := w.log.limits.Rate
	for {
		select {
		case <-w.done:
			return false
		default:
		}
		if rate == 0 {
			return true
		}
		now := time.Now()
		w.budget = min(w.budget+int64(now.Sub(w.refilled).Seconds()*float64(rate)), rate)
		w.refilled = now
		if w.budget >= 0 {
			w.budget -= n // the line that overdraws is let through, the next one waits
			return true
		}
		wait := time.Duration(float64(-w.budget) / float64(rate) * float64(time.Second))
		w.log.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-w.done:
		}
		timer.Stop()
		w.log.mu.Lock()
	}
}

// timeFormat has a fixed width, so that lines can be compared by eye.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// append writes one line to the file. log.mu is held.
func (w *Writer) append(now time.Time, stream string, text []byte) {
	line := now.UTC().AppendFormat(w.line[:0], timeFormat)
	line = append(append(append(line, ' '), stream...), " F "...)
	line = append(line, text...)
	if line[len(line)-1] != '\n' {
		line = append(line, '\n')
	}
	w.line = line
	if w.size > 0 && w.size+int64(len(line)) > w.log.limits.FileSize {
		if err := w.rotate(); err != nil {
			w.lost++
			return
		}
	}
	n, err := w.file.Write(line)
	w.size += int64(n)
	if err != nil {
		w.lost++
		// Half a line would run into the next one.
		if n > 0 && w.file.Truncate(w.size-int64(n)) == nil {
			w.size -= int64(n)
		}
	}
}

// rotate begins the next file and removes the oldest. log.mu is held.
func (w *Writer) rotate() error {
	old := w.file
	if err := w.open(w.number + 1); err != nil {
		return err
	}
	old.Close()
	if oldest := w.number - w.log.limits.Files; oldest >= 0 {
		os.Remove(w.log.path(file{w.run, oldest}))
	}
	return nil
}

func (w *Writer) open(number int) error {
	f, err := os.OpenFile(w.log.path(file{w.run, number}), os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	w.file, w.number, w.size = f, number, 0
	return nil
}

// Close ends the run's log: those who follow it have all of it.
func (w *Writer) Close() {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	if w.log.writer == w {
		w.log.end()
	}
}
