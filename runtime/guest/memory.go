package guest

import (
	"syscall"

	"github.com/tetratelabs/wazero/experimental"
)

// memory is the linear memory of one instance, outside Go's heap: a mapping as
// large as the instance may grow to, of which the kernel gives pages, zeroed, as
// they are touched. An instance costs what it touches, whatever it declares;
// growing moves nothing, and the collector has no part in it.
// See ../RATIONALE.md "Why is a guest's memory mapped?".
//
// It is a wazero MemoryAllocator and its one LinearMemory.
type memory struct{ mapped []byte }

// Allocate implements experimental.MemoryAllocator.
func (m *memory) Allocate(_, limit uint64) experimental.LinearMemory {
	const prot, flags = syscall.PROT_READ | syscall.PROT_WRITE, syscall.MAP_PRIVATE | syscall.MAP_ANON | syscall.MAP_NORESERVE
	mapped, err := syscall.Mmap(-1, 0, int(limit), prot, flags)
	if err != nil {
		// The machine has no mapping left. wazero can't be told no here.
		return &heap{}
	}
	// A huge page would be zeroed for the first byte touched. Kernels without
	// huge pages refuse the advice, and don't need it.
	_ = syscall.Madvise(mapped, syscall.MADV_NOHUGEPAGE)
	m.mapped = mapped
	return m
}

// Reallocate implements experimental.LinearMemory.
func (m *memory) Reallocate(size uint64) []byte {
	if size > uint64(len(m.mapped)) {
		return nil
	}
	return m.mapped[:size]
}

// Free implements experimental.LinearMemory. It does nothing: wazero doesn't
// call it where making an instance fails half-way, so release is called instead.
func (m *memory) Free() {}

// release unmaps the memory. The instance must be closed.
func (m *memory) release() {
	if m.mapped != nil {
		_ = syscall.Munmap(m.mapped) // it was mapped by Allocate, whole
		m.mapped = nil
	}
}

// heap is linear memory on Go's heap.
type heap struct{ buf []byte }

func (h *heap) Reallocate(size uint64) []byte {
	h.buf = append(h.buf, make([]byte, size-uint64(len(h.buf)))...)
	return h.buf
}

func (h *heap) Free() {}
