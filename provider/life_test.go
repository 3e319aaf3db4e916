package provider

import (
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ktesting "k8s.io/client-go/testing"

	"github.com/wisp-serving/wisp/provider/podlife"
)

// traps is a WASI command that ends by a trap at once.
var traps = []byte("\x00asm\x01\x00\x00\x00" +
	"\x01\x04\x01\x60\x00\x00" +
	"\x03\x02\x01\x00" +
	"\x05\x03\x01\x00\x01" +
	"\x07\x13\x02\x06memory\x02\x00\x06_start\x00\x00" +
	"\x0a\x05\x01\x03\x00\x00\x0b")

// plain makes a pod one that is no revision's.
func plain(policy corev1.RestartPolicy) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Labels, p.Annotations = nil, nil
		p.Spec.RestartPolicy = policy
		p.Spec.Containers = p.Spec.Containers[:1]
		p.Spec.Containers[0].Name = "main"
	}
}

func inPhase(phase corev1.PodPhase) func(*corev1.Pod) bool {
	return func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == phase }
}

func (s *stand) get(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	pod, err := s.client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func TestPlainPodRunsToItsEnd(t *testing.T) {
	s := newStand(t)
	good, bad, broken := s.push(t, "good", emptyCommand), s.push(t, "bad", traps), s.push(t, "broken", importsUnknown)
	tests := []struct {
		name    string
		image   string
		policy  corev1.RestartPolicy
		phase   corev1.PodPhase
		code    int32
		reason  string
		message string
	}{
		{"success-never", good, corev1.RestartPolicyNever, corev1.PodSucceeded, 0, "Completed", ""},
		{"success-onfailure", good, corev1.RestartPolicyOnFailure, corev1.PodSucceeded, 0, "Completed", ""},
		{"trap-never", bad, corev1.RestartPolicyNever, corev1.PodFailed, podlife.CodeTrap, "Error", "unreachable"},
		{"unstartable-never", broken, corev1.RestartPolicyNever, corev1.PodFailed, podlife.CodeStartError, "StartError", "nowhere"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s.create(t, s.pod(test.name, types.UID(test.name), test.image, plain(test.policy)))
			s.await(t, test.name, string(test.phase), inPhase(test.phase))
			ended := s.get(t, test.name).Status.ContainerStatuses[0].State.Terminated
			if ended == nil || ended.ExitCode != test.code || ended.Reason != test.reason || !strings.Contains(ended.Message, test.message) {
				t.Errorf("got %+v, want exit code %d, reason %s, message with %q", ended, test.code, test.reason, test.message)
			}
		})
	}
	if len(s.router.changes) != 0 {
		t.Errorf("the router was told %q of pods that take no requests", <-s.router.changes)
	}
}

func TestFailingContainerRestartsWithBackOff(t *testing.T) {
	s := newStand(t)
	bad := s.push(t, "bad", traps)
	for _, policy := range []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure} {
		name := strings.ToLower(string(policy))
		s.create(t, s.pod(name, types.UID(name), bad, plain(policy)))
		s.await(t, name, "in back-off", func(p *corev1.Pod) bool {
			if p == nil || len(p.Status.ContainerStatuses) == 0 {
				return false
			}
			w := p.Status.ContainerStatuses[0].State.Waiting
			return w != nil && w.Reason == podlife.ReasonCrashLoop
		})
		status := s.get(t, name).Status
		c := status.ContainerStatuses[0]
		if c.RestartCount != 1 || c.LastTerminationState.Terminated == nil || c.LastTerminationState.Terminated.ExitCode != podlife.CodeTrap {
			t.Errorf("%s: got %+v, want one restart (the first is at once) and the last exit", name, c)
		}
		if status.Phase != corev1.PodRunning {
			t.Errorf("%s: got phase %s, want Running", name, status.Phase)
		}
	}
}

func TestInitContainersComeFirst(t *testing.T) {
	s := newStand(t)
	good, bad := s.push(t, "good", emptyCommand), s.push(t, "bad", traps)
	withInit := func(image string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			plain(corev1.RestartPolicyNever)(p)
			p.Spec.InitContainers = []corev1.Container{{Name: "first", Image: good}, {Name: "second", Image: image}}
		}
	}
	s.create(t, s.pod("ok", "ok", good, withInit(good)))
	s.await(t, "ok", "succeeded", inPhase(corev1.PodSucceeded))
	status := s.get(t, "ok").Status
	first, second := status.InitContainerStatuses[0].State.Terminated, status.InitContainerStatuses[1].State.Terminated
	if first == nil || second == nil || second.StartedAt.Before(&first.FinishedAt) {
		t.Errorf("got init containers %+v, want one after the other", status.InitContainerStatuses)
	}

	s.create(t, s.pod("failed", "failed", good, withInit(bad)))
	s.await(t, "failed", "failed", inPhase(corev1.PodFailed))
	if main := s.get(t, "failed").Status.ContainerStatuses[0]; main.State.Waiting == nil || main.State.Waiting.Reason != podlife.ReasonInitializing {
		t.Errorf("got %+v, want the main container never started", main)
	}
}

// TestEndedContainerDoesNotRunAgain is a node that is killed after a container
// has ended and before the API server could be told.
func TestEndedContainerDoesNotRunAgain(t *testing.T) {
	s := newStand(t)
	pod := s.pod("job", "job", s.push(t, "good", emptyCommand), plain(corev1.RestartPolicyNever))
	s.create(t, pod)
	s.await(t, "job", "succeeded", inPhase(corev1.PodSucceeded))
	ended := s.get(t, "job")
	s.stop()

	forgotten := ended.DeepCopy()
	forgotten.Status.Phase = corev1.PodRunning
	started := ended.Status.ContainerStatuses[0].State.Terminated.StartedAt
	forgotten.Status.ContainerStatuses[0].State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: started}}
	if _, err := s.client.CoreV1().Pods("default").UpdateStatus(t.Context(), forgotten, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.start(t)
	s.await(t, "job", "succeeded again", inPhase(corev1.PodSucceeded))
	again := s.get(t, "job").Status.ContainerStatuses[0]
	if again.RestartCount != 0 || !again.State.Terminated.FinishedAt.Equal(&ended.Status.ContainerStatuses[0].State.Terminated.FinishedAt) {
		t.Errorf("got %+v, want the exit that the node has noted", again)
	}
}

// TestContainerThatRanWhenTheNodeDied counts as ended: its policy says what
// follows.
func TestContainerThatRanWhenTheNodeDied(t *testing.T) {
	s := newStand(t)
	pod := s.pod("never", "never", s.push(t, "good", emptyCommand), plain(corev1.RestartPolicyNever))
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{
		Name: "main", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}},
	}}}
	s.create(t, pod)
	s.await(t, "never", "failed", inPhase(corev1.PodFailed))
	if c := s.get(t, "never").Status.ContainerStatuses[0].State.Terminated; c == nil || c.Reason != podlife.ReasonStatusUnknown || c.ExitCode != podlife.CodeKilled {
		t.Errorf("got %+v, want it ended by the restart", c)
	}
}

func TestActiveDeadline(t *testing.T) {
	s := newStand(t)
	seconds := int64(1)
	pod := s.pod("late", "late", s.push(t, "bad", traps), plain(corev1.RestartPolicyAlways), func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = &seconds })
	pod.Status.StartTime = &metav1.Time{Time: time.Now().Add(-time.Hour)}
	s.create(t, pod)
	s.await(t, "late", "failed", inPhase(corev1.PodFailed))
	if status := s.get(t, "late").Status; status.Reason != "DeadlineExceeded" {
		t.Errorf("got reason %q, want DeadlineExceeded", status.Reason)
	}
}

// TestDeletedPodLeavesNothingOnDisk is about what the node keeps of a pod.
func TestDeletedPodLeavesNothingOnDisk(t *testing.T) {
	s := newStand(t)
	pod := s.pod("job", "job", s.push(t, "good", emptyCommand), plain(corev1.RestartPolicyNever))
	s.create(t, pod)
	s.await(t, "job", "succeeded", inPhase(corev1.PodSucceeded))
	if _, err := os.Stat(s.folder("job")); err != nil {
		t.Errorf("an ended pod is not noted: %v", err)
	}
	s.markDeleted(t, pod)
	s.awaitGone(t, "job")
	s.stop()
	s.start(t) // sweeps up what its last process may not have come to
	if _, err := os.Stat(s.folder("job")); !os.IsNotExist(err) {
		t.Errorf("got %v for the folder of a deleted pod, want it gone", err)
	}
}

// TestLastStatusComesBeforeTheEnd is about those who watch a pod go: they see how
// it has ended.
func TestLastStatusComesBeforeTheEnd(t *testing.T) {
	s := newStand(t)
	pod := s.pod("sort", "uid", s.push(t, "good", emptyCommand))
	s.create(t, pod)
	s.awaitReady(t, "sort")
	s.markDeleted(t, pod)
	s.awaitGone(t, "sort")
	var told *corev1.Pod
	for _, action := range s.client.Actions() {
		switch a := action.(type) {
		case ktesting.UpdateActionImpl:
			if a.GetSubresource() == "status" {
				told = a.GetObject().(*corev1.Pod)
			}
		case ktesting.DeleteActionImpl:
			if told == nil || told.Status.Phase != corev1.PodSucceeded || told.Status.ContainerStatuses[0].State.Terminated == nil {
				t.Fatalf("the pod was removed with the status %+v", told)
			}
			return
		}
	}
	t.Fatal("the pod was never removed")
}
