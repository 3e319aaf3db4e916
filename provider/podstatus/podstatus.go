// Package podstatus turns the state of a pod on this node into the PodStatus
// that a kubelet would report. It is pure: time comes in with the state.
package podstatus

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/wisp-serving/wisp/provider/podspec"
)

// Reasons of a waiting or terminated container, as a kubelet names them.
const (
	ReasonCreating     = "ContainerCreating"
	ReasonConfigError  = "CreateContainerConfigError"
	ReasonCreateError  = "CreateContainerError"
	ReasonErrImagePull = "ErrImagePull"
	ReasonPullBackOff  = "ImagePullBackOff"
	ReasonStartError   = "StartError"
	ReasonCompleted    = "Completed"
)

// startErrorCode is the exit code with which container runtimes report that a
// container could not be started at all.
const startErrorCode = 128

// State is what the node knows of a pod.
type State struct {
	// Phase is PodPending (Reason says what it waits for), PodRunning (ready)
	// or PodSucceeded (ended by deletion).
	Phase corev1.PodPhase
	// Reason and Message explain PodPending.
	Reason, Message string
	// NeverStarts is whether no attempt can start the function. Knative then
	// fails the Revision at once.
	NeverStarts bool
	// Since is when this state began.
	Since time.Time
	// Accepted is when the node took the pod, Started when the function became
	// ready.
	Accepted, Started time.Time
	// ImageID is the digest reference that runs.
	ImageID string
	// NodeIP is the node's address, which its pods share.
	NodeIP string
}

// Of returns the pod's status in state s. Conditions that others set are kept,
// and a condition keeps its transition time while it doesn't change.
func Of(pod *corev1.Pod, s State) corev1.PodStatus {
	status := *pod.Status.DeepCopy()
	status.Phase = s.Phase
	status.ObservedGeneration = pod.Generation
	status.HostIP, status.HostIPs = s.NodeIP, []corev1.HostIP{{IP: s.NodeIP}}
	status.PodIP, status.PodIPs = s.NodeIP, []corev1.PodIP{{IP: s.NodeIP}}
	accepted := metav1.NewTime(s.Accepted)
	status.StartTime = &accepted
	status.ContainerStatuses = nil
	for i := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, container(pod, &pod.Spec.Containers[i], s))
	}
	ready := s.Phase == corev1.PodRunning
	setCondition(&status, pod, s, corev1.PodReadyToStartContainers, s.Phase != corev1.PodSucceeded)
	setCondition(&status, pod, s, corev1.PodInitialized, true)
	setCondition(&status, pod, s, corev1.ContainersReady, ready)
	setCondition(&status, pod, s, corev1.PodReady, ready)
	return status
}

func container(pod *corev1.Pod, c *corev1.Container, s State) corev1.ContainerStatus {
	running := s.Phase == corev1.PodRunning
	status := corev1.ContainerStatus{
		Name:    c.Name,
		Image:   c.Image,
		Ready:   running,
		Started: &running,
	}
	user := c.Name != podspec.QueueProxy
	if user {
		status.ImageID = s.ImageID
	}
	if s.Phase != corev1.PodPending {
		status.ContainerID = "wisp://" + string(pod.UID) + "/" + c.Name
	}
	status.State = state(s, status.ContainerID)
	if user && s.NeverStarts {
		status.LastTerminationState.Terminated = &corev1.ContainerStateTerminated{
			ExitCode:   startErrorCode,
			Reason:     ReasonStartError,
			Message:    s.Message,
			StartedAt:  metav1.NewTime(s.Since),
			FinishedAt: metav1.NewTime(s.Since),
		}
	}
	return status
}

func state(s State, containerID string) corev1.ContainerState {
	switch s.Phase {
	case corev1.PodRunning:
		return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(s.Started)}}
	case corev1.PodSucceeded:
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			Reason:      ReasonCompleted,
			StartedAt:   metav1.NewTime(s.Started),
			FinishedAt:  metav1.NewTime(s.Since),
			ContainerID: containerID,
		}}
	default:
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: s.Reason, Message: s.Message}}
	}
}

func setCondition(status *corev1.PodStatus, pod *corev1.Pod, s State, kind corev1.PodConditionType, is bool) {
	c := corev1.PodCondition{
		Type:               kind,
		Status:             corev1.ConditionFalse,
		ObservedGeneration: pod.Generation,
		LastTransitionTime: metav1.NewTime(s.Since),
	}
	switch {
	case is:
		c.Status = corev1.ConditionTrue
	case s.Phase == corev1.PodSucceeded:
		c.Reason = "PodCompleted"
	default:
		c.Reason = "ContainersNotReady"
		c.Message = s.Message
	}
	i := slices.IndexFunc(status.Conditions, func(old corev1.PodCondition) bool { return old.Type == kind })
	if i < 0 {
		status.Conditions = append(status.Conditions, c)
		return
	}
	if status.Conditions[i].Status == c.Status {
		c.LastTransitionTime = status.Conditions[i].LastTransitionTime
	}
	status.Conditions[i] = c
}
