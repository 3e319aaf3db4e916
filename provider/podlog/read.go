package podlog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"
)

// Options say what of a log is read.
type Options struct {
	// Previous is the run before the last one.
	Previous bool
	// Follow goes on until the run has ended.
	Follow bool
	// Tail is how many lines from the end; below 0, all.
	Tail int64
	// Since leaves out what is older.
	Since time.Time
	// Timestamps puts each line's time before it.
	Timestamps bool
	// LimitBytes ends the output after so many; 0 is any number.
	LimitBytes int64
}

// ErrNoRun means that there is no log of the run that was asked for.
var ErrNoRun = errors.New("no log of that run")

// Copy writes what o asks for to out. It returns when that is all, when ctx has
// ended, or out's error.
func (l *Log) Copy(ctx context.Context, out io.Writer, o Options) error {
	c := &copying{log: l, out: out, options: o}
	if o.LimitBytes > 0 {
		c.left = o.LimitBytes
	} else {
		c.left = -1
	}
	files, err := l.begin(o)
	if err != nil {
		return err
	}
	if o.Tail >= 0 {
		if files, c.offset, err = l.tail(files, o.Tail); err != nil {
			return fmt.Errorf("read log: %w", err)
		}
	}
	err = c.run(ctx, files)
	if errors.Is(err, errLimit) {
		return nil
	}
	return err
}

// begin returns the files of the run that o asks for.
func (l *Log) begin(o Options) ([]file, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	files, err := l.files()
	if err != nil {
		return nil, fmt.Errorf("read log: %w", err)
	}
	if len(files) == 0 {
		return nil, ErrNoRun
	}
	run := files[len(files)-1].run
	if o.Previous {
		run--
	}
	files = slices.DeleteFunc(files, func(f file) bool { return f.run != run })
	if len(files) == 0 {
		return nil, ErrNoRun
	}
	return files, nil
}

// tail returns the files that hold the last n lines, and where they begin in the
// first of them.
func (l *Log) tail(files []file, n int64) ([]file, int64, error) {
	for i := len(files) - 1; i >= 0; i-- {
		offset, found, err := lastLines(l.path(files[i]), n)
		if errors.Is(err, fs.ErrNotExist) { // rotated away meanwhile
			return files[i+1:], 0, nil
		}
		if err != nil {
			return nil, 0, err
		}
		n -= found
		if n == 0 {
			return files[i:], offset, nil
		}
	}
	return files, 0, nil
}

// lastLines returns where the last n lines of a file begin, and how many there
// are, if not n.
func lastLines(path string, n int64) (offset, found int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return end, 0, err
	}
	// The line break at the end ends the last line: n+1 from the end begins it.
	block := make([]byte, 64<<10)
	for at := end; at > 0; {
		size := min(at, int64(len(block)))
		at -= size
		if _, err := f.ReadAt(block[:size], at); err != nil {
			return 0, 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if block[i] != '\n' {
				continue
			}
			if found++; found > n {
				return at + i + 1, n, nil
			}
		}
	}
	return 0, found, nil
}

// copying is one Copy.
type copying struct {
	log     *Log
	out     io.Writer
	options Options
	offset  int64 // in the first file
	left    int64 // bytes that may still be written; below 0, any number
	line    []byte
}

// errLimit ends a copy whose limit is reached.
var errLimit = errors.New("limit reached")

// run copies the files, and those that come after them.
func (c *copying) run(ctx context.Context, files []file) error {
	current := files[0]
	for {
		more, err := c.file(ctx, current)
		if err != nil || !more {
			return err
		}
		current.number++
	}
}

// file copies a file to its end. It returns whether there is a next one.
func (c *copying) file(ctx context.Context, of file) (more bool, err error) {
	f, err := os.Open(c.log.path(of))
	if errors.Is(err, fs.ErrNotExist) {
		return c.skip(of), nil // rotated away meanwhile
	}
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	defer f.Close()
	if _, err := f.Seek(c.offset, io.SeekStart); err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	c.offset = 0
	lines := bufio.NewReaderSize(f, 32<<10)
	var partial []byte
	for {
		// Before the read: what comes after it wakes us.
		changed, last, over := c.log.place(of)
		text, err := lines.ReadBytes('\n')
		partial = append(partial, text...)
		switch {
		case err == nil:
			if err := c.emit(partial); err != nil {
				return false, err
			}
			partial = partial[:0]
			continue
		case !errors.Is(err, io.EOF):
			return false, fmt.Errorf("read log: %w", err)
		case !last:
			return true, nil
		case over || !c.options.Follow:
			return false, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false, nil
		}
	}
}

// skip returns whether a file that is gone has one after it.
func (c *copying) skip(of file) (more bool) {
	_, last, _ := c.log.place(of)
	return !last
}

// place says of a file whether it is the last one of its run and whether the run
// is over, and returns what is closed when that or its content changes.
func (l *Log) place(of file) (changed <-chan struct{}, last, over bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.writer
	if w != nil && w.run == of.run {
		return l.change(), w.number == of.number, false
	}
	files, err := l.files()
	if err != nil {
		return nil, true, true
	}
	for _, f := range files {
		if f.run == of.run && f.number > of.number {
			return nil, false, true
		}
	}
	return nil, true, true
}

// emit writes one line as it was asked for.
func (c *copying) emit(line []byte) error {
	stamp, rest, _ := bytes.Cut(line, []byte{' '})
	_, rest, _ = bytes.Cut(rest, []byte{' '}) // the stream
	_, text, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return nil // a line that was cut off when the node died
	}
	if !c.options.Since.IsZero() {
		at, err := time.Parse(time.RFC3339Nano, string(stamp))
		if err != nil || at.Before(c.options.Since) {
			return nil
		}
	}
	c.line = c.line[:0]
	if c.options.Timestamps {
		c.line = append(append(c.line, stamp...), ' ')
	}
	c.line = append(c.line, text...)
	if c.left < 0 {
		_, err := c.out.Write(c.line)
		return err
	}
	n := min(c.left, int64(len(c.line)))
	if _, err := c.out.Write(c.line[:n]); err != nil {
		return err
	}
	if c.left -= n; c.left == 0 {
		return errLimit
	}
	return nil
}

// Tail returns the last lines of the last run, at most so many and so many bytes.
func (l *Log) Tail(lines, size int) string {
	var b bytes.Buffer
	if err := l.Copy(context.Background(), &b, Options{Tail: int64(lines)}); err != nil {
		return ""
	}
	text := b.Bytes()
	return string(bytes.ToValidUTF8(text[max(len(text)-size, 0):], nil))
}
