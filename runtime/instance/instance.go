// Package instance is what a running guest is to the node: memory that is
// charged to its pod, a place among those who want a core, and a context at
// whose end it ends.
//
// A Host has what the whole node shares, a Group what the instances of one
// sandbox share. Group.Start makes an Instance, whose Context its caller passes
// to wazero for instantiating and for calls; Instance.End gives all back. In
// between, the guest runs on its caller's goroutine. It comes by at wisp.yield
// (see runtime/meter) at least every 50 µs or so, where it hands its core on or
// is ended, by unwinding its own goroutine as proc_exit does; and host functions
// that wait give the core back meanwhile (Release, Acquire).
//
// The package starts no goroutine.
package instance

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/sys"

	"github.com/wisp-serving/wisp/runtime/cpu"
	"github.com/wisp-serving/wisp/runtime/garbage"
	"github.com/wisp-serving/wisp/runtime/memory"
)

// HostConfig says what a node has for guests.
type HostConfig struct {
	// Cores is how many guests may run at once.
	Cores int
	// KeptMemory bounds the physical memory that is kept between instances, in
	// bytes.
	KeptMemory int64
}

// Host is the node. It is safe for concurrent use.
type Host struct {
	cores   *cpu.Cores
	pool    *memory.Pool
	garbage *garbage.Bound
}

const (
	// garbageRate is what guests may have of Go's memory anew per second and core,
	// and garbageBurst at once, in bytes: for stacks beyond the first, and for
	// tables that are empty. Else it takes them a while to make as much.
	garbageRate  = 32 << 20
	garbageBurst = 4 << 20
)

// NewHost returns a Host.
func NewHost(cfg HostConfig) *Host {
	return &Host{
		cores:   cpu.New(cfg.Cores),
		pool:    memory.NewPool(cfg.KeptMemory),
		garbage: garbage.New(garbage.Config{Rate: int64(max(cfg.Cores, 1)) * garbageRate, Burst: garbageBurst}),
	}
}

// Close gives back the memory that was kept. All instances must have ended.
func (h *Host) Close() { h.pool.Close() }

// Limits are those of one sandbox.
type Limits struct {
	// Memory bounds what all its instances hold together, in bytes.
	Memory int64
	// CPURequest is its weight against others, and CPULimit, unless 0, bounds its
	// use, in thousandths of a core.
	CPURequest, CPULimit int64
}

// Group is a sandbox. It is safe for concurrent use.
type Group struct {
	share   *cpu.Share
	budget  *memory.Budget
	garbage *garbage.Share
	count   atomic.Int64 // instances
}

// Group returns a Group with nothing in it.
func (h *Host) Group(l Limits) *Group {
	return &Group{
		share:   h.cores.Share(cpu.ShareConfig{Request: l.CPURequest, Limit: l.CPULimit}),
		budget:  memory.NewBudget(h.pool, l.Memory),
		garbage: h.garbage.Share(l.CPURequest),
	}
}

// Usage is what a group has used of the node.
type Usage struct {
	// CPU is the time that its instances have had a core, those that have ended
	// included.
	CPU time.Duration
	// Memory is what they hold now, in bytes, and Instances how many there are.
	Memory    int64
	Instances int64
}

// Usage returns what g has used.
func (g *Group) Usage() Usage {
	return Usage{CPU: g.share.CPU(), Memory: g.budget.Used(), Instances: g.count.Load()}
}

// Join counts what others hold together as g's too, until leave is called.
func (g *Group) Join(c *memory.Common) (leave func()) { return c.Join(g.budget) }

// MemoryLimit returns the limit of g's memory in bytes.
func (g *Group) MemoryLimit() int64 { return g.budget.Limit() }

// ErrStack is what ends a guest whose calls are nested too deeply.
var ErrStack = errors.New("stack overflow")

// Instance is one running guest. It belongs to the goroutine that runs it.
type Instance struct {
	group    *Group
	ctx      context.Context
	deadline time.Time // zero: none
	linear   *memory.Linear
	turn     *cpu.Turn
	hasCore  bool
	err      error // why it was ended here

	stack int64 // granted beyond the first allowance, in bytes
	fuel  int64 // the last ration
}

type contextKey struct{}

// running is the context of an instance.
type running struct {
	context.Context
	instance *Instance
}

func (r *running) Value(key any) any {
	if key == (contextKey{}) {
		return r.instance
	}
	return r.Context.Value(key)
}

// from returns the instance that ctx is of, nil if there is none.
func from(ctx context.Context) *Instance {
	i, _ := ctx.Value(contextKey{}).(*Instance)
	return i
}

// Start makes room for an instance with the given needs and takes a core for it,
// waiting for both until ctx ends; then the error is ctx's cause. It is
// *memory.LimitError if the instance can never fit. The caller ends it.
func (g *Group) Start(ctx context.Context, needs memory.Needs) (*Instance, error) {
	linear, err := g.budget.Reserve(ctx, needs)
	if err != nil {
		return nil, err
	}
	if needs.Empty > 0 && !g.garbage.Try(needs.Empty) {
		if err := g.garbage.Wait(ctx, needs.Empty); err != nil {
			linear.Release()
			return nil, err
		}
	}
	i := &Instance{group: g, linear: linear, turn: g.share.Turn()}
	i.deadline, _ = ctx.Deadline()
	i.ctx = &running{experimental.WithMemoryAllocator(ctx, linear), i}
	if err := i.turn.Begin(ctx); err != nil {
		linear.Release()
		return nil, err
	}
	i.hasCore = true
	g.count.Add(1)
	return i, nil
}

// Context is what wazero gets for everything it does with the instance.
func (i *Instance) Context() context.Context { return i.ctx }

// Err returns why the instance was ended: the cause of its context's end, or
// ErrStack; nil if it has ended by itself.
func (i *Instance) Err() error { return i.err }

// OutOfMemory reports whether it was denied memory.
func (i *Instance) OutOfMemory() bool { return i.linear.Denied() }

// MemoryLimit returns the limit of its group in bytes.
func (i *Instance) MemoryLimit() int64 { return i.group.MemoryLimit() }

// Hold counts memory that the node holds for the instance; see
// memory.Linear.Hold.
func (i *Instance) Hold(bytes int64) bool { return i.linear.Hold(bytes) }

// End gives everything back. The wazero instance must be closed.
func (i *Instance) End() {
	i.Release()
	i.linear.Release()
	i.group.count.Add(-1)
}

// Release gives the core back while a host function waits for something else,
// which must end with the instance's context.
func (i *Instance) Release() {
	if i.hasCore {
		i.turn.End()
		i.hasCore = false
	}
}

// Acquire waits for a core again. When the instance's context has ended it
// returns without one, and the guest is ended where it comes by next.
func (i *Instance) Acquire() {
	i.hasCore = i.turn.Begin(i.ctx) == nil
}

// end unwinds the guest that has called a host function. The status is never
// seen: err says more.
func (i *Instance) end(err error) {
	i.err = err
	panic(sys.NewExitError(sys.ExitCodeContextCanceled))
}

// checkEnd ends the guest if its time is over. A deadline counts when the clock
// says so: the timer that ends a context may be late on a busy node.
func (i *Instance) checkEnd() {
	select {
	case <-i.ctx.Done():
		i.end(context.Cause(i.ctx))
	default:
	}
	if !i.deadline.IsZero() && time.Since(i.deadline) >= 0 {
		i.end(context.DeadlineExceeded)
	}
}

const (
	// firstStack is what is granted first beyond what every instance has, and
	// mostStack all of it together, in bytes.
	firstStack = 32 << 10
	mostStack  = 1 << 20
)

// moreStack is what happens when a guest's calls are nested more deeply than its
// stack allows: it returns as many bytes as were granted before, and charges
// them, or ends the guest. It waits while guests make too much garbage.
func (i *Instance) moreStack() int64 {
	i.checkEnd()
	more := max(i.stack, firstStack)
	if i.stack+more > mostStack {
		i.endByStack()
	}
	i.discard(2 * more) // the stack before, and what takes its place
	if !i.linear.Fix(more) {
		i.endByStack()
	}
	i.stack += more
	return more
}

func (i *Instance) endByStack() {
	i.err = ErrStack
	panic(ErrStack)
}

// discard waits, without a core, until so many bytes of Go's memory may become
// garbage, or ends the guest.
func (i *Instance) discard(bytes int64) {
	if i.group.garbage.Try(bytes) {
		return
	}
	i.Release()
	if err := i.group.garbage.Wait(i.ctx, bytes); err != nil {
		i.end(err)
	}
	i.Acquire()
	i.checkEnd()
}

// refuel is what happens when a guest has used its ration up: it returns the
// next one.
func (i *Instance) refuel() int64 {
	i.checkEnd()
	used, err := i.turn.Yield(i.ctx)
	if err != nil {
		i.hasCore = false
		i.end(err)
	}
	i.fuel = nextRation(i.fuel, used)
	return i.fuel
}
