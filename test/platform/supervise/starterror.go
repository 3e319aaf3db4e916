package supervise

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// StartError says why a component didn't start.
type StartError struct {
	Component string
	Cause     error
	// Tail holds the last lines that the process wrote, Log the file with the
	// rest.
	Tail []string
	Log  string
}

// Error names the component and the cause, then the end of the log.
func (e *StartError) Error() string {
	return fmt.Sprintf("start component %s: %v%s", e.Component, e.Cause, excerpt(e.Tail, e.Log))
}

// excerpt shows the end of a log under the line that it is appended to.
func excerpt(tail []string, log string) string {
	var b strings.Builder
	for _, line := range tail {
		b.WriteString("\n    " + line)
	}
	if log != "" {
		b.WriteString("\n  the whole log: " + log)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Cause }

// tailLines is how many lines of a log go into an error.
const tailLines = 15

// tail returns the last lines that c wrote.
func (u *unit) tail(c *child) []string {
	f, err := os.Open(u.log)
	if err != nil {
		return []string{err.Error()}
	}
	defer f.Close()
	lines, err := Tail(f, c.logOffset, tailLines)
	if err != nil {
		return []string{err.Error()}
	}
	return lines
}

// maxTail bounds what is read of a log's end, in bytes.
const maxTail = 32 << 10

// Tail returns the last n lines of a log, none of them from before offset from.
func Tail(f *os.File, from int64, n int) ([]string, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from = max(from, info.Size()-maxTail)
	text, err := io.ReadAll(io.NewSectionReader(f, from, info.Size()-from))
	if err != nil {
		return nil, err
	}
	trimmed := strings.TrimRight(string(text), "\n")
	if trimmed == "" {
		return nil, nil
	}
	lines := strings.Split(trimmed, "\n")
	return lines[max(0, len(lines)-n):], nil
}
