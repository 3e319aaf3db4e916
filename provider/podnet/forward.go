package podnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// maxConnections is how many connections one port passes on at a time; further
// ones wait to be accepted. Each costs two file descriptors or less, and the
// buffers between.
const maxConnections = 1024

// Dial connects to what a port stands for.
type Dial func(ctx context.Context) (net.Conn, error)

// Port is a port at a pod's address. It owns a goroutine that accepts and three
// for each connection; Close joins them.
type Port struct {
	listener *net.TCPListener
	dial     Dial
	// cut ends the connections that are passed on.
	cut    context.Context
	doCut  context.CancelFunc
	places chan struct{}
	work   sync.WaitGroup
}

// Listen listens at an address and passes connections on until Close is called.
func Listen(at netip.AddrPort, dial Dial) (*Port, error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, fmt.Errorf("listen for a pod: %w", err)
	}
	p := &Port{listener: l, dial: dial, places: make(chan struct{}, maxConnections)}
	p.cut, p.doCut = context.WithCancel(context.Background())
	p.work.Go(p.accept)
	return p, nil
}

func (p *Port) accept() {
	for {
		p.places <- struct{}{}
		conn, err := p.listener.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			<-p.places
			return
		}
		if err != nil { // out of descriptors, or the peer has gone already
			<-p.places
			time.Sleep(10 * time.Millisecond)
			continue
		}
		p.work.Go(func() {
			defer func() { <-p.places }()
			p.pass(conn)
		})
	}
}

// Close takes no more connections. Those that there are may go on until ctx
// ends; then they are cut off. It returns when none is left.
func (p *Port) Close(ctx context.Context) {
	p.listener.Close()
	defer context.AfterFunc(ctx, p.doCut)()
	p.work.Wait()
	p.doCut()
}

// pass copies between a connection and what it is for, until both ways have
// ended or one has failed.
func (p *Port) pass(conn *net.TCPConn) {
	defer conn.Close()
	guest, err := p.dial(p.cut)
	if err != nil {
		// As if nobody listened: the peer may try elsewhere.
		_ = conn.SetLinger(0)
		return
	}
	defer guest.Close()
	defer context.AfterFunc(p.cut, func() {
		conn.Close()
		guest.Close()
	})()
	var ways sync.WaitGroup
	ways.Go(func() { oneWay(guest, conn) })
	ways.Go(func() { oneWay(conn, guest) })
	ways.Wait()
}

// oneWay copies until from ends, and tells to. Where it fails, both are closed,
// which ends the other way.
func oneWay(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		err = half.CloseWrite()
	} else {
		to.Close()
	}
	if err != nil {
		to.Close()
		from.Close()
	}
}
