package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Up brings up loopback in the program's namespace. Every address of local can
// be listened on and dialled from then on, without being assigned one by one.
func Up(local ...netip.Prefix) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up loopback: %w", err)
	}
	for _, p := range local {
		route := &netlink.Route{
			LinkIndex: lo.Attrs().Index,
			Dst:       ipNet(p.Masked()),
			Type:      unix.RTN_LOCAL,
			Table:     unix.RT_TABLE_LOCAL,
			Scope:     netlink.SCOPE_HOST,
		}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("make %s local: %w", p, err)
		}
	}
	return nil
}

// Bridge connects the program's namespace with those of other processes. Its
// methods are safe for concurrent use.
type Bridge struct {
	link netlink.Link
	// gateway is the program's own address on the bridge, with its network.
	gateway netip.Prefix

	mu   sync.Mutex
	last netip.Addr // given to a process
}

// NewBridge makes a bridge on which the program has the address gateway and each
// process one of its network. A namespace has one such bridge.
func NewBridge(gateway netip.Prefix) (*Bridge, error) {
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "pods"}}
	if err := netlink.LinkAdd(link); err != nil {
		return nil, fmt.Errorf("make a bridge: %w", err)
	}
	if err := bringUp(&netlink.Handle{}, link, gateway); err != nil {
		return nil, fmt.Errorf("make a bridge: %w", err)
	}
	return &Bridge{link: link, gateway: gateway, last: gateway.Addr()}, nil
}

// Connect gives the network namespace of a process an interface on the bridge,
// and returns its address. No address is given twice. The interface goes with
// the process.
func (b *Bridge) Connect(pid int) (netip.Addr, error) {
	addr, err := b.take()
	if err != nil {
		return addr, fmt.Errorf("connect process %d: %w", pid, err)
	}
	if err := b.connect(pid, addr); err != nil {
		return addr, fmt.Errorf("connect process %d: %w", pid, err)
	}
	return addr, nil
}

func (b *Bridge) take() (netip.Addr, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := b.last.Next()
	if !b.gateway.Contains(next.Next()) { // the last one is the broadcast address
		return netip.Addr{}, fmt.Errorf("%s has no further address", b.gateway)
	}
	b.last = next
	return next, nil
}

func (b *Bridge) connect(pid int, addr netip.Addr) error {
	// The name is the process's own in its namespace, and unique in this one.
	const inner = "eth0"
	outer := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: fmt.Sprintf("pod%d", pid), MasterIndex: b.link.Attrs().Index},
		PeerName:      inner,
		PeerNamespace: netlink.NsPid(pid),
	}
	if err := netlink.LinkAdd(outer); err != nil {
		return fmt.Errorf("make its interface: %w", err)
	}
	if err := netlink.LinkSetUp(outer); err != nil {
		return fmt.Errorf("bring up its interface: %w", err)
	}
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return fmt.Errorf("open its namespace: %w", err)
	}
	defer func() { _ = ns.Close() }() // nothing was written
	there, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("open its namespace: %w", err)
	}
	defer there.Close()
	lo, err := there.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find its loopback: %w", err)
	}
	if err := there.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up its loopback: %w", err)
	}
	link, err := there.LinkByName(inner)
	if err != nil {
		return fmt.Errorf("find its interface: %w", err)
	}
	if err := bringUp(there, link, netip.PrefixFrom(addr, b.gateway.Bits())); err != nil {
		return err
	}
	if err := there.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: b.gateway.Addr().AsSlice()}); err != nil {
		return fmt.Errorf("route everything through %s: %w", b.gateway.Addr(), err)
	}
	return nil
}

// bringUp gives a link its address and brings it up.
func bringUp(h *netlink.Handle, link netlink.Link, addr netip.Prefix) error {
	return errors.Join(
		h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(addr)}),
		h.LinkSetUp(link),
	)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
