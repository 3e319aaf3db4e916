package memory

import (
	"fmt"
	"math/bits"
	"sync"
	"syscall"
)

// smallestMapping keeps mappings of modest modules interchangeable.
const smallestMapping uint64 = 1 << 20

// Pool holds mappings for linear memories. It is safe for concurrent use.
type Pool struct {
	retain int64
	pages  *pagemap

	mu   sync.Mutex
	kept map[uint64][]*mapping // by size, the last one used last
	n    int                   // of kept, all sizes
	// held are the bytes of physical memory that kept may have, and what is being
	// emptied.
	held int64
	lent int
	// emptying are the goroutines that give the pages of large mappings back.
	emptying sync.WaitGroup
}

// mapping is a range of addresses, of which the kernel gives pages, zeroed, as
// they are touched. All of it reads as zero while it is kept.
type mapping struct {
	bytes    []byte
	resident int64 // at most so much has pages
}

// NewPool returns a Pool that keeps mappings with at most retain bytes of
// physical memory for later instances.
func NewPool(retain int64) *Pool {
	return &Pool{retain: retain, pages: openPagemap(), kept: map[uint64][]*mapping{}}
}

// get returns a zeroed mapping of at least size bytes.
func (p *Pool) get(size uint64) (*mapping, error) {
	class := classOf(size)
	p.mu.Lock()
	if of := p.kept[class]; len(of) > 0 {
		m := of[len(of)-1]
		p.kept[class] = of[:len(of)-1]
		p.n--
		p.held -= m.resident
		p.lent++
		p.mu.Unlock()
		return m, nil
	}
	p.lent++
	p.mu.Unlock()
	m, err := newMapping(class)
	if err != nil {
		p.mu.Lock()
		p.lent--
		p.mu.Unlock()
	}
	return m, err
}

// classOf returns the size of the mappings that serve size: a power of two.
func classOf(size uint64) uint64 {
	return max(smallestMapping, uint64(1)<<bits.Len64(size-1))
}

func newMapping(size uint64) (*mapping, error) {
	const prot, flags = syscall.PROT_READ | syscall.PROT_WRITE, syscall.MAP_PRIVATE | syscall.MAP_ANON | syscall.MAP_NORESERVE
	mapped, err := syscall.Mmap(-1, 0, int(size), prot, flags)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes for a guest's memory: %w", size, err)
	}
	// A huge page would be zeroed for the first byte touched. Kernels without
	// huge pages refuse the advice, and don't need it.
	_ = syscall.Madvise(mapped, syscall.MADV_NOHUGEPAGE)
	return &mapping{bytes: mapped}, nil
}

// put takes back a mapping whose first used bytes a guest may have written. The
// kernel takes a millisecond for the pages of 32 MiB, for which no caller waits, as long as
// they aren't more than may be kept.
func (p *Pool) put(m *mapping, used uint64) {
	zeroed := p.pages.zero(m, used)
	p.mu.Lock()
	p.lent--
	later := !zeroed && p.held+int64(used) <= p.retain
	if later {
		p.held += int64(used)
	}
	p.mu.Unlock()
	switch {
	case zeroed:
		p.keep(m)
	case later:
		p.emptying.Go(func() {
			p.empty(m)
			p.mu.Lock()
			defer p.mu.Unlock()
			p.held -= int64(used)
		})
	default:
		p.empty(m)
	}
}

// empty gives m's pages back to the kernel, and keeps the rest of it.
func (p *Pool) empty(m *mapping) {
	if syscall.Madvise(m.bytes, syscall.MADV_DONTNEED) != nil {
		m.unmap()
		return
	}
	m.resident = 0
	p.keep(m)
}

// keep keeps a mapping that reads as zero, if there is room for it.
func (p *Pool) keep(m *mapping) {
	p.mu.Lock()
	room := p.held+m.resident <= p.retain && p.n < maxKept
	if room {
		class := uint64(len(m.bytes))
		p.kept[class] = append(p.kept[class], m)
		p.n++
		p.held += m.resident
	}
	p.mu.Unlock()
	if !room {
		m.unmap()
	}
}

// maxKept bounds how many mappings are kept: a process may have some 65,000,
// code included.
const maxKept = 1024

// Lent returns how many mappings instances hold now.
func (p *Pool) Lent() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lent
}

// Close gives the kept mappings back to the kernel. Nothing may be lent.
func (p *Pool) Close() {
	p.emptying.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, of := range p.kept {
		for _, m := range of {
			m.unmap()
		}
	}
	p.kept, p.n, p.held = map[uint64][]*mapping{}, 0, 0
	p.pages.close()
}

func (m *mapping) unmap() { _ = syscall.Munmap(m.bytes) } // it was mapped whole
