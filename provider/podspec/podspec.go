// Package podspec reads from a Pod what the node needs to run it, or names
// every field that wasm cannot honour. It is pure: no I/O, no clock.
package podspec

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/apis/serving"

	"github.com/wisp-serving/wisp/config"
)

// QueueProxy is the name of the sidecar that Knative puts into every revision's
// pod (serving pkg/reconciler/revision/resources/deploy.go). The node serves
// its contract itself and never pulls its image.
const QueueProxy = "queue-proxy"

// tokenPath is where the ServiceAccount admission mounts its token. A guest has
// no file system to see it in, and a pod that mounts nothing else loses
// nothing.
const tokenPath = "/var/run/secrets/kubernetes.io/serviceaccount"

// Spec is a pod of a Knative revision as the node runs it.
type Spec struct {
	Revision    types.NamespacedName
	RevisionUID types.UID
	// TemplateHash tells pod templates of one revision apart.
	TemplateHash string

	// Container is the user container's name.
	Container string
	Image     string
	// Args replace the image's, unless nil; references are expanded.
	Args []string
	// Env is "KEY=value" in the pod's order, references expanded.
	Env []string
	// ABI is the pod's choice, empty for the image's own.
	ABI string
	// Concurrency is the revision's containerConcurrency; 0 is any number.
	Concurrency int
	// EarlyStart is whether the function may start ahead of a Pod.
	EarlyStart bool
	// Grace is how long its requests may run on when it ends; Knative sets it to
	// the revision's timeout.
	Grace time.Duration
}

// Unsupported says which fields keep a pod from running.
type Unsupported struct{ Fields []string }

func (u *Unsupported) Error() string {
	return "a wasm pod cannot honour: " + strings.Join(u.Fields, "; ")
}

// Parse returns the pod's Spec, or an *Unsupported that names every field in
// its way, so that one edit mends them all.
func Parse(pod *corev1.Pod) (Spec, error) {
	var found unsupported
	user, proxy := containers(pod, &found)
	found.pod(&pod.Spec)
	if user == nil || proxy == nil {
		return Spec{}, &Unsupported{Fields: found}
	}
	index := indexOf(pod, user)
	found.container(fmt.Sprintf("spec.containers[%d]", index), user)
	concurrency, err := containerConcurrency(proxy)
	if err != nil {
		found.add("%s", err)
	}
	if len(found) > 0 {
		return Spec{}, &Unsupported{Fields: found}
	}
	env, values := environment(user.Env)
	return Spec{
		Revision:     types.NamespacedName{Namespace: pod.Namespace, Name: pod.Labels[serving.RevisionLabelKey]},
		RevisionUID:  types.UID(pod.Labels[serving.RevisionUID]),
		TemplateHash: pod.Labels["pod-template-hash"],
		Container:    user.Name,
		Image:        user.Image,
		Args:         expandAll(user.Args, values),
		Env:          env,
		ABI:          pod.Annotations[config.ABIAnnotation],
		Concurrency:  concurrency,
		EarlyStart:   pod.Annotations[config.EarlyStartAnnotation] != "false",
		Grace:        Grace(&pod.Spec),
	}, nil
}

// Grace returns how long a pod's requests may run on when it ends, unless its
// deletion says otherwise.
func Grace(spec *corev1.PodSpec) time.Duration {
	seconds := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if spec.TerminationGracePeriodSeconds != nil {
		seconds = *spec.TerminationGracePeriodSeconds
	}
	return time.Duration(seconds) * time.Second
}

// containers finds the user's container and Knative's sidecar.
func containers(pod *corev1.Pod, found *unsupported) (user, proxy *corev1.Container) {
	if pod.Labels[serving.RevisionLabelKey] == "" {
		found.add("metadata.labels[%s] is missing: only pods of Knative revisions run yet", serving.RevisionLabelKey)
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		switch {
		case c.Name == QueueProxy:
			proxy = c
		case user == nil:
			user = c
		default:
			found.add("spec.containers[%d]: a second container, %s", i, c.Name)
		}
	}
	if proxy == nil {
		found.add("spec.containers: no %s: only pods of Knative revisions run yet", QueueProxy)
	}
	if user == nil {
		found.add("spec.containers: no container beside %s", QueueProxy)
	}
	return user, proxy
}

func indexOf(pod *corev1.Pod, c *corev1.Container) int {
	for i := range pod.Spec.Containers {
		if &pod.Spec.Containers[i] == c {
			return i
		}
	}
	return -1
}

// containerConcurrency reads what Knative tells its sidecar (serving
// pkg/reconciler/revision/resources/queue.go).
func containerConcurrency(proxy *corev1.Container) (int, error) {
	const name = "CONTAINER_CONCURRENCY"
	for _, e := range proxy.Env {
		if e.Name != name {
			continue
		}
		n, err := strconv.Atoi(e.Value)
		if err != nil || n < 0 {
			return 0, fmt.Errorf("%s env %s = %q, must be a number of at least 0", QueueProxy, name, e.Value)
		}
		return n, nil
	}
	return 0, nil
}

// unsupported collects what stands in a pod's way.
type unsupported []string

func (u *unsupported) add(format string, args ...any) { *u = append(*u, fmt.Sprintf(format, args...)) }

func (u *unsupported) addIf(bad bool, field string) {
	if bad {
		u.add("%s", field)
	}
}

func (u *unsupported) pod(spec *corev1.PodSpec) {
	u.addIf(spec.HostNetwork, "spec.hostNetwork")
	u.addIf(spec.HostPID, "spec.hostPID")
	u.addIf(spec.HostIPC, "spec.hostIPC")
	u.addIf(len(spec.InitContainers) > 0, "spec.initContainers")
	u.addIf(len(spec.ResourceClaims) > 0, "spec.resourceClaims")
}

func (u *unsupported) container(path string, c *corev1.Container) {
	u.addIf(len(c.Command) > 0, path+".command: the image's entrypoint names the module")
	u.addIf(len(c.EnvFrom) > 0, path+".envFrom")
	for i, e := range c.Env {
		u.addIf(e.ValueFrom != nil, fmt.Sprintf("%s.env[%d].valueFrom (%s)", path, i, e.Name))
	}
	for i, m := range c.VolumeMounts {
		u.addIf(m.MountPath != tokenPath, fmt.Sprintf("%s.volumeMounts[%d] (%s)", path, i, m.MountPath))
	}
	u.addIf(len(c.VolumeDevices) > 0, path+".volumeDevices")
	u.addIf(c.LivenessProbe != nil, path+".livenessProbe")
	u.addIf(c.StartupProbe != nil, path+".startupProbe")
	u.addIf(c.ReadinessProbe != nil && c.ReadinessProbe.Exec != nil, path+".readinessProbe.exec")
	u.addIf(c.TTY, path+".tty")
	if s := c.SecurityContext; s != nil {
		u.addIf(s.Privileged != nil && *s.Privileged, path+".securityContext.privileged")
	}
}
