package meter

import "fmt"

// Version names what Rewrite does. It changes whenever the same module and
// options come out differently, and so belongs into the key under which
// anything made from rewritten modules is kept.
const Version = "12"

// A rewritten module imports the function HostModule.Yield, of type
// (i32) -> i32. It is called with one of two reasons.
//
// Refuel says that the fuel is used up. The function returns the next ration, at
// least 1 and at most MaxRation. It is added to the balance, which is negative
// by what was used beyond the last ration; while it stays so, the function is
// called again. The first call comes from the first function that runs. The host
// ends a guest by not returning: it panics out of the function, as proc_exit
// does.
//
// Exhausted says that the guest would take more native stack than
// Options.Stack, and than was added to it. The function returns how many bytes
// are added, for as long as the instance lives; if that isn't enough, none
// foremost, the guest traps at an unreachable instruction. It may as well not
// return. Calls beyond Options.Stack are slower.
const (
	HostModule = "wisp"
	Yield      = "yield"

	Refuel    = 0
	Exhausted = 1

	MaxRation = 1 << 30
)

// Options are the bounds of one module. What is zero has the default.
type Options struct {
	// Table bounds the entries of all of a module's own tables together, of 8
	// bytes each: 2^16 and as many as it has functions, 2^18 at most. A module that
	// declares more from the start is refused, as is one with more entries in its
	// element segments; growing beyond fails as wasm has it, with -1.
	Table uint32
	// TableGrowth bounds the entries that all tables together may have beyond
	// what the module declares: 2^10. An engine copies a table to let it grow.
	TableGrowth uint32
	// MemoryPages bounds its own memory, in pages of 64 KiB: 2^16, which is all
	// that there is. A module that declares more from the start is refused with a
	// *MemoryError; growing beyond fails with -1.
	MemoryPages uint32
	// Stack bounds the native stack that nested calls take, in bytes, by an
	// estimate: 1 MiB. What is taken may be some times that, never as much as
	// makes the engine give up.
	Stack uint32

	// What follows bounds what a module's compilation takes. A module beyond is
	// refused with a *LimitError.

	// Functions, the module's own: 1,000,000.
	Functions uint32
	// Body is the code of one function in bytes: 7,654,321, as in browsers.
	Body uint32
	// Locals of one function, without its parameters: 50,000, as in browsers. All
	// functions together may have 2^20 and one for each byte of their code.
	Locals uint32
	// Branches is the number of labels in one br_table: 65,520, as in browsers.
	Branches uint32
	// Nesting is how deep blocks are within one another: 65,536.
	Nesting uint32
}

// The bounds that aren't options: those of browsers, but for globals.
const (
	maxTypes     = 1_000_000
	maxValues    = 1_000  // parameters or results of one type
	maxGlobals   = 10_000 // the engine takes 0.3 µs for each, before anything is metered
	maxTables    = 100
	maxHelpers   = 4_096
	localsBefore = 1 << 20 // of all functions, besides one per byte
	// The engine makes a table in one go, before anything is metered: a millisecond
	// for 2^18 entries. No module needs many more than it has functions.
	tableBefore = 1 << 16
	maxTable    = 1 << 18
)

func (o Options) withDefaults() Options {
	set := func(v *uint32, def uint32) {
		if *v == 0 {
			*v = def
		}
	}
	set(&o.TableGrowth, 1<<10)
	set(&o.MemoryPages, 1<<16)
	set(&o.Stack, 1<<20)
	set(&o.Functions, 1_000_000)
	set(&o.Body, 7_654_321)
	set(&o.Locals, 50_000)
	set(&o.Branches, 65_520)
	set(&o.Nesting, 65_536)
	o.MemoryPages = min(o.MemoryPages, 1<<16)
	o.Stack = min(o.Stack, 1<<30)
	return o
}

// LimitError says that a module has more of something than it may.
type LimitError struct {
	What     string // what has it, and of what: "function 3: locals"
	Got, Max uint64
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("%s = %d, must be at most %d", e.What, e.Got, e.Max)
}

// MemoryError says that a module declares more memory than it may have, in
// pages of 64 KiB.
type MemoryError struct{ Minimum, Limit uint32 }

func (e *MemoryError) Error() string {
	return fmt.Sprintf("the module needs %d KiB of memory to start, but its limit is %d KiB", e.Minimum*64, e.Limit*64)
}

// Rewrite returns module with its meter in it. The result depends on nothing
// but the arguments; module is neither changed nor kept. Errors are
// *DecodeError, *LimitError and *MemoryError; all mean that the module can't run
// under these options.
func Rewrite(module []byte, o Options) ([]byte, error) {
	o = o.withDefaults()
	m, err := decode(module, o)
	if err != nil {
		return nil, err
	}
	if err := m.clamp(o); err != nil {
		return nil, err
	}
	if err := m.analyse(o); err != nil {
		return nil, err
	}
	return m.encode(o)
}
