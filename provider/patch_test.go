package provider

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ktesting "k8s.io/client-go/testing"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/provider/podlife"
)

// TestPatchedImage is about containers that get another image: they run again at
// once, with that one.
func TestPatchedImage(t *testing.T) {
	s := newStandWith(t, func(c *config.Node) { c.Logs.Rate = resource.MustParse("64Ki") }) // what prints without end mostly waits
	endless := s.push(t, "endless", new(program).forever(func(p *program) { p.complain("and on\n") }).module())
	good, failing := s.push(t, "good", emptyCommand), s.push(t, "failing", traps)
	waits := func(reason string) func(*corev1.Pod) bool {
		return func(p *corev1.Pod) bool {
			if p == nil || len(p.Status.ContainerStatuses) == 0 {
				return false
			}
			is, _ := stateOf(p)
			return is == reason
		}
	}
	tests := []struct {
		name   string
		policy corev1.RestartPolicy
		from   string
		// until is what the pod is when its image changes.
		until    func(*corev1.Pod) bool
		to       string
		want     corev1.PodPhase
		restarts int32
		last     int32 // exit code; 0: it has not run before
	}{
		{"running", corev1.RestartPolicyAlways, endless, inPhase(corev1.PodRunning), s.push(t, "endless-too", new(program).forever(func(p *program) { p.complain("\n") }).module()), corev1.PodRunning, 1, podlife.CodeTerminated},
		{"running, whatever its policy", corev1.RestartPolicyNever, endless, inPhase(corev1.PodRunning), good, corev1.PodSucceeded, 1, podlife.CodeTerminated},
		{"in back-off", corev1.RestartPolicyAlways, failing, waits(podlife.ReasonCrashLoop), endless, corev1.PodRunning, 2, podlife.CodeTrap},
		{"not to be had", corev1.RestartPolicyAlways, s.registry + "/missing:v1", waits(podlife.ReasonPullBackOff), endless, corev1.PodRunning, 0, 0},
		{"not to be started", corev1.RestartPolicyAlways, s.push(t, "imports", importsUnknown), waits(podlife.ReasonCreateError), endless, corev1.PodRunning, 1, podlife.CodeStartError},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			name := strings.NewReplacer(" ", "-", ",", "").Replace(test.name)
			pod := s.pod(name, types.UID(name), test.from, plain(test.policy))
			s.create(t, pod)
			s.await(t, name, "as it is to be before", test.until)
			s.client.ClearActions()
			s.setImage(t, name, test.to)
			s.await(t, name, string(test.want)+" with its new image", func(p *corev1.Pod) bool {
				return inPhase(test.want)(p) && p.Status.ContainerStatuses[0].RestartCount == test.restarts && waits("")(p) == (test.want == corev1.PodRunning)
			})
			status := s.get(t, name).Status.ContainerStatuses[0]
			if last := status.LastTerminationState.Terminated; last == nil && test.last != 0 || last != nil && last.ExitCode != test.last {
				t.Errorf("got last termination %+v, want exit code %d", last, test.last)
			}
			for _, phase := range s.phasesTold(name) {
				if phase == corev1.PodFailed {
					t.Error("the pod was said to have failed in between")
				}
			}
			s.markDeleted(t, pod)
			s.awaitGone(t, name)
		})
	}
}

// TestPatchedInitContainer may end what it has begun.
func TestPatchedInitContainer(t *testing.T) {
	s := newStandWith(t, func(c *config.Node) { c.Logs.Rate = resource.MustParse("64Ki") })
	good := s.push(t, "good", emptyCommand)
	pod := s.pod("init", "init", good, plain(corev1.RestartPolicyNever), func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{{Name: "first", Image: s.registry + "/missing:v1"}}
	})
	s.create(t, pod)
	s.await(t, "init", "waiting for its image", func(p *corev1.Pod) bool {
		return p != nil && len(p.Status.InitContainerStatuses) > 0 && p.Status.InitContainerStatuses[0].State.Waiting != nil &&
			p.Status.InitContainerStatuses[0].State.Waiting.Reason == podlife.ReasonPullBackOff
	})
	// Long enough, by the log's rate, to be running when its image changes again.
	slow := new(program)
	for range 24 {
		slow.complain(strings.Repeat("x", 16<<10) + "\n")
	}
	s.setImage(t, "init", s.push(t, "slow", slow.exit(0).module()))
	s.await(t, "init", "initializing", func(p *corev1.Pod) bool {
		return p != nil && p.Status.InitContainerStatuses[0].State.Running != nil
	})
	s.setImage(t, "init", s.push(t, "failing", traps))
	s.await(t, "init", "succeeded", inPhase(corev1.PodSucceeded))
	if n := s.get(t, "init").Status.InitContainerStatuses[0].RestartCount; n != 0 {
		t.Errorf("an init container that ran was restarted %d times", n)
	}
}

// setImage changes the image of the pod's first init container if it has one, or
// else of its first container.
func (s *stand) setImage(t *testing.T, name, image string) {
	t.Helper()
	pod := s.get(t, name)
	c := &pod.Spec.Containers[0]
	if len(pod.Spec.InitContainers) > 0 {
		c = &pod.Spec.InitContainers[0]
	}
	c.Image = image
	if _, err := s.client.CoreV1().Pods(pod.Namespace).Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// phasesTold returns the phases that the API server was told of a pod.
func (s *stand) phasesTold(name string) []corev1.PodPhase {
	var phases []corev1.PodPhase
	for _, action := range s.client.Actions() {
		if a, ok := action.(ktesting.UpdateActionImpl); ok && a.GetSubresource() == "status" {
			if pod, ok := a.GetObject().(*corev1.Pod); ok && pod.Name == name {
				phases = append(phases, pod.Status.Phase)
			}
		}
	}
	return phases
}
