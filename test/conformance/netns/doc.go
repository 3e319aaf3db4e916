// Package netns gives a test program a network of its own, in which it may use
// any address and any port: Linux's network namespaces.
//
// [Exec] runs the program again in a new namespace, and [Up] makes the network
// there. A [Bridge] leads to further namespaces, one for each process that a
// test wants to have an address of its own. Nothing of it is left when the
// processes have ended.
//
// Root may make namespaces anywhere. Others may where the kernel gives them user
// namespaces, as most do by default.
package netns
