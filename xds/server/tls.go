package server

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
)

// listenTLS opens the address. What is accepted there shakes hands when gRPC first
// reads from it.
func listenTLS(cfg Config) (net.Listener, error) {
	if _, err := mutual(cfg); err != nil {
		return nil, fmt.Errorf("listen for xDS at %s: %w", cfg.Address, err)
	}
	ln, err := net.Listen("tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("listen for xDS: %w", err)
	}
	return tls.NewListener(ln, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return mutual(cfg) },
	}), nil
}

// mutual returns the settings for one connection. Who has the configuration has the
// keys of all certificates in it, so a signature of the authority isn't enough: it
// may sign for others too.
func mutual(cfg Config) (*tls.Config, error) {
	own, err := tls.LoadX509KeyPair(cfg.Certificate, cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	text, err := os.ReadFile(cfg.Authority)
	if err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	authority := x509.NewCertPool()
	if !authority.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("load authority: %s has no certificate", cfg.Authority)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{"h2"},
		Certificates: []tls.Certificate{own},
		ClientCAs:    authority,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		// A resumed session would skip what follows.
		SessionTicketsDisabled: true,
		VerifyConnection: func(c tls.ConnectionState) error {
			if err := c.PeerCertificates[0].VerifyHostname(cfg.ClientName); err != nil {
				return fmt.Errorf("client's certificate: %w", err)
			}
			return nil
		},
	}, nil
}
