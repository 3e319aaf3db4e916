package guest

import "bytes"

// maxLine is where a longer line is broken, as container runtimes do for logs
// (CRI: 16 KiB).
const maxLine = 16 << 10

// lines cuts a stream into lines and emits them without their line breaks.
type lines struct {
	emit func(line []byte)
	part []byte // of a line whose end isn't written yet
}

// Write never fails.
func (l *lines) Write(b []byte) (int, error) {
	for rest := b; len(rest) > 0; {
		room := maxLine - len(l.part)
		n := bytes.IndexByte(rest[:min(room, len(rest))], '\n')
		switch {
		case n >= 0:
			l.end(rest[:n])
			rest = rest[n+1:]
		case len(rest) >= room:
			l.end(rest[:room])
			rest = rest[room:]
		default:
			l.part = append(l.part, rest...)
			rest = nil
		}
	}
	return len(b), nil
}

func (l *lines) end(last []byte) {
	if len(l.part) > 0 {
		l.part = append(l.part, last...)
		last = l.part
	}
	l.emit(last)
	l.part = l.part[:0]
}

// flush emits what is left without a line break.
func (l *lines) flush() {
	if len(l.part) > 0 {
		l.end(nil)
	}
}
