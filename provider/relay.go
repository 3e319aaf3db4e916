package provider

import (
	"io"
	"sync"
)

// stdout and stderr are a guest's streams.
const (
	stdout = iota
	stderr
)

// maxHeld is how much of what a function writes ahead of its Pod is held back
// for the Pod's logs, in bytes. What comes after that goes to the node's log.
const maxHeld = 64 << 10

// relay holds the lines of a function that runs ahead of its Pod, until it is
// known whose logs they belong to. A write is a line. It is safe for concurrent
// use.
type relay struct {
	mu       sync.Mutex
	node     io.Writer // where lines of no pod go
	streams  [2]io.Writer
	held     []heldLine
	size     int
	resolved bool
}

type heldLine struct {
	stream int
	text   []byte
}

func newRelay(node io.Writer) *relay { return &relay{node: node} }

func (r *relay) writer(stream int) io.Writer { return relayed{r, stream} }

type relayed struct {
	*relay
	stream int
}

func (w relayed) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.resolved:
		return w.streams[w.stream].Write(line)
	case w.size+len(line) > maxHeld:
		return w.node.Write(line)
	}
	w.held = append(w.held, heldLine{w.stream, append([]byte(nil), line...)})
	w.size += len(line)
	return len(line), nil
}

// to sends what was held, and what comes, to a pod's logs.
func (r *relay) to(out, errs io.Writer) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.resolved {
		return
	}
	r.resolved, r.streams = true, [2]io.Writer{out, errs}
	for _, l := range r.held {
		_, _ = r.streams[l.stream].Write(l.text) // as of a line that comes now, its writer has to cope
	}
	r.held = nil
}

// flush sends it to the node's log: no pod came.
func (r *relay) flush() {
	if r != nil {
		r.to(r.node, r.node)
	}
}
