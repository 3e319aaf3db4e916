package memory

import (
	"fmt"
	"math/bits"
	"slices"
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
	kept map[shelf][]*mapping // the last one used last
	n    int                  // of kept, on all shelves
	puts uint64               // how many mappings have been kept so far
	// held are the bytes of physical memory that kept may have, and leaving those of
	// what is being emptied.
	held, leaving int64
	lent          int
	// emptying are the goroutines that give the pages of large mappings back.
	emptying sync.WaitGroup
}

// shelf is where mappings wait for instances of the module that has used them: such
// instances touch much the same pages. What another one has touched would be cleared
// after each use, and what it hasn't would have to be faulted in.
type shelf struct {
	module string
	size   uint64
}

// mapping is a range of addresses, of which the kernel gives pages, zeroed, as
// they are touched. All of it reads as zero while it is kept.
type mapping struct {
	bytes    []byte
	shelf    shelf
	resident int64  // at most so much has pages
	uses     int    // how often more than small was used of it
	kept     uint64 // Pool.puts at the time
}

// NewPool returns a Pool that keeps mappings with at most retain bytes of
// physical memory for later instances.
func NewPool(retain int64) *Pool {
	return &Pool{retain: retain, pages: openPagemap(), kept: map[shelf][]*mapping{}}
}

// get returns a zeroed mapping of at least size bytes for an instance of a module.
func (p *Pool) get(module string, size uint64) (*mapping, error) {
	from := shelf{module, classOf(size)}
	p.mu.Lock()
	p.lent++
	if of := p.kept[from]; len(of) > 0 {
		defer p.mu.Unlock()
		return p.takeOut(from, len(of)-1), nil
	}
	p.mu.Unlock()
	m, err := newMapping(from.size)
	if err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.lent--
		return nil, err
	}
	m.shelf = from
	return m, nil
}

// takeOut takes the mapping at an index out of a shelf. p.mu is held.
func (p *Pool) takeOut(from shelf, index int) *mapping {
	of := p.kept[from]
	m := of[index]
	if of = slices.Delete(of, index, index+1); len(of) > 0 {
		p.kept[from] = of
	} else {
		delete(p.kept, from)
	}
	p.n--
	p.held -= m.resident
	return m
}

// takeOldest takes out the mapping that has been kept for the longest. There is one.
// p.mu is held.
func (p *Pool) takeOldest() *mapping {
	var oldest *mapping
	for _, of := range p.kept {
		if oldest == nil || of[0].kept < oldest.kept {
			oldest = of[0]
		}
	}
	return p.takeOut(oldest.shelf, 0)
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
	later := !zeroed && p.held+p.leaving+int64(used) <= p.retain
	if later {
		p.leaving += int64(used)
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
			p.leaving -= int64(used)
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

// keep keeps a mapping that reads as zero. What has been kept for the longest makes
// room for it.
func (p *Pool) keep(m *mapping) {
	var out []*mapping
	p.mu.Lock()
	if room := p.retain - p.leaving - m.resident; room >= 0 {
		for p.n > 0 && (p.held > room || p.n >= maxKept) {
			out = append(out, p.takeOldest())
		}
		p.puts++
		m.kept = p.puts
		p.kept[m.shelf] = append(p.kept[m.shelf], m)
		p.n++
		p.held += m.resident
	} else {
		out = append(out, m)
	}
	p.mu.Unlock()
	for _, m := range out {
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
	p.kept, p.n, p.held = map[shelf][]*mapping{}, 0, 0
	p.pages.close()
}

func (m *mapping) unmap() { _ = syscall.Munmap(m.bytes) } // it was mapped whole
