package stack

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/wisp-serving/wisp/test/platform/pki"
)

type readyFunc = func(context.Context) error

// httpReady asks url for a 200.
func httpReady(url string) readyFunc {
	return func(ctx context.Context) error { return get(ctx, url, nil) }
}

// httpsReady asks url for a 200, of a server that ca has signed, with a client
// certificate if there is one.
func httpsReady(url, ca string, client *pki.Pair) readyFunc {
	return func(ctx context.Context) error {
		cfg, err := tlsConfig(ca, client)
		if err != nil {
			return err
		}
		return get(ctx, url, cfg)
	}
}

func tlsConfig(ca string, client *pki.Pair) (*tls.Config, error) {
	text, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{RootCAs: x509.NewCertPool()}
	if !cfg.RootCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate", ca)
	}
	if client != nil {
		cert, err := tls.LoadX509KeyPair(client.Cert, client.Key)
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}

func get(ctx context.Context, url string, cfg *tls.Config) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: status %s", url, resp.Status)
	}
	return nil
}

// all is ready when each of checks is.
func all(checks ...readyFunc) readyFunc {
	return func(ctx context.Context) error {
		var errs []error
		for _, check := range checks {
			errs = append(errs, check(ctx))
		}
		return errors.Join(errs...)
	}
}

func flag(name string, value int) string { return fmt.Sprintf("--%s=%d", name, value) }
