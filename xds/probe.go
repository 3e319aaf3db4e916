package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/wisp-serving/wisp/config"
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

// prober asks Envoy for a KIngress's hash.
type prober struct {
	client *http.Client
	envoy  config.Envoy
}

func newProber(envoy config.Envoy) *prober {
	return &prober{
		envoy: envoy,
		client: &http.Client{
			Timeout: probeTimeout,
			// A connection stays with one of Envoy's workers; a new one for each
			// probe meets them all in time.
			Transport:     &http.Transport{DisableKeepAlives: true},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// prove sends the probes and returns nil when each was answered with hash. It
// tries several times within some 100 ms, plus what the requests take.
func (p *prober) prove(ctx context.Context, hash string, probes []translate.Probe) error {
	wait := probeFirstWait
	for attempt := 1; ; attempt++ {
		err := p.all(ctx, hash, probes)
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

func (p *prober) all(ctx context.Context, hash string, probes []translate.Probe) error {
	for _, probe := range probes {
		if err := p.one(ctx, hash, probe); err != nil {
			return fmt.Errorf("probe http://%s%s: %w", probe.Host, probe.Path, err)
		}
	}
	return nil
}

func (p *prober) one(ctx context.Context, hash string, probe translate.Probe) error {
	address := p.envoy.HTTPAddress
	if probe.Internal {
		address = p.envoy.InternalAddress
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+probe.Path, nil)
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
	resp, err := p.client.Do(req)
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
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answer is %d, must be 200", resp.StatusCode)
	}
	if got := resp.Header.Get(header.HashKey); got != hash {
		return fmt.Errorf("%s is %q, must be %q", header.HashKey, got, hash)
	}
	return nil
}
