package provider

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"

	"github.com/wisp-serving/wisp/provider/podspec"
)

// errPatched is the cause that ends what a container does with an image that is
// no longer its own.
var errPatched = errors.New("the container has another image")

func isPatched(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errPatched) }

// follower is told when a container's image changes.
type follower struct {
	image string
	end   context.CancelCauseFunc
}

// follow gives the container the image that it has in the API now: of a pod's
// containers, nothing else can be changed. The context ends by errPatched when
// that is another one. leave must be called.
func (c *container) follow(ctx context.Context) (present context.Context, leave func()) {
	present, end := context.WithCancelCause(ctx)
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	spec := *c.spec.Container
	if image := imageOf(c.pod.api, spec.Name); image != "" {
		spec.Image = image
	}
	c.present = podspec.Container{Container: &spec, Path: c.spec.Path}
	c.pod.followers[spec.Name] = follower{spec.Image, end}
	return present, func() {
		c.pod.mu.Lock()
		delete(c.pod.followers, spec.Name)
		c.pod.mu.Unlock()
		end(nil)
	}
}

// patch tells the containers that have another image in p.api; mu is held.
func (p *pod) patch() {
	for name, f := range p.followers {
		if image := imageOf(p.api, name); image != "" && image != f.image {
			f.end(errPatched)
		}
	}
}

// imageOf returns the image of the container of that name, empty if there is none.
func imageOf(api *corev1.Pod, name string) string {
	for _, all := range [][]corev1.Container{api.Spec.InitContainers, api.Spec.Containers} {
		for i := range all {
			if all[i].Name == name {
				return all[i].Image
			}
		}
	}
	return ""
}
