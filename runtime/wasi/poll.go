package wasi

import (
	"math"
	"time"

	"github.com/tetratelabs/wazero/api"
)

const (
	eventClock = iota
	eventRead
	eventWrite
)

// maxSubscriptions bounds what one call polls: both directions of everything
// that a process can have open, and some clocks.
const maxSubscriptions = 2*maxOpen + 64

// pollOneoff waits for the first of many events: that a time has come, or that a
// read or write wouldn't wait. What isn't a socket is always ready.
func pollOneoff(p *Process, mem api.Memory, a []uint64) errno {
	n := uint32(a[2])
	if n == 0 || n > maxSubscriptions {
		return eINVAL
	}
	in, within := mem.Read(uint32(a[0]), n*subscriptionLen)
	if !within {
		return eFAULT
	}
	out, within := mem.Read(uint32(a[1]), n*eventLen)
	if !within {
		return eFAULT
	}
	poll := poll{p: p, in: in, out: out}
	if e := poll.prepare(); e != ok {
		return e
	}
	for {
		// Zero stays zero: it isn't to wait, however long the rest takes.
		timeout := time.Duration(-1)
		if poll.timed {
			timeout = max(0, poll.after-time.Since(poll.began))
		}
		if poll.scan(timeout == 0) > 0 {
			return putCount(mem, a[3], uint32(poll.events), ok)
		}
		p.wait(timeout)
	}
}

// poll is one call of poll_oneoff.
type poll struct {
	p       *Process
	in, out []byte
	events  int

	began time.Time
	timed bool
	after time.Duration // when the first of its clocks is due
}

// prepare checks the subscriptions and finds when to end.
func (l *poll) prepare() errno {
	for in := l.in; len(in) > 0; in = in[subscriptionLen:] {
		switch in[8] {
		case eventClock:
			if l.began.IsZero() {
				l.began = time.Now()
			}
			after, e := l.due(in)
			if e != ok {
				after = 0 // so that the guest learns of it
			}
			if !l.timed || after < l.after {
				l.timed, l.after = true, after
			}
		case eventRead, eventWrite:
		default:
			return eINVAL
		}
	}
	return ok
}

// due returns how long after l.began a clock is due.
func (l *poll) due(in []byte) (time.Duration, errno) {
	const absolute = 1
	clock, timeout, flags := le.Uint32(in[16:]), le.Uint64(in[24:]), le.Uint16(in[40:])
	switch flags {
	case 0:
	case absolute:
		now, e := l.p.now(clock)
		if e != ok {
			return 0, e
		}
		timeout -= min(timeout, now)
	default:
		return 0, eINVAL
	}
	return time.Duration(min(timeout, math.MaxInt64)), ok
}

// scan writes the events that there are now and returns their number. Clocks
// have theirs when the first of them is due.
func (l *poll) scan(isDue bool) int {
	for in := l.in; len(in) > 0; in = in[subscriptionLen:] {
		if in[8] != eventClock {
			l.scanFd(in)
			continue
		}
		if !isDue {
			continue
		}
		if after, e := l.due(in); e != ok || after <= l.after {
			l.put(in, e, 0, 0)
		}
	}
	return l.events
}

func (l *poll) scanFd(in []byte) {
	const hangup = 1
	d, write := l.p.at(uint64(le.Uint32(in[16:]))), in[8] == eventWrite
	switch {
	case d == nil:
		l.put(in, eBADF, 0, 0)
	case d.kind == kindListener:
		d.listener.listen()
		if write {
			l.put(in, eNOTSUP, 0, 0)
		} else if d.listener.ready() {
			l.put(in, ok, 1, 0)
		}
	case d.kind == kindConn:
		ready, bytes, gone := d.conn.ready(write)
		flags := uint16(0)
		if gone {
			flags = hangup
		}
		if ready {
			l.put(in, ok, uint64(bytes), flags)
		}
	default:
		l.put(in, ok, 1, 0)
	}
}

// put writes an event: the subscription's user data, what became of it, and for
// a descriptor how many bytes it is ready for.
func (l *poll) put(in []byte, e errno, bytes uint64, flags uint16) {
	out := l.out[l.events*eventLen : (l.events+1)*eventLen]
	l.events++
	userdata, kind := le.Uint64(in), in[8]
	clear(out)
	le.PutUint64(out, userdata)
	le.PutUint16(out[8:], uint16(e))
	out[10] = kind
	le.PutUint64(out[16:], bytes)
	le.PutUint16(out[24:], flags)
}
