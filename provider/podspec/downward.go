package podspec

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// fields are the paths of fieldRef without a subscript, and how to read them.
var fields = map[string]func(*corev1.Pod, Facts) string{
	"metadata.name":           func(p *corev1.Pod, _ Facts) string { return p.Name },
	"metadata.namespace":      func(p *corev1.Pod, _ Facts) string { return p.Namespace },
	"metadata.uid":            func(p *corev1.Pod, _ Facts) string { return string(p.UID) },
	"metadata.labels":         func(p *corev1.Pod, _ Facts) string { return formatMap(p.Labels) },
	"metadata.annotations":    func(p *corev1.Pod, _ Facts) string { return formatMap(p.Annotations) },
	"spec.nodeName":           func(p *corev1.Pod, _ Facts) string { return p.Spec.NodeName },
	"spec.serviceAccountName": func(p *corev1.Pod, _ Facts) string { return p.Spec.ServiceAccountName },
	"status.podIP":            func(_ *corev1.Pod, f Facts) string { return first(f.PodIPs) },
	"status.podIPs":           func(_ *corev1.Pod, f Facts) string { return strings.Join(f.PodIPs, ",") },
	"status.hostIP":           func(_ *corev1.Pod, f Facts) string { return first(f.HostIPs) },
	"status.hostIPs":          func(_ *corev1.Pod, f Facts) string { return strings.Join(f.HostIPs, ",") },
}

// Field returns the field of pod that a fieldRef names.
func Field(pod *corev1.Pod, facts Facts, path string) (string, error) {
	if read, ok := fields[path]; ok {
		return read(pod, facts), nil
	}
	base, key, ok := subscript(path)
	switch {
	case ok && base == "metadata.labels":
		return pod.Labels[key], nil
	case ok && base == "metadata.annotations":
		return pod.Annotations[key], nil
	default:
		return "", fmt.Errorf("fieldPath = %q, must be a field of the downward API", path)
	}
}

func knownField(path string) bool {
	_, err := Field(&corev1.Pod{}, Facts{}, path)
	return err == nil
}

// subscript takes metadata.labels['key'] apart.
func subscript(path string) (base, key string, ok bool) {
	base, key, ok = strings.Cut(path, "['")
	key, closed := strings.CutSuffix(key, "']")
	return base, key, ok && closed
}

// formatMap writes a line for each key, in their order, as a file of the
// downward API holds them.
func formatMap(m map[string]string) string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "%s=%q\n", key, m[key])
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// Resource returns the container's request or limit that ref names, in units of
// its divisor, rounded up. A limit that isn't set is what the node can give.
func Resource(c *corev1.Container, facts Facts, ref *corev1.ResourceFieldSelector) (string, error) {
	kind, name, _ := strings.Cut(ref.Resource, ".")
	if !knownResource(ref.Resource) {
		return "", fmt.Errorf("resource = %q, must be limits or requests of cpu, memory or ephemeral-storage", ref.Resource)
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	list := c.Resources.Requests
	if kind == "limits" {
		list = c.Resources.Limits
	}
	amount, ok := list[corev1.ResourceName(name)]
	if !ok && kind == "limits" {
		amount = facts.Allocatable[corev1.ResourceName(name)]
	}
	quotient := float64(amount.Value()) / float64(divisor.Value())
	if name == string(corev1.ResourceCPU) {
		quotient = float64(amount.MilliValue()) / float64(divisor.MilliValue())
	}
	return strconv.FormatInt(int64(math.Ceil(quotient)), 10), nil
}

func knownResource(name string) bool {
	kind, name, _ := strings.Cut(name, ".")
	if kind != "limits" && kind != "requests" {
		return false
	}
	switch corev1.ResourceName(name) {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		return true
	default:
		return false
	}
}
