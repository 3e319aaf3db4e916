package podstatus_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/wisp-serving/wisp/provider/podstatus"
)

var (
	accepted = time.Unix(100, 0)
	started  = time.Unix(101, 0)
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

func TestOf(t *testing.T) {
	waiting := func(reason, message string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	}
	tests := []struct {
		name            string
		state           podstatus.State
		ready           corev1.ConditionStatus
		reason          string
		readySince      time.Time
		container       corev1.ContainerState
		lastTermination *corev1.ContainerStateTerminated
	}{
		{
			name:  "pending says what it waits for",
			state: podstatus.State{Phase: corev1.PodPending, Reason: podstatus.ReasonErrImagePull, Message: "no such image"},
			ready: corev1.ConditionFalse, reason: "ContainersNotReady", readySince: accepted,
			container: waiting("ErrImagePull", "no such image"),
		},
		{
			name:  "what can never start fails its revision at once",
			state: podstatus.State{Phase: corev1.PodPending, Reason: podstatus.ReasonCreateError, Message: "unknown import", NeverStarts: true},
			ready: corev1.ConditionFalse, reason: "ContainersNotReady", readySince: accepted,
			container:       waiting("CreateContainerError", "unknown import"),
			lastTermination: &corev1.ContainerStateTerminated{ExitCode: 128, Reason: "StartError", Message: "unknown import", StartedAt: metav1.NewTime(now), FinishedAt: metav1.NewTime(now)},
		},
		{
			name:  "running is ready since now",
			state: podstatus.State{Phase: corev1.PodRunning, Started: started, ImageID: "r/sort@sha256:1"},
			ready: corev1.ConditionTrue, readySince: now,
			container: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(started)}},
		},
		{
			name:  "ended is terminated in every container",
			state: podstatus.State{Phase: corev1.PodSucceeded, Started: started, ImageID: "r/sort@sha256:1"},
			ready: corev1.ConditionFalse, reason: "PodCompleted", readySince: accepted,
			container: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				Reason: "Completed", StartedAt: metav1.NewTime(started), FinishedAt: metav1.NewTime(now), ContainerID: "wisp://uid/user-container",
			}},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := test.state
			s.Since, s.Accepted, s.NodeIP = now, accepted, "127.0.1.1"
			got := podstatus.Of(pod(), s)

			if got.Phase != s.Phase || got.PodIP != "127.0.1.1" || got.HostIP != "127.0.1.1" || !got.StartTime.Time.Equal(accepted) {
				t.Errorf("got phase %s, podIP %s, hostIP %s, start %v", got.Phase, got.PodIP, got.HostIP, got.StartTime)
			}
			if got.QOSClass != corev1.PodQOSBurstable {
				t.Errorf("got QoS class %q, want the API server's kept", got.QOSClass)
			}
			if c := condition(got, corev1.PodScheduled); c == nil || c.Status != corev1.ConditionTrue {
				t.Errorf("got %v for PodScheduled, want the scheduler's condition kept", c)
			}
			ready := condition(got, corev1.PodReady)
			if ready == nil || ready.Status != test.ready || ready.Reason != test.reason || !ready.LastTransitionTime.Time.Equal(test.readySince) {
				t.Errorf("got Ready %+v, want %s since %v with reason %q", ready, test.ready, test.readySince, test.reason)
			}
			if n := len(got.ContainerStatuses); n != 2 {
				t.Fatalf("got %d container statuses, want the sidecar's too", n)
			}
			user, proxy := got.ContainerStatuses[0], got.ContainerStatuses[1]
			if diff := cmp.Diff(test.container, user.State); diff != "" {
				t.Errorf("state of user-container (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.lastTermination, user.LastTerminationState.Terminated); diff != "" {
				t.Errorf("last termination of user-container (-want +got):\n%s", diff)
			}
			if proxy.LastTerminationState.Terminated != nil || proxy.ImageID != "" {
				t.Errorf("got %+v for queue-proxy, want nothing pulled and nothing failed", proxy)
			}
			if isReady := s.Phase == corev1.PodRunning; user.Ready != isReady || proxy.Ready != isReady {
				t.Errorf("got ready %v and %v, want %v", user.Ready, proxy.Ready, isReady)
			}
		})
	}
}

func condition(s corev1.PodStatus, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == kind {
			return &s.Conditions[i]
		}
	}
	return nil
}
