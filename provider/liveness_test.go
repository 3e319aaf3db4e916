package provider

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/runtime/guest"
)

// TestServerThatHangsIsRestarted has a guest take a connection and compute for ever
// then: it answers nothing, which its liveness probe finds.
func TestServerThatHangsIsRestarted(t *testing.T) {
	s := newStand(t)
	hangs := new(program).accept().forever(func(*program) {}).module()
	s.create(t, s.pod("hangs", "uid-1", s.push(t, "hangs", hangs), func(p *corev1.Pod) {
		p.Annotations[config.ABIAnnotation] = guest.ABIServer
		c := &p.Spec.Containers[0]
		c.Ports = []corev1.ContainerPort{{ContainerPort: 8080}}
		c.LivenessProbe = &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)}},
			PeriodSeconds: 1, TimeoutSeconds: 1, FailureThreshold: 2,
		}
	}))
	s.awaitReady(t, "hangs")
	s.await(t, "hangs", "restarted", func(p *corev1.Pod) bool {
		return p != nil && p.Status.ContainerStatuses[0].RestartCount > 0 && p.Status.ContainerStatuses[0].LastTerminationState.Terminated != nil
	})
}
