package provider

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/wisp-serving/wisp/provider/podspec"
)

// ports are those on which the container may listen: its own, and those that its
// probes ask, proxied for it.
func ports(c podspec.Container, proxied []*corev1.Probe) []int {
	var numbers []int
	add := func(port int32) {
		if n := int(port); n > 0 && !slices.Contains(numbers, n) {
			numbers = append(numbers, n)
		}
	}
	for _, p := range c.Ports {
		if cmp.Or(p.Protocol, corev1.ProtocolTCP) == corev1.ProtocolTCP {
			add(p.ContainerPort)
		}
	}
	for _, probe := range append([]*corev1.Probe{c.ReadinessProbe, c.LivenessProbe, c.StartupProbe}, proxied...) {
		switch {
		case probe == nil:
		case probe.HTTPGet != nil:
			add(probe.HTTPGet.Port.IntVal) // a name is one of the container's own
		case probe.TCPSocket != nil:
			add(probe.TCPSocket.Port.IntVal)
		case probe.GRPC != nil:
			add(probe.GRPC.Port)
		}
	}
	return numbers
}
