package activator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"knative.dev/serving/pkg/autoscaler/metrics"
)

// lookUpEvery is how often the addresses behind an autoscaler's name are looked
// up anew.
const lookUpEvery = 10 * time.Second

// Pushers sends stats to every autoscaler: whichever leads, the others must know
// the load as well, to go on in its place. A name may stand for several, as that
// of a headless Service does.
type Pushers struct {
	targets []*url.URL
	lookUp  func(ctx context.Context, host string) ([]string, error)
	log     *zap.SugaredLogger

	mu      sync.RWMutex
	pushers map[string]*pushing // by ws://address:port
}

// pushing is a Pusher that runs.
type pushing struct {
	*Pusher
	stop context.CancelFunc
}

// NewPushers returns pushers to ws:// URLs. They connect in Run.
func NewPushers(targets []string, log *zap.SugaredLogger) (*Pushers, error) {
	p := &Pushers{lookUp: net.DefaultResolver.LookupHost, log: log, pushers: make(map[string]*pushing)}
	for _, target := range targets {
		if _, err := NewPusher(target, log); err != nil {
			return nil, err
		}
		u, err := url.Parse(target)
		if err != nil {
			return nil, fmt.Errorf("parse the autoscaler's URL: %w", err)
		}
		p.targets = append(p.targets, u)
	}
	if len(p.targets) == 0 {
		return nil, errors.New("autoscalers: none is given")
	}
	return p, nil
}

// Report sends stats to each autoscaler soon. It never blocks.
func (p *Pushers) Report(stats []metrics.StatMessage) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, it := range p.pushers {
		it.Report(stats)
	}
}

// Run keeps a connection to each address until ctx ends.
func (p *Pushers) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	tick := time.NewTicker(lookUpEvery)
	defer tick.Stop()
	for {
		p.follow(ctx, p.addresses(ctx), &running)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// addresses returns a URL for each address there is. Those of a name that can't
// be looked up now stay as they were.
func (p *Pushers) addresses(ctx context.Context) []string {
	var all []string
	for _, u := range p.targets {
		hosts, err := p.lookUp(ctx, u.Hostname())
		if err != nil && ctx.Err() == nil {
			p.log.Warnw("the autoscalers' addresses stay as they were", "target", u.String(), "error", err)
			return slices.Collect(maps.Keys(p.current()))
		}
		for _, host := range hosts {
			address := *u
			address.Host = net.JoinHostPort(host, u.Port())
			if u.Port() == "" {
				address.Host = net.JoinHostPort(host, "80")
			}
			all = append(all, address.String())
		}
	}
	return all
}

func (p *Pushers) current() map[string]*pushing {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return maps.Clone(p.pushers)
}

// follow starts a pusher for each address that has none and stops the others.
func (p *Pushers) follow(ctx context.Context, addresses []string, running *sync.WaitGroup) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for address, it := range p.pushers {
		if !slices.Contains(addresses, address) {
			it.stop()
			delete(p.pushers, address)
		}
	}
	for _, address := range addresses {
		if p.pushers[address] != nil {
			continue
		}
		pusher, err := NewPusher(address, p.log)
		if err != nil {
			p.log.Errorw("stats do not reach an autoscaler", "target", address, "error", err)
			continue
		}
		pushes, stop := context.WithCancel(ctx)
		p.pushers[address] = &pushing{pusher, stop}
		running.Go(func() {
			defer stop()
			_ = pusher.Run(pushes) // it only ends with its context
		})
	}
}
