package provider

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"github.com/wisp-serving/wisp/provider/podnet"
	"github.com/wisp-serving/wisp/provider/podspec"
)

// takeAddress gives a new pod the node's address, or one of its own if there is
// a pod network: had again, where the node has just restarted.
func (p *pod) takeAddress(had string) {
	if p.provider.podAddresses == nil {
		p.ips = p.provider.addresses()
		return
	}
	p.setAddress(p.provider.podAddresses.TryTake(had))
}

func (p *pod) setAddress(addr netip.Addr) {
	p.address = addr
	if addr.IsValid() {
		p.ips = []string{addr.String()}
	}
}

// awaitAddress waits until the pod has an address.
func (p *pod) awaitAddress(ctx context.Context) error {
	if len(p.facts().PodIPs) > 0 {
		return nil
	}
	p.event(corev1.EventTypeWarning, "", "FailedCreatePodSandBox", "podCIDR "+p.provider.cfg.Node.PodCIDR+" has no free address: waiting for one")
	addr, err := p.provider.podAddresses.Take(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.setAddress(addr)
	return nil
}

// giveAddress gives back what nothing of the pod listens on any more. Its status
// shows it on, as a kubelet's does.
func (p *pod) giveAddress() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.returnAddress()
}

// returnAddress is giveAddress for one who holds mu.
func (p *pod) returnAddress() {
	if p.address.IsValid() {
		p.provider.podAddresses.Give(p.address)
		p.address = netip.Addr{}
	}
}

// facts is what the pod learns of itself.
func (p *pod) facts() podspec.Facts {
	facts := p.provider.facts()
	p.mu.Lock()
	defer p.mu.Unlock()
	facts.PodIPs = p.ips
	return facts
}

// address returns the pod's own address, which is not valid if it has none.
func (c *container) address() netip.Addr {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	return c.pod.address
}

// expose listens for the function at the pod's own address, if it has one: on
// the ports that the container declares, and on those of Knative's proxy, whose
// part the node plays.
func (c *container) expose(f *function) error {
	addr := c.address()
	if !addr.IsValid() {
		return nil
	}
	err := c.listen(f, addr)
	if err != nil {
		f.conceal(c.pod.killed)
	}
	return err
}

func (c *container) listen(f *function, addr netip.Addr) error {
	handlers := map[uint16]http.Handler{}
	if c.serves {
		router := c.pod.provider.cfg.Router
		handlers = f.front.Ports(router.Pod(c.pods.Revision, f.target), f.podMetrics)
		for number, h := range handlers {
			s, err := podnet.Serve(netip.AddrPortFrom(addr, number), router.NewServer(h))
			if err != nil {
				return err
			}
			f.ports = append(f.ports, s)
		}
	}
	for number, dial := range c.declared(f) {
		if handlers[number] != nil {
			continue // Knative's: the webhook lets no revision declare it
		}
		p, err := podnet.Listen(netip.AddrPortFrom(addr, number), dial)
		if err != nil {
			return err
		}
		f.ports = append(f.ports, p)
	}
	return nil
}

// declared are the ports that the container declares, on which its guest may
// listen.
func (c *container) declared(f *function) map[uint16]podnet.Dial {
	ports := map[uint16]podnet.Dial{}
	for _, p := range c.spec.Ports {
		if p.Protocol == corev1.ProtocolTCP || p.Protocol == "" {
			ports[uint16(p.ContainerPort)] = func(ctx context.Context) (net.Conn, error) { return f.Dial(ctx, int(p.ContainerPort)) }
		}
	}
	return ports
}

// conceal takes no more connections, and lets those that there are end until ctx
// does.
func (f *function) conceal(ctx context.Context) {
	var closing sync.WaitGroup
	for _, p := range f.ports {
		closing.Go(func() { p.Close(ctx) })
	}
	closing.Wait()
	f.ports = nil
}
