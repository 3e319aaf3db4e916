// Package memory gives instances their linear memory and holds each sandbox to
// its limit.
//
// A Pool maps memory outside Go's heap and uses mappings again, zeroed, for the
// next instance, whosever it is. A Budget counts what all instances of one
// sandbox hold together, whatever of it they have touched: an instance that
// would not fit waits for others to end, and growing beyond the limit is denied.
// Linear is one instance's memory, as wazero wants it.
//
// The package starts no goroutine.
// See ../RATIONALE.md "How much memory may a guest have?".
package memory
