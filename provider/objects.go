package provider

import (
	"context"
	"errors"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/provider/volume"
	"github.com/wisp-serving/wisp/runtime/sandbox"
	"github.com/wisp-serving/wisp/runtime/wasi"
)

// Objects gives the ConfigMaps and Secrets that functions are started with ahead
// of their Pods. Its methods are safe for concurrent use and don't block.
type Objects interface {
	// Source fails for an object of which it can't tell how it is now.
	podspec.Source
	// Hold names the objects of a namespace that holder may need from now on, in
	// place of those that it named before.
	Hold(holder, namespace string, refs []podspec.Reference)
}

// noObjects is the Objects of who may read none.
type noObjects struct{}

var errNoObjects = errors.New("ConfigMaps and Secrets are not read ahead of a pod")

func (noObjects) ConfigMap(context.Context, string, string) (*corev1.ConfigMap, error) {
	return nil, errNoObjects
}

func (noObjects) Secret(context.Context, string, string) (*corev1.Secret, error) {
	return nil, errNoObjects
}

func (noObjects) Hold(string, string, []podspec.Reference) {}

// tokenless makes volumes of Objects: those of which a function may start ahead
// have no token.
type tokenless struct{ Objects }

func (tokenless) Token(context.Context, *corev1.Pod, *corev1.ServiceAccountTokenProjection) (string, time.Time, error) {
	return "", time.Time{}, errors.New("there is no token without a pod")
}

// mount adds to spec the volumes that a function of t sees ahead of its Pod: all
// that it mounts, but for the implicit token's. It returns nil if there are none.
func (e *earlyStarts) mount(ctx context.Context, t template, spec *sandbox.Spec, resolved podspec.Resolved) (*volume.Set, error) {
	container := *t.spec.Containers[0].Container
	container.VolumeMounts = slices.DeleteFunc(slices.Clone(container.VolumeMounts), podspec.IsImplicitToken)
	if len(container.VolumeMounts) == 0 {
		return nil, nil
	}
	specs := map[string]corev1.Volume{}
	for _, m := range container.VolumeMounts {
		specs[m.Name] = t.spec.Volumes[m.Name]
	}
	set, err := volume.New(ctx, volume.Config{
		Source: tokenless{e.objects},
		Pod:    func() *corev1.Pod { return t.pod },
		Facts:  e.facts,
	}, specs)
	if err != nil {
		return nil, err
	}
	return set, addMounts(spec, set, &container, resolved)
}

// addMounts adds a container's mounts of a set to what its sandbox is made of.
func addMounts(spec *sandbox.Spec, set *volume.Set, c *corev1.Container, resolved podspec.Resolved) error {
	made, err := set.Mounts(c, resolved.Expand)
	if err != nil {
		return err
	}
	for _, m := range made {
		if m.Memory != nil && !slices.Contains(spec.Shared, m.Memory) {
			spec.Shared = append(spec.Shared, m.Memory)
		}
		if m.File != "" {
			spec.Files = append(spec.Files, sandbox.File{At: m.Path, File: wasi.File{FS: m.FS, Path: m.File, ReadOnly: m.ReadOnly}})
			continue
		}
		spec.Mounts = append(spec.Mounts, wasi.Mount{Path: m.Path, FS: m.FS, ReadOnly: m.ReadOnly})
	}
	return nil
}
