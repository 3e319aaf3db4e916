package memory

import (
	"os"
	goruntime "runtime"
	"sync"
	"syscall"
	"unsafe"
)

const (
	// small is what is cleared as it is: asking the kernel takes longer.
	small = 128 << 10
	// maxResident bounds the pages that a kept mapping keeps: clearing more takes
	// longer than having the next guest fault them in.
	maxResident = 4 << 20
	// refreshed is how often a mapping is used before its pages are given back: those
	// of one large request would be cleared after each small one else.
	refreshed = 64
	// maxRegions bounds the runs of touched pages that are asked for at once.
	maxRegions = 256
)

// pagemap zeroes mappings. It asks the kernel which pages a guest has touched
// (PAGEMAP_SCAN, Linux 6.7): a page fault costs as much as clearing some twenty
// pages, so pages are better cleared than given back. A kernel that can't say
// takes all back.
//
// What is in swap counts as touched. mincore(2), the older way to ask, doesn't
// tell of that, and the next guest would read it.
type pagemap struct {
	file    *os.File  // nil: the kernel can't say
	buffers sync.Pool // of *regions
}

// See linux/fs.h.
type scanArg struct {
	size, flags           uint64
	start, end, walkEnd   uint64
	vec, vecLen, maxPages uint64
	inverted, mask, anyOf uint64
	returned              uint64
}

type region struct{ start, end, _ uint64 } // the last is what the pages are

// regions is on the heap, where nothing moves: the kernel gets its address.
type regions [maxRegions]region

const (
	pagemapScan   = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)
	pageIsPresent = 1 << 3
	pageIsSwapped = 1 << 4
)

func openPagemap() *pagemap {
	p := &pagemap{}
	p.buffers.New = func() any { return new(regions) }
	file, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return p
	}
	p.file = file
	probe, err := newMapping(smallestMapping)
	if err == nil {
		defer probe.unmap()
		if _, ok := p.scan(probe.bytes, new(regions)); ok {
			return p
		}
	}
	file.Close()
	p.file = nil
	return p
}

func (p *pagemap) close() {
	if p.file != nil {
		p.file.Close()
	}
}

// zero makes all of m read as zero, given that only its first used bytes may
// not. It reports whether it has: else the kernel should take its pages back.
func (p *pagemap) zero(m *mapping, used uint64) bool {
	if used <= small {
		clear(m.bytes[:used])
		m.resident = max(m.resident, int64(used))
		return true
	}
	if m.uses++; m.uses%refreshed == 0 && m.resident > small {
		return false
	}
	buffer := p.buffers.Get().(*regions)
	defer p.buffers.Put(buffer)
	touched, ok := p.touched(m.bytes[:used], buffer)
	if !ok {
		return false
	}
	m.resident = 0
	for _, r := range touched {
		clear(m.bytes[r.start:r.end])
		m.resident += int64(r.end - r.start)
	}
	return true
}

// touched returns the runs of pages of b that may hold something, as offsets;
// false means that they can't be told, or are so many that clearing them is the
// longer way.
func (p *pagemap) touched(b []byte, buffer *regions) ([]region, bool) {
	if p.file == nil {
		return nil, false
	}
	found, ok := p.scan(b, buffer)
	if !ok || len(found) == len(buffer) {
		return nil, false
	}
	start := addressOf(b)
	var bytes uint64
	for i := range found {
		r := &found[i]
		r.start -= start
		r.end = min(r.end-start, uint64(len(b)))
		bytes += r.end - r.start
	}
	return found, bytes <= maxResident
}

func (p *pagemap) scan(b []byte, buffer *regions) ([]region, bool) {
	fd, start := p.file.Fd(), addressOf(b)
	arg := scanArg{
		size:     uint64(unsafe.Sizeof(scanArg{})),
		start:    start,
		end:      start + uint64(len(b)),
		vec:      uint64(uintptr(unsafe.Pointer(buffer))),
		vecLen:   uint64(len(buffer)),
		anyOf:    pageIsPresent | pageIsSwapped,
		returned: pageIsPresent | pageIsSwapped,
	}
	n, _, errno := syscall.RawSyscall(syscall.SYS_IOCTL, fd, pagemapScan, uintptr(unsafe.Pointer(&arg)))
	goruntime.KeepAlive(buffer)
	if errno != 0 {
		return nil, false
	}
	return buffer[:n], true
}

func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
