// Package podnet gives pods addresses of their own on a node, and passes the
// connections that come there on into their guests.
//
// A guest has no network: what it listens on is a port inside its sandbox. So
// the node itself listens at the pod's address, on the ports that the pod
// declares, and copies between the two ([Listen]); or it answers there by itself
// ([Serve]). The addresses must already lead to this
// machine and be ones that it can listen on; how, is the administrator's choice.
package podnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
)

// Addresses hands out the addresses of a network. It is safe for concurrent use.
type Addresses struct {
	network netip.Prefix

	mu    sync.Mutex
	taken map[netip.Addr]bool
	last  netip.Addr    // handed out
	given chan struct{} // closed and replaced when an address is given back
}

// NewAddresses returns the addresses of network, but for the first and the last,
// which stand for the network itself and its broadcasts. It fails if the machine
// can't listen on them.
func NewAddresses(network netip.Prefix) (*Addresses, error) {
	network = network.Masked()
	a := &Addresses{network: network, taken: map[netip.Addr]bool{}, last: network.Addr(), given: make(chan struct{})}
	if !a.has(network.Addr().Next()) {
		return nil, fmt.Errorf("pod network %s: it has no address for a pod", network)
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(network.Addr().Next(), 0)))
	if err != nil {
		return nil, fmt.Errorf("pod network %s: this machine can't listen there: %w: "+
			"make all of it local, as with `ip route add local %s dev lo`", network, err, network)
	}
	return a, l.Close()
}

// TryTake returns an address that nobody has: had, if that is one, else the next
// in a round through the network, so that one who still knows a pod's address is
// unlikely to find another pod there. The address is not valid if none is free.
func (a *Addresses) TryTake(had string) netip.Addr {
	addr, _ := a.try(had)
	return addr
}

// Take is TryTake that waits while none is free, until ctx ends.
func (a *Addresses) Take(ctx context.Context) (netip.Addr, error) {
	for {
		addr, given := a.try("")
		if addr.IsValid() {
			return addr, nil
		}
		select {
		case <-given:
		case <-ctx.Done():
			return netip.Addr{}, context.Cause(ctx)
		}
	}
}

// try returns a free address, or a channel that is closed when there may be one.
func (a *Addresses) try(had string) (netip.Addr, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if addr, err := netip.ParseAddr(had); err == nil && a.has(addr) && !a.taken[addr] {
		a.taken[addr] = true
		return addr, nil
	}
	for addr, round := a.after(a.last), 0; round <= len(a.taken); addr, round = a.after(addr), round+1 {
		if !a.taken[addr] {
			a.taken[addr], a.last = true, addr
			return addr, nil
		}
	}
	return netip.Addr{}, a.given
}

// Give takes an address back.
func (a *Addresses) Give(addr netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.taken, addr)
	close(a.given)
	a.given = make(chan struct{})
}

// has reports whether addr is one for a pod.
func (a *Addresses) has(addr netip.Addr) bool {
	return a.network.Contains(addr) && addr != a.network.Addr() && a.network.Contains(addr.Next())
}

// after returns the next address for a pod, round and round.
func (a *Addresses) after(addr netip.Addr) netip.Addr {
	if next := addr.Next(); a.has(next) {
		return next
	}
	return a.network.Addr().Next()
}
