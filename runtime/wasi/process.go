package wasi

import (
	"context"
	"io"
	"time"

	"github.com/tetratelabs/wazero/experimental/sys"
	wasmsys "github.com/tetratelabs/wazero/sys"

	"github.com/wisp-serving/wisp/runtime/memfs"
)

// Mount is a directory that a guest finds open when it starts.
type Mount struct {
	// Path is where the guest sees it: absolute and clean.
	Path string
	// FS is what is in it; it is safe for the use of all processes that have it.
	// nil is a file system in memory, of this process's own and empty at its
	// start: at most one of a process's mounts.
	FS sys.FS
	// ReadOnly refuses whatever would change FS.
	ReadOnly bool
	// Files are single files that are seen in FS, in place of what it has at their
	// paths: "etc/app.conf". Their folders must be there.
	Files map[string]File
}

// File is a file of a file system that is mounted by itself. A guest can't
// remove, rename or replace it.
type File struct {
	FS sys.FS
	// Path is where it is in FS.
	Path     string
	ReadOnly bool
}

// Config is what a process starts with. Its slices must not change until Close.
type Config struct {
	// Args begin with argv[0]. Neither they nor Env may hold zero bytes.
	Args []string
	// Env holds "KEY=value" entries, no key twice.
	Env []string
	// Stdin is what the guest reads; nil is empty. Stdout and Stderr take what it
	// writes; nil drops it. Calls of these must end with the context. An error,
	// but for io.EOF of Stdin, ends the guest; see Process.Failed.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Mounts become the descriptors from 3 on.
	Mounts []Mount
	// Listeners become the descriptors after those of Mounts. Process.Close
	// closes them.
	Listeners []*Listener
	// Slot, unless nil, is what the guest holds while it computes.
	Slot Slot
	// Room is what the file system in memory is made of; required with one.
	Room memfs.Room
}

// Slot is a right to compute that a guest lends back while it waits.
type Slot interface {
	// Release is called on the guest's goroutine before it may wait, and Acquire
	// after that; Acquire returns at once when the guest's context has ended.
	Release()
	Acquire()
}

// maxOpen bounds the descriptors of a process.
const maxOpen = 4096

// keptDescriptors is how large a table waits for the next instance.
const keptDescriptors = 64

// Process is the state of one instance. It belongs to the goroutine that runs
// the instance, and may be used again for another one after Close.
type Process struct {
	cfg     Config
	ctx     context.Context
	started time.Time
	failed  error

	private Mount // of the file system in memory
	memory  memfs.FS

	fds  []descriptor
	free int // no descriptor below is free
	open int

	wake  chan struct{} // holds one token when a socket may be ready
	timer *time.Timer   // stopped; nil until it is needed
}

// Start makes p the process of a new instance, which ctx ends, and returns the
// context with which that must be instantiated and called.
func (p *Process) Start(ctx context.Context, cfg Config) context.Context {
	p.cfg, p.ctx, p.failed = cfg, ctx, nil
	p.started = time.Now()
	p.fds = append(p.fds[:0], descriptor{kind: kindStdin}, descriptor{kind: kindStdout}, descriptor{kind: kindStderr})
	for i := range cfg.Mounts {
		mount := &cfg.Mounts[i]
		if mount.FS == nil {
			p.memory.Init(cfg.Room)
			p.private = Mount{Path: mount.Path, FS: &p.memory, Files: mount.Files}
			mount = &p.private
		}
		p.fds = append(p.fds, descriptor{kind: kindDir, mount: mount, path: ".", readOnly: mount.ReadOnly, preopen: true})
	}
	if len(cfg.Listeners) > 0 && p.wake == nil {
		p.wake = make(chan struct{}, 1)
	}
	for _, l := range cfg.Listeners {
		l.serve(p.wake)
		p.fds = append(p.fds, descriptor{kind: kindListener, listener: l})
	}
	p.free, p.open = len(p.fds), len(p.fds)
	return &processContext{ctx, p} // not part of p: wazero's goroutines may hold it for longer
}

// FirstListener returns the descriptor of the first of a process's listeners;
// the others follow.
func FirstListener(mounts int) int { return 3 + mounts }

// Close closes what the guest has left open and forgets it. The instance must
// have ended.
func (p *Process) Close() {
	for i := range p.fds {
		p.fds[i].close()
	}
	clear(p.fds)
	p.memory.Init(nil)
	if cap(p.fds) > keptDescriptors {
		p.fds = nil
	}
	p.cfg, p.ctx = Config{}, nil
	p.wake = nil // a late peer may still send to it
}

// Failed returns the error of the stream that ended the guest, or nil.
func (p *Process) Failed() error { return p.failed }

// processContext carries a process to host functions. Looking that up is the
// first thing each does, hence no context.WithValue.
type processContext struct {
	context.Context
	process *Process
}

type processKey struct{}

func (c *processContext) Value(key any) any {
	if key == (processKey{}) {
		return c.process
	}
	return c.Context.Value(key)
}

// processOf returns the process in ctx; without one it panics, which wazero
// makes a trap.
func processOf(ctx context.Context) *Process {
	if c, ok := ctx.(*processContext); ok {
		return c.process
	}
	return ctx.Value(processKey{}).(*Process)
}

// leave ends the guest whose host function calls it, as proc_exit does. Whoever
// called the guest knows from the context or from Failed why.
func leave() { panic(wasmsys.NewExitError(wasmsys.ExitCodeContextCanceled)) }

func (p *Process) fail(err error) {
	p.failed = err
	leave()
}

// release and acquire surround what may wait.
func (p *Process) release() {
	if p.cfg.Slot != nil {
		p.cfg.Slot.Release()
	}
}

func (p *Process) acquire() {
	if p.cfg.Slot != nil {
		p.cfg.Slot.Acquire()
	}
}

// wait returns when a socket may have become ready, or after timeout, which is
// none below 0. The end of the context ends the guest.
func (p *Process) wait(timeout time.Duration) {
	select { // what is there already costs no slot
	case <-p.wake:
		return
	default:
	}
	var expired <-chan time.Time
	if timeout >= 0 {
		if p.timer == nil {
			p.timer = time.NewTimer(timeout)
		} else {
			p.timer.Reset(timeout)
		}
		defer p.timer.Stop()
		expired = p.timer.C
	}
	p.release()
	done := false
	select {
	case <-p.wake: // nil, hence never, without sockets
	case <-expired:
	case <-p.ctx.Done():
		done = true
	}
	p.acquire()
	if done {
		leave()
	}
}
