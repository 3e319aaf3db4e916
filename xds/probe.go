package xds

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/wisp-serving/wisp/xds/translate"
	"knative.dev/networking/pkg/http/header"
)

const (
	// probeTimeout bounds one request.
	probeTimeout = time.Second
	// The first attempts follow quickly: Envoy's workers are behind its
	// acknowledgement by less than a millisecond.
	probeAttempts  = 6
	probeFirstWait = 2 * time.Millisecond
)

// prober asks Envoys for a KIngress's hash.
type prober struct{ client *http.Client }

func newProber() *prober {
	return &prober{
		client: &http.Client{
			Timeout: probeTimeout,
			// A connection stays with one of Envoy's workers; a new one for each
			// probe meets them all in time.
			Transport:     &http.Transport{DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// reach returns where a listener that Envoy binds to address is reached, when that
// Envoy is at host or, where that is empty, on this machine. Only a listener that is
// bound to every address is elsewhere on another host.
func reach(host, address string) string {
	bound, port, err := net.SplitHostPort(address)
	ip := net.ParseIP(bound)
	switch {
	case err != nil || ip == nil || !ip.IsUnspecified():
		return address
	case host != "":
		return net.JoinHostPort(host, port)
	case ip.To4() == nil:
		return net.JoinHostPort("::1", port)
	default:
		return net.JoinHostPort("127.0.0.1", port)
	}
}

// proveAll sends a KIngress's probes to each Envoy and returns nil when all were
// answered with its hash. Of several errors it is the same one each time: a status
// that changes is written, and so probed for, again without backoff.
func (p *prober) proveAll(ctx context.Context, all places, o outcome) error {
	for _, probe := range o.probes {
		at := all[probe.Door]
		if len(at) == 0 {
			return fmt.Errorf("no Envoy with the %s listener answers", probe.Door)
		}
		errs := make([]error, len(at))
		var probing sync.WaitGroup
		for i, address := range at {
			probing.Go(func() { errs[i] = p.prove(ctx, address, o.hash, probe) })
		}
		probing.Wait()
		for i, err := range errs {
			if err != nil {
				return fmt.Errorf("probe %s%s at the %s listener of the Envoy at %s: %w", probe.Host, probe.Path, probe.Door, at[i], err)
			}
		}
	}
	return nil
}

// prove sends a probe to an address and returns nil when it was answered with hash.
// It tries several times within some 100 ms, plus what the requests take.
func (p *prober) prove(ctx context.Context, address, hash string, probe translate.Probe) error {
	wait := probeFirstWait
	for attempt := 1; ; attempt++ {
		err := p.one(ctx, address, hash, probe)
		if err == nil || attempt == probeAttempts {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait *= 2
	}
}

func (p *prober) one(ctx context.Context, address, hash string, probe translate.Probe) error {
	client, scheme := p.client, "http"
	if probe.Door.TLS() {
		client, scheme = secure(p.client, probe.Host), "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+address+probe.Path, nil)
	if err != nil {
		return err
	}
	req.Host = probe.Host
	for _, h := range probe.Headers {
		req.Header.Set(h.Name, h.Value)
	}
	req.Header.Set(header.UserAgentKey, header.IngressReadinessUserAgent)
	req.Header.Set(header.ProbeKey, header.ProbeValue)
	req.Header.Set(header.HashKey, header.HashValueOverride)
	resp, err := client.Do(req)
	// Without our own port, which differs each time: a status with it would be
	// written, and so probed for, again and again without backoff.
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		return fmt.Errorf("%s %s: %w", op.Op, address, op.Err)
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // the answer is in the header
	return verify(resp, hash, probe)
}

// secure returns client for a TLS connection that asks for host. Who answers is
// known by address, and by the hash; whether clients trust the certificate is
// between them and its owner.
func secure(client *http.Client, host string) *http.Client {
	out := *client
	out.Transport = &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{ServerName: host, InsecureSkipVerify: true},
	}
	return &out
}

// verify reports whether an answer proves the KIngress: Envoy puts the hash of
// the route into it, whatever the backend says. But where Envoy has nobody to
// ask, it isn't done yet.
func verify(resp *http.Response, hash string, probe translate.Probe) error {
	if got := resp.Header.Get(header.HashKey); got != hash {
		return fmt.Errorf("answer is %d with %s %q, must be with %q", resp.StatusCode, header.HashKey, got, hash)
	}
	if resp.StatusCode == http.StatusServiceUnavailable || probe.Inner && resp.StatusCode == http.StatusNotFound {
		return fmt.Errorf("answer is %d", resp.StatusCode)
	}
	return nil
}
