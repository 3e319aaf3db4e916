package memory

import (
	"slices"
	"sync"
)

// Common is memory that sandboxes hold together, such as that of a volume. It
// counts in the Budget of each that has joined, whoever has written it: what one of
// them would get by the others' leave none of them gets. It is safe for concurrent
// use.
type Common struct {
	limit int64

	mu      sync.Mutex
	held    int64
	budgets []*Budget
}

// NewCommon returns a Common of at most limit bytes.
func NewCommon(limit int64) *Common { return &Common{limit: limit} }

// Hold counts bytes more as held, or, below 0, fewer. Beyond its own limit, or that
// of a Budget that has joined, it counts nothing and says no.
func (c *Common) Hold(bytes int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if bytes > 0 && c.held+bytes > c.limit {
		return false
	}
	for i, b := range c.budgets {
		if !b.hold(bytes) {
			for _, b := range c.budgets[:i] {
				b.hold(-bytes)
			}
			return false
		}
	}
	c.held += bytes
	return true
}

// Join counts what is held, and will be, as b's too, until leave is called, once.
func (c *Common) Join(b *Budget) (leave func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.budgets = append(c.budgets, b)
	b.join(c.held)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		i := slices.Index(c.budgets, b)
		c.budgets = slices.Delete(c.budgets, i, i+1)
		b.hold(-c.held)
	}
}
