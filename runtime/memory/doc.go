// Package memory gives instances their linear memory and holds each sandbox to
// its limit.
//
// A Pool maps memory outside Go's heap and uses mappings again, zeroed, for the
// next instance of the same module, whosever it is. A Budget counts what all
// instances of one sandbox hold together, whatever of it they have touched: an
// instance that would not fit waits for others to end, and growing beyond the limit
// is denied. Linear is one instance's memory, as wazero wants it.
//
// A Pool gives the pages of large memories back to the kernel on goroutines of its
// own, which Close waits for.
// See ../RATIONALE.md "How much memory may a guest have?".
package memory
