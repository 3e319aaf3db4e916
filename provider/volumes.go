package provider

import (
	"context"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/wisp-serving/wisp/provider/pause"
	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/provider/volume"
	"github.com/wisp-serving/wisp/runtime/sandbox"
)

// refreshPeriod is how often volumes from the API are looked at again. A kubelet
// takes about as long.
const refreshPeriod = 30 * time.Second

// The waits between attempts to make a pod's volumes.
const (
	firstMountBackOff = time.Second
	maxMountBackOff   = 2 * time.Minute
)

// mount makes the pod's volumes, as often as it takes. It returns false if ctx
// ended.
func (p *pod) mount(ctx context.Context, spec podspec.Spec) bool {
	delay := firstMountBackOff
	for {
		set, err := volume.New(ctx, volume.Config{
			Dir:          filepath.Join(p.provider.folder(p.uid), "volumes"),
			EmptyDirSize: p.provider.cfg.Node.EmptyDirSize.Value(),
			Source:       p.provider.source,
			Pod:          p.current,
			Facts:        p.facts,
		}, spec.Volumes)
		if err == nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.volumes = set
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		p.event(corev1.EventTypeWarning, "", "FailedMount", "MountVolume.SetUp failed: "+err.Error())
		p.log.Infow("volumes are waited for", "error", err)
		if !pause.For(ctx, delay) {
			return false
		}
		delay = min(2*delay, maxMountBackOff)
	}
}

// mount puts the container's volumes into what its sandbox is to be.
func (c *container) mount(spec *sandbox.Spec, resolved podspec.Resolved) error {
	c.pod.mu.Lock()
	set := c.pod.volumes
	c.pod.mu.Unlock()
	if err := addMounts(spec, set, c.spec.Container, resolved); err != nil {
		return configError{err}
	}
	return nil
}

// sets returns the volumes of the pod, and those that functions which it has
// adopted were started with.
func (p *pod) sets() []*volume.Set {
	p.mu.Lock()
	defer p.mu.Unlock()
	var sets []*volume.Set
	if p.volumes != nil {
		sets = append(sets, p.volumes)
	}
	for _, f := range p.running {
		if f.volumes != nil {
			sets = append(sets, f.volumes)
		}
	}
	return sets
}

// refreshVolumes keeps what pods see of the API up to date until ctx ends.
// Reading each object once for all pods, it costs no watch for each.
func (p *Provider) refreshVolumes(ctx context.Context) {
	ticker := time.NewTicker(refreshPeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			p.refreshOnce(ctx)
		}
	}
}

func (p *Provider) refreshOnce(ctx context.Context) {
	source := p.source.once()
	for _, it := range p.all() {
		for _, set := range it.sets() {
			if !set.Changes() {
				continue
			}
			if err := set.Refresh(ctx, source); err != nil && ctx.Err() == nil {
				it.log.Infow("volumes stay as they are", "error", err)
			}
		}
	}
}
