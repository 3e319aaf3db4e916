package cpu

import (
	"container/heap"
	"time"
)

// queue holds the turns that wait: shares by rank, and each share's turns by
// what they have used. Its owner locks it.
type queue struct {
	shares shares
	turns  int
}

func (q *queue) len() int { return q.turns }

func (q *queue) push(t *Turn) {
	s := t.share
	heap.Push(&s.turns, t)
	q.turns++
	s.key = s.rank()
	if len(s.turns) == 1 {
		heap.Push(&q.shares, s)
	} else {
		heap.Fix(&q.shares, s.index)
	}
}

// first returns the share that is first. What runs elsewhere at the same time
// may have put a share further back since it was queued.
func (q *queue) first() *Share {
	for {
		s := q.shares[0]
		now := s.rank()
		if now == s.key {
			return s
		}
		s.key = now
		heap.Fix(&q.shares, 0)
	}
}

// pop takes out the turn that is first.
func (q *queue) pop() *Turn {
	s := q.first()
	t := heap.Pop(&s.turns).(*Turn)
	q.turns--
	if len(s.turns) == 0 {
		heap.Pop(&q.shares)
	}
	return t
}

// remove takes out t, if it is there.
func (q *queue) remove(t *Turn) bool {
	s := t.share
	if t.index < 0 || t.index >= len(s.turns) || s.turns[t.index] != t {
		return false
	}
	heap.Remove(&s.turns, t.index)
	q.turns--
	if len(s.turns) == 0 {
		heap.Remove(&q.shares, s.index)
	}
	return true
}

// lead is by how much more an instance may have used than others of its share before
// it hands its core on to them. Without it, those that do the same would do so after
// each ration, which costs a thread's wake-up.
const lead = 250 * time.Microsecond

// before reports whether the first one in the queue should have a core rather
// than t, which has one.
func (q *queue) before(t *Turn) bool {
	if q.turns == 0 {
		return false
	}
	s := q.first()
	if s == t.share {
		return s.turns[0].used+lead < t.used
	}
	return s.key < t.share.rank()
}

// shares is a heap of shares whose turns wait.
type shares []*Share

func (h shares) Len() int           { return len(h) }
func (h shares) Less(i, j int) bool { return h[i].key < h[j].key }

func (h shares) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *shares) Push(x any) {
	s := x.(*Share)
	s.index = len(*h)
	*h = append(*h, s)
}

func (h *shares) Pop() any {
	last := len(*h) - 1
	s := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return s
}

// turns is a heap of one share's turns.
type turns []*Turn

func (h turns) Len() int           { return len(h) }
func (h turns) Less(i, j int) bool { return h[i].used < h[j].used }

func (h turns) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *turns) Push(x any) {
	t := x.(*Turn)
	t.index = len(*h)
	*h = append(*h, t)
}

func (h *turns) Pop() any {
	last := len(*h) - 1
	t := (*h)[last]
	t.index = -1
	(*h)[last] = nil
	*h = (*h)[:last]
	return t
}
