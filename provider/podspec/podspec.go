// Package podspec reads from a Pod what the node needs to run it, or names
// every field that wasm cannot honour.
//
// [Parse] is pure: no I/O, no clock. What a container's environment takes from
// ConfigMaps, Secrets and the node is looked up later, each time the container
// starts, by [Container.Resolve] through a [Source].
package podspec

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/apis/serving"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/provider/queueproxy"
)

// QueueProxy is the name of the sidecar that Knative puts into every revision's
// pod. The node serves its contract itself and never pulls its image.
const QueueProxy = queueproxy.Name

// Spec is a pod as the node runs it.
type Spec struct {
	// Revision names the pod's Knative revision. Both are empty for a pod that is
	// no revision's.
	Revision    types.NamespacedName
	RevisionUID types.UID
	// TemplateHash tells pod templates of one revision apart.
	TemplateHash string
	// Concurrency is the revision's containerConcurrency; 0 is any number.
	Concurrency int
	// EarlyStart is whether the function may start ahead of a Pod: the revision
	// doesn't ask to wait, and nothing it is started with belongs to one Pod.
	EarlyStart bool
	// Proxy is what Knative tells its sidecar, whose part the node plays.
	Proxy queueproxy.Settings

	// Init run before the others, one after another; Containers run at once. The
	// sidecar is among neither.
	Init, Containers []Container
	// Volumes are the pod's, by name.
	Volumes map[string]corev1.Volume
	// Restart says what becomes of a container that has ended.
	Restart corev1.RestartPolicy
	// Grace is how long the pod may take to end; Knative sets it to the
	// revision's timeout.
	Grace time.Duration
	// ABI is the pod's choice, empty for the image's own.
	ABI string
}

// Server is the index of the container that takes the revision's requests: the
// only one, or that which names a port, as Knative has it.
func (s Spec) Server() int {
	i := slices.IndexFunc(s.Containers, func(c Container) bool { return len(c.Ports) > 0 })
	return max(i, 0)
}

// IsRevision is whether Knative's request path brings the pod its requests.
func (s Spec) IsRevision() bool { return s.Revision.Name != "" }

// Container is one container of a Spec.
type Container struct {
	*corev1.Container
	// Path is where it is in its pod, "spec.containers[0]".
	Path string
}

// Sidecar is whether an init container runs on beside the others.
func (c Container) Sidecar() bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// Unsupported says which fields keep a pod from running.
type Unsupported struct{ Fields []string }

func (u *Unsupported) Error() string {
	return "a wasm pod cannot honour: " + strings.Join(u.Fields, "; ")
}

// Parse returns the pod's Spec, or an *Unsupported that names every field in
// its way, so that one edit mends them all. The Spec refers to pod, which must
// not change any more.
func Parse(pod *corev1.Pod) (Spec, error) {
	var found unsupported
	spec := Spec{
		Volumes: make(map[string]corev1.Volume, len(pod.Spec.Volumes)),
		Restart: pod.Spec.RestartPolicy,
		Grace:   Grace(&pod.Spec),
		ABI:     pod.Annotations[config.ABIAnnotation],
	}
	if spec.Restart == "" {
		spec.Restart = corev1.RestartPolicyAlways // the API server's default
	}
	for _, v := range pod.Spec.Volumes {
		spec.Volumes[v.Name] = v
	}
	for i := range pod.Spec.InitContainers {
		spec.Init = append(spec.Init, Container{&pod.Spec.InitContainers[i], fmt.Sprintf("spec.initContainers[%d]", i)})
	}
	revision := IsRevision(pod)
	for i := range pod.Spec.Containers {
		c := Container{&pod.Spec.Containers[i], fmt.Sprintf("spec.containers[%d]", i)}
		if revision && c.Name == QueueProxy {
			spec.revision(pod, c.Container, &found)
			continue
		}
		spec.Containers = append(spec.Containers, c)
	}
	if len(spec.Containers) == 0 {
		found.add("spec.containers: no container beside %s", QueueProxy)
	}
	found.pod(&pod.Spec)
	for _, c := range slices.Concat(spec.Init, spec.Containers) {
		found.container(c, spec.IsRevision())
	}
	if len(found) > 0 {
		return Spec{}, &Unsupported{Fields: found}
	}
	spec.EarlyStart = spec.IsRevision() && pod.Annotations[config.EarlyStartAnnotation] != "false" && spec.free()
	return spec, nil
}

// IsRevision is whether the pod is one of a Knative revision.
func IsRevision(pod *corev1.Pod) bool { return pod.Labels[serving.RevisionLabelKey] != "" }

// Grace returns how long a pod may take to end, unless its deletion says
// otherwise.
func Grace(spec *corev1.PodSpec) time.Duration {
	seconds := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if spec.TerminationGracePeriodSeconds != nil {
		seconds = *spec.TerminationGracePeriodSeconds
	}
	return time.Duration(seconds) * time.Second
}

// revision reads what Knative tells its sidecar (serving
// pkg/reconciler/revision/resources/queue.go).
func (s *Spec) revision(pod *corev1.Pod, proxy *corev1.Container, found *unsupported) {
	s.Revision = types.NamespacedName{Namespace: pod.Namespace, Name: pod.Labels[serving.RevisionLabelKey]}
	s.RevisionUID = types.UID(pod.Labels[serving.RevisionUID])
	s.TemplateHash = pod.Labels["pod-template-hash"]
	var err error
	s.Proxy, err = queueproxy.Parse(proxy.Env)
	found.errors(err)
	s.Concurrency = s.Proxy.Concurrency
}

// free is whether nothing that the pod's containers start with is one Pod's own. An
// implicit token doesn't count: most functions never look at theirs.
func (s *Spec) free() bool {
	if len(s.Containers) != 1 || len(s.Init) > 0 {
		return false
	}
	c := s.Containers[0]
	for _, e := range c.Env {
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil && slices.Contains(ownFields, e.ValueFrom.FieldRef.FieldPath) {
			return false
		}
	}
	return !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
		return !IsImplicitToken(m) && !shared(s.Volumes[m.Name])
	})
}

// shared is whether a volume is the same in every pod of a template: all of it is
// from ConfigMaps and Secrets.
func shared(v corev1.Volume) bool {
	if v.Projected != nil {
		return !slices.ContainsFunc(v.Projected.Sources, func(p corev1.VolumeProjection) bool { return p.ConfigMap == nil && p.Secret == nil })
	}
	return v.ConfigMap != nil || v.Secret != nil
}

// ownFields differ between the pods of one template.
var ownFields = []string{"metadata.name", "metadata.uid", "status.podIP", "status.podIPs"}

// TokenPath is where the ServiceAccount admission mounts a pod's token.
const TokenPath = "/var/run/secrets/kubernetes.io/serviceaccount"

// IsImplicitToken is whether a mount is the one that the ServiceAccount admission
// adds to each container.
func IsImplicitToken(m corev1.VolumeMount) bool {
	return m.MountPath == TokenPath && strings.HasPrefix(m.Name, "kube-api-access-")
}
