package podstatus_test

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/wisp-serving/wisp/provider/podlife"
	"github.com/wisp-serving/wisp/provider/podstatus"
)

var (
	accepted = time.Unix(100, 0)
	started  = time.Unix(101, 0)
	finished = time.Unix(150, 0)
	now      = time.Unix(200, 0)
)

func pod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{UID: "uid", Generation: 3},
		Spec: corev1.PodSpec{Containers: []corev1.Container{
			{Name: "user-container", Image: "r/sort:v1"},
			{Name: "queue-proxy", Image: "r/queue"},
		}},
		Status: corev1.PodStatus{
			QOSClass: corev1.PodQOSBurstable,
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
				{Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(accepted)},
			},
		},
	}
}

// in returns the state of a pod whose one container is c.
func in(phase corev1.PodPhase, c podlife.Container) podstatus.State {
	c.Name = "user-container"
	return podstatus.State{
		Phase: phase, Containers: []podlife.Container{c},
		Accepted: accepted, Now: now, PodIPs: []string{"10.0.0.1"}, HostIPs: []string{"192.0.2.1"},
	}
}

func running() podlife.Container {
	c := podlife.Container{}.Begin("wisp://uid/user-container/0", started)
	c.Ready, c.Started, c.ImageID = true, true, "r/sort@sha256:00"
	return c
}

func condition(t *testing.T, status corev1.PodStatus, kind corev1.PodConditionType) corev1.PodCondition {
	t.Helper()
	for _, c := range status.Conditions {
		if c.Type == kind {
			return c
		}
	}
	t.Fatalf("no condition %s", kind)
	return corev1.PodCondition{}
}

func TestOf(t *testing.T) {
	failed := running().End(podlife.Exit{Code: 3, Reason: podlife.ReasonError, Message: "boom"}, "", finished)
	ended := &corev1.ContainerStateTerminated{
		ExitCode: 3, Reason: "Error", Message: "boom", StartedAt: metav1.NewTime(started), FinishedAt: metav1.NewTime(finished), ContainerID: "wisp://uid/user-container/0",
	}
	tests := []struct {
		name       string
		state      podstatus.State
		ready      corev1.ConditionStatus
		reason     string
		readySince time.Time
		container  corev1.ContainerState
		last       *corev1.ContainerStateTerminated
		proxy      corev1.ContainerState
	}{
		{
			name:  "pending says what it waits for",
			state: in(corev1.PodPending, podlife.Container{}.Wait(podlife.ReasonErrImagePull, "no such image")),
			ready: corev1.ConditionFalse, reason: "ContainersNotReady", readySince: accepted,
			container: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no such image"}},
			proxy:     corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}},
		},
		{
			name: "running", state: in(corev1.PodRunning, running()), ready: corev1.ConditionTrue, readySince: now,
			container: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(started)}},
			proxy:     corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(started)}},
		},
		{
			name:  "in back-off, with how it ended",
			state: in(corev1.PodRunning, failed.Wait(podlife.ReasonCrashLoop, "back-off 10s")),
			ready: corev1.ConditionFalse, reason: "ContainersNotReady", readySince: accepted, last: ended,
			container: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 10s"}},
			proxy:     corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}},
		},
		{
			name: "failed", state: in(corev1.PodFailed, failed), ready: corev1.ConditionFalse, reason: "PodFailed", readySince: accepted,
			container: corev1.ContainerState{Terminated: ended},
			proxy: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				Reason: "Completed", StartedAt: metav1.NewTime(started), FinishedAt: metav1.NewTime(finished), ContainerID: "wisp://uid/user-container/queue-proxy",
			}},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			status := podstatus.Of(pod(), test.state)
			ready := condition(t, status, corev1.PodReady)
			if ready.Status != test.ready || ready.Reason != test.reason || !ready.LastTransitionTime.Time.Equal(test.readySince) || ready.ObservedGeneration != 3 {
				t.Errorf("got Ready %+v, want %s %q since %s", ready, test.ready, test.reason, test.readySince)
			}
			condition(t, status, corev1.PodScheduled) // another's
			if status.QOSClass != corev1.PodQOSBurstable {
				t.Error("what others set is lost")
			}
			user, proxy := status.ContainerStatuses[0], status.ContainerStatuses[1]
			if diff := cmp.Diff(test.container, user.State); diff != "" {
				t.Errorf("container (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.last, user.LastTerminationState.Terminated); diff != "" {
				t.Errorf("last termination (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.proxy, proxy.State); diff != "" {
				t.Errorf("sidecar (-want +got):\n%s", diff)
			}
			if proxy.Ready != user.Ready || proxy.RestartCount != 0 || proxy.ImageID != "" {
				t.Errorf("got sidecar %+v", proxy)
			}
			if status.PodIP != "10.0.0.1" || status.HostIP != "192.0.2.1" || !status.StartTime.Time.Equal(accepted) {
				t.Errorf("got addresses %s and %s, start %s", status.PodIP, status.HostIP, status.StartTime)
			}
		})
	}
}

func TestReadinessGates(t *testing.T) {
	gated := pod()
	gated.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/lb"}}
	for _, test := range []struct {
		name  string
		gate  corev1.ConditionStatus
		ready corev1.ConditionStatus
	}{
		{"not set yet", "", corev1.ConditionFalse},
		{"closed", corev1.ConditionFalse, corev1.ConditionFalse},
		{"open", corev1.ConditionTrue, corev1.ConditionTrue},
	} {
		t.Run(test.name, func(t *testing.T) {
			it := gated.DeepCopy()
			if test.gate != "" {
				it.Status.Conditions = append(it.Status.Conditions, corev1.PodCondition{Type: "example.com/lb", Status: test.gate})
			}
			if got := podstatus.Overruled(gated, it); got != (test.gate != "") {
				t.Errorf("got %v for whether the gate has changed", got)
			}
			status := podstatus.Of(it, in(corev1.PodRunning, running()))
			if c := condition(t, status, corev1.ContainersReady); c.Status != corev1.ConditionTrue {
				t.Errorf("got ContainersReady %s, want True", c.Status)
			}
			if c := condition(t, status, corev1.PodReady); c.Status != test.ready {
				t.Errorf("got Ready %s (%s), want %s", c.Status, c.Message, test.ready)
			}
		})
	}
}

func TestInitContainers(t *testing.T) {
	it := pod()
	it.Spec.InitContainers = []corev1.Container{{Name: "first"}, {Name: "beside"}}
	first := podlife.Container{Name: "first", Init: true, State: podlife.Waiting}
	beside := podlife.Container{Name: "beside", Init: true, Sidecar: true, State: podlife.Waiting}
	state := in(corev1.PodPending, podlife.Container{State: podlife.Waiting, Reason: podlife.ReasonInitializing})
	state.Containers = append([]podlife.Container{first, beside}, state.Containers...)
	status := podstatus.Of(it, state)
	if c := condition(t, status, corev1.PodInitialized); c.Status != corev1.ConditionFalse || c.Message != "containers with incomplete status: [first beside]" {
		t.Errorf("got %+v before they ran", c)
	}
	state.Containers[0] = first.Begin("", started).End(podlife.Exit{Reason: podlife.ReasonCompleted}, "", finished)
	state.Containers[1] = beside.Begin("", started)
	state.Containers[1].Started, state.Containers[1].Ready = true, true
	status = podstatus.Of(it, state)
	if c := condition(t, status, corev1.PodInitialized); c.Status != corev1.ConditionTrue {
		t.Errorf("got %+v after they ran", c)
	}
	if !status.InitContainerStatuses[0].Ready || status.InitContainerStatuses[0].State.Terminated == nil || status.InitContainerStatuses[1].State.Running == nil {
		t.Errorf("got %+v", status.InitContainerStatuses)
	}
}

// TestRestore holds that a status says enough to go on from.
func TestRestore(t *testing.T) {
	failed := running().End(podlife.Exit{Code: 3, Reason: podlife.ReasonError}, "", finished)
	for _, test := range []struct {
		name string
		c    podlife.Container
	}{
		{"waiting", podlife.Container{}.Wait(podlife.ReasonCreating, "")},
		{"running", running()},
		{"running again", func() podlife.Container { c := failed.Begin("two", now); c.Started = true; return c }()},
		{"ended", failed},
		{"in back-off", failed.Wait(podlife.ReasonCrashLoop, "soon")},
	} {
		t.Run(test.name, func(t *testing.T) {
			it := pod()
			it.Spec.Containers = it.Spec.Containers[:1]
			it.Status = podstatus.Of(it, in(corev1.PodRunning, test.c))
			got := podstatus.Restore(it)[0]
			if got.State != test.c.State || got.Restarts() != test.c.Restarts() || got.Run != test.c.Run {
				t.Errorf("got %+v, want %+v", got, test.c)
			}
			if diff := cmp.Diff(test.c.Last, got.Last); diff != "" {
				t.Errorf("last run (-want +got):\n%s", diff)
			}
		})
	}
}

// TestMessagesAreBounded is about containers that have ended with a lot to say.
func TestMessagesAreBounded(t *testing.T) {
	long := running().End(podlife.Exit{Code: 1, Reason: podlife.ReasonError, Message: strings.Repeat("é", 8<<10)}, "", finished)
	status := podstatus.Of(pod(), in(corev1.PodRunning, long.Wait(podlife.ReasonCrashLoop, "")))
	message := status.ContainerStatuses[0].LastTerminationState.Terminated.Message
	if len(message) != 6<<10 || !utf8.ValidString(message) {
		t.Errorf("got a message of %d bytes, want half of 12 KiB, for one of two containers", len(message))
	}
}
