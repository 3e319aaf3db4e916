package provider

import (
	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/sandbox"
)

// ImageRequest says which image, and which module of it, a container of a pod
// wants. It is for who runs pods without a cluster, as SandboxSpec is.
func ImageRequest(c podspec.Container, resolved podspec.Resolved) oci.Request {
	return imageRequest(c, resolved, nil)
}

// SandboxSpec says how a node runs image as the container of the pod wants it,
// but for the container's volumes, its HOSTNAME and its log.
func SandboxSpec(id string, image oci.Image, pod podspec.Spec, c podspec.Container, resolved podspec.Resolved) sandbox.Spec {
	return sandboxSpec(id, image, pod, c, resolved)
}
