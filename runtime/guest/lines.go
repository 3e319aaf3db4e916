package guest

import "bytes"

// maxLine is where a longer line is broken, as container runtimes do for logs
// (CRI: 16 KiB).
const maxLine = 16 << 10

// Lines is a writer that cuts what is written into lines and emits each without
// its line break; one longer than 16 KiB comes in parts. It is for one goroutine
// at a time.
type Lines struct {
	emit func(line []byte) error
	part []byte // of a line whose end isn't written yet
}

// NewLines returns Lines that call emit, which must not keep the slice. An error
// of emit is what Write or Flush returns; what was written with that line is lost.
func NewLines(emit func(line []byte) error) *Lines { return &Lines{emit: emit} }

// Write emits the lines that end in b.
func (l *Lines) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		room := maxLine - len(l.part)
		n := bytes.IndexByte(rest[:min(room, len(rest))], '\n')
		var err error
		switch {
		case n >= 0:
			err = l.end(rest[:n])
			rest = rest[n+1:]
		case len(rest) >= room:
			err = l.end(rest[:room])
			rest = rest[room:]
		default:
			l.part = append(l.part, rest...)
			rest = nil
		}
		if err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

func (l *Lines) end(last []byte) error {
	if len(l.part) > 0 {
		l.part = append(l.part, last...)
		last = l.part
	}
	l.part = l.part[:0]
	return l.emit(last)
}

// Flush emits what is left without a line break.
func (l *Lines) Flush() error {
	if len(l.part) == 0 {
		return nil
	}
	return l.end(nil)
}
