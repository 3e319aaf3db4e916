package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
)

// Server is an HTTP server at a pod's address. It owns the goroutine that accepts;
// those of connections are net/http's.
type Server struct {
	http  *http.Server
	ended chan struct{}
}

// Serve listens at an address and has s answer until Close is called.
func Serve(at netip.AddrPort, s *http.Server) (*Server, error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, fmt.Errorf("listen for a pod: %w", err)
	}
	it := &Server{http: s, ended: make(chan struct{})}
	go func() {
		defer close(it.ended)
		_ = s.Serve(l) // until Close
	}()
	return it, nil
}

// Close takes no more connections. Requests that are running may go on until ctx
// ends; then their connections are closed, which ends them. It waits for neither
// their handlers' ends nor connections that are no longer HTTP: those have counted
// where the requests have gone.
func (s *Server) Close(ctx context.Context) {
	if err := s.http.Shutdown(ctx); err != nil && !errors.Is(err, http.ErrServerClosed) {
		_ = s.http.Close()
	}
	<-s.ended
}
