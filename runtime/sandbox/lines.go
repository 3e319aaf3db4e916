package sandbox

import (
	"bytes"
	"fmt"
	"io"
	"sync"
)

// maxQueued bounds the bytes of lines that wait for the log.
const maxQueued = 1 << 20

// lineQueue takes lines without waiting and writes them to a log in order. A
// goroutine does so as long as there are any; wait joins it.
type lineQueue struct {
	log io.Writer // nil drops all

	mu      sync.Mutex
	written *sync.Cond // on mu: writing became false
	queued  []byte     // whole lines with their line breaks
	spare   []byte     // an empty buffer, to become queued
	dropped int        // lines for which there was no room
	writing bool       // the goroutine runs
}

func newLineQueue(log io.Writer) *lineQueue {
	q := &lineQueue{log: log}
	q.written = sync.NewCond(&q.mu)
	return q
}

// add queues a line, which must hold no line break.
func (q *lineQueue) add(line []byte) {
	if q.log == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queued)+len(line) >= maxQueued {
		q.dropped++
		return
	}
	q.queued = append(append(q.queued, line...), '\n')
	if !q.writing {
		q.writing = true
		go q.write()
	}
}

// write writes until nothing is queued.
func (q *lineQueue) write() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.queued) > 0 {
		batch, dropped := q.queued, q.dropped
		q.queued, q.spare, q.dropped = q.spare[:0], nil, 0
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
		_, _ = q.log.Write(line)
	}
	if dropped > 0 {
		_, _ = fmt.Fprintf(q.log, "wisp: %d lines dropped here: the log was too slow\n", dropped)
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
