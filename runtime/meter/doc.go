// Package meter rewrites a core wasm module so that no guest can hold a thread,
// the garbage collector or memory for longer than its host allows.
//
// The engine compiles wasm to machine code that nothing preempts. A rewritten
// module preempts itself: it counts what it executes in a global and calls one
// host function, wisp.yield, whenever the ration it was given is used up, from
// loops, from recursion and from within large memory and table operations. The
// host looks at deadlines, lets others run, and returns the next ration, or ends
// the guest. The module also counts the native stack that its calls take, and
// its tables and memory have maxima.
//
// Rewrite is one linear pass over bytes: it keeps no state, starts no goroutine
// and runs nothing. It decodes everything that wazero accepts, and refuses, by
// name and offset, what it doesn't know, since what isn't understood isn't
// metered. It doesn't validate: an invalid module comes out invalid, for the
// engine to refuse, and what was valid is so after.
//
// It also makes code faster that Go's compiler has made, by a third to a half: jumps
// that go through the table at a function's beginning lead where they lead at once, and
// accesses by the stack pointer share a check. The latter, done only in a module that
// says that it is Go's, trap where an address is a sum that has wrapped around at 4 GiB.
//
// See RATIONALE.md for how the emitted code was chosen.
package meter
