package wasi

import (
	"crypto/rand"
	goruntime "runtime"
	"time"

	"github.com/tetratelabs/wazero/api"
	wasmsys "github.com/tetratelabs/wazero/sys"
)

const (
	clockRealtime  = 0
	clockMonotonic = 1
)

func clockResGet(_ *Process, mem api.Memory, a []uint64) errno {
	if id := uint32(a[0]); id != clockRealtime && id != clockMonotonic {
		return eINVAL
	}
	if !mem.WriteUint64Le(uint32(a[1]), 1) { // nanoseconds
		return eFAULT
	}
	return ok
}

// clockTimeGet doesn't need the precision that it is given.
func clockTimeGet(p *Process, mem api.Memory, a []uint64) errno {
	now, e := p.now(uint32(a[0]))
	if e != ok {
		return e
	}
	if !mem.WriteUint64Le(uint32(a[2]), now) {
		return eFAULT
	}
	return ok
}

// now reads a clock, in nanoseconds. The monotonic one begins when the process
// does, but above 0, which Go's runtime doesn't take for a time.
func (p *Process) now(clock uint32) (uint64, errno) {
	switch clock {
	case clockRealtime:
		return uint64(time.Now().UnixNano()), ok
	case clockMonotonic:
		return uint64(time.Since(p.started)) + 1, ok
	default: // a guest's own CPU time isn't known
		return 0, eINVAL
	}
}

// randomChunk is how much randomness is made without a look at the context.
const randomChunk = 64 << 10

func randomGet(p *Process, mem api.Memory, a []uint64) errno {
	buf, within := mem.Read(uint32(a[0]), uint32(a[1]))
	if !within {
		return eFAULT
	}
	for len(buf) > 0 {
		n := min(len(buf), randomChunk)
		_, _ = rand.Read(buf[:n]) // it never fails
		if buf = buf[n:]; len(buf) > 0 && p.ctx.Err() != nil {
			leave()
		}
	}
	return ok
}

func schedYield(p *Process, _ api.Memory, _ []uint64) errno {
	p.release()
	goruntime.Gosched()
	p.acquire()
	return ok
}

func procExit(_ *Process, _ api.Memory, a []uint64) errno {
	panic(wasmsys.NewExitError(uint32(a[0])))
}
