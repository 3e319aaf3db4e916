package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
)

// maxQueued bounds the bytes of lines that wait for the log.
const maxQueued = 1 << 20

// stream is one of a guest's two output streams.
type stream byte

const (
	stdout stream = iota
	stderr
)

// lineQueue takes the lines of both streams and writes them to their logs in the
// order in which they came. A goroutine does so as long as there are any; wait
// joins it.
type lineQueue struct {
	logs [2]io.Writer // by stream; nil drops all

	mu      sync.Mutex
	written *sync.Cond    // on mu: writing became false
	queued  []byte        // for each line its stream, itself and a line break
	spare   []byte        // an empty buffer, to become queued
	dropped int           // lines for which there was no room
	writing bool          // the goroutine runs
	room    chan struct{} // closed when what is queued was taken; nil if nobody waits
}

func newLineQueue(out, err io.Writer) *lineQueue {
	q := &lineQueue{logs: [2]io.Writer{stdout: out, stderr: err}}
	q.written = sync.NewCond(&q.mu)
	return q
}

// offer queues a line of standard error, which must hold no line break, or drops and
// counts it.
func (q *lineQueue) offer(line []byte) {
	if q.logs[stderr] == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.add(stderr, line) {
		q.dropped++
	}
}

// put queues a line, which must hold no line break, once there is room. It gives
// up with ctx and returns its cause.
func (q *lineQueue) put(ctx context.Context, s stream, line []byte) error {
	if q.logs[s] == nil {
		return nil
	}
	for {
		q.mu.Lock()
		if q.add(s, line) {
			q.mu.Unlock()
			return nil
		}
		if q.room == nil {
			q.room = make(chan struct{})
		}
		room := q.room
		q.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// add queues a line if there is room. q.mu is held.
func (q *lineQueue) add(s stream, line []byte) bool {
	if len(q.queued)+len(line)+2 > maxQueued {
		return false
	}
	q.queued = append(append(append(q.queued, byte(s)), line...), '\n')
	if !q.writing {
		q.writing = true
		go q.write()
	}
	return true
}

// write writes until nothing is queued.
func (q *lineQueue) write() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.queued) > 0 {
		batch, dropped := q.queued, q.dropped
		q.queued, q.spare, q.dropped = q.spare[:0], nil, 0
		if q.room != nil {
			close(q.room)
			q.room = nil
		}
		q.mu.Unlock()
		q.writeLines(batch, dropped)
		q.mu.Lock()
		q.spare = batch
	}
	// An idle pod keeps no buffers.
	q.queued, q.spare = nil, nil
	q.writing = false
	q.written.Broadcast()
}

// writeLines writes each line by itself. A line that the log refuses is lost:
// there is nobody to tell but the log.
func (q *lineQueue) writeLines(batch []byte, dropped int) {
	for line := range bytes.Lines(batch) {
		_, _ = q.logs[line[0]].Write(line[1:])
	}
	if dropped > 0 { // of standard error: nothing else is dropped
		_, _ = fmt.Fprintf(q.logs[stderr], "wisp: %d lines dropped here: the log was too slow\n", dropped)
	}
}

// wait returns when all lines that were added before it are written.
func (q *lineQueue) wait() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.writing {
		q.written.Wait()
	}
}
