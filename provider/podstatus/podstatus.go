// Package podstatus turns what the node knows of a pod into the PodStatus that a
// kubelet would report. It is pure: time comes in with the state.
package podstatus

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/wisp-serving/wisp/provider/podlife"
	"github.com/wisp-serving/wisp/provider/podspec"
)

// State is what the node knows of a pod.
type State struct {
	Phase corev1.PodPhase
	// Reason and Message explain the phase where no container does.
	Reason, Message string
	// Containers are the pod's, without Knative's sidecar, whose state is the
	// first main container's: the node does its work.
	Containers []podlife.Container
	// Accepted is when the node took the pod first.
	Accepted time.Time
	// Now is when this state was seen.
	Now time.Time
	// PodIPs and HostIPs are the pod's addresses and the node's.
	PodIPs, HostIPs []string
}

// Of returns the pod's status in state s. Conditions that others set are kept,
// and a condition keeps its transition time while it doesn't change.
func Of(pod *corev1.Pod, s State) corev1.PodStatus {
	status := *pod.Status.DeepCopy()
	status.Phase, status.Reason, status.Message = s.Phase, s.Reason, s.Message
	status.ObservedGeneration = pod.Generation
	setAddresses(&status, s)
	accepted := metav1.NewTime(s.Accepted)
	status.StartTime = &accepted
	status.InitContainerStatuses = containers(pod.Spec.InitContainers, s)
	status.ContainerStatuses = containers(pod.Spec.Containers, s)
	bound(slices.Concat(status.InitContainerStatuses, status.ContainerStatuses))

	c := conditions{pod: pod, status: &status, now: metav1.NewTime(s.Now)}
	c.set(corev1.PodReadyToStartContainers, !over(s.Phase), "", "")
	c.setInitialized(s)
	c.setReady(s)
	return status
}

func over(phase corev1.PodPhase) bool {
	return phase == corev1.PodSucceeded || phase == corev1.PodFailed
}

func setAddresses(status *corev1.PodStatus, s State) {
	status.HostIP, status.HostIPs, status.PodIP, status.PodIPs = "", nil, "", nil
	for _, ip := range s.HostIPs {
		status.HostIPs = append(status.HostIPs, corev1.HostIP{IP: ip})
	}
	for _, ip := range s.PodIPs {
		status.PodIPs = append(status.PodIPs, corev1.PodIP{IP: ip})
	}
	if len(s.HostIPs) > 0 {
		status.HostIP = s.HostIPs[0]
	}
	if len(s.PodIPs) > 0 {
		status.PodIP = s.PodIPs[0]
	}
}

func containers(specs []corev1.Container, s State) []corev1.ContainerStatus {
	var statuses []corev1.ContainerStatus
	for i := range specs {
		spec := &specs[i]
		c, ok := find(s.Containers, spec.Name)
		if !ok && spec.Name == podspec.QueueProxy {
			c = proxy(s.Containers)
		}
		statuses = append(statuses, container(spec, c))
	}
	return statuses
}

func find(containers []podlife.Container, name string) (podlife.Container, bool) {
	i := slices.IndexFunc(containers, func(c podlife.Container) bool { return c.Name == name })
	if i < 0 {
		return podlife.Container{State: podlife.Waiting, Reason: podlife.ReasonCreating}, false
	}
	return containers[i], true
}

// proxy is the state of Knative's sidecar: it runs while a container does, and
// never fails.
func proxy(containers []podlife.Container) podlife.Container {
	i := slices.IndexFunc(containers, func(c podlife.Container) bool { return !c.Init })
	if i < 0 {
		return podlife.Container{State: podlife.Waiting, Reason: podlife.ReasonCreating}
	}
	c := containers[i]
	c.Last, c.Runs, c.ImageID = nil, 1, ""
	if c.Run.ID != "" {
		c.Run.ID = c.Run.ID[:strings.LastIndex(c.Run.ID, "/")] + "/" + podspec.QueueProxy
	}
	if c.State == podlife.Ended {
		c.Run.Exit = podlife.Exit{Reason: podlife.ReasonCompleted}
	}
	if c.State == podlife.Waiting {
		c.Reason, c.Message = podlife.ReasonCreating, ""
	}
	return c
}

func container(spec *corev1.Container, c podlife.Container) corev1.ContainerStatus {
	started := c.State == podlife.Running && c.Started
	status := corev1.ContainerStatus{
		Name:         spec.Name,
		Image:        spec.Image,
		ImageID:      c.ImageID,
		Ready:        c.Ready,
		Started:      &started,
		RestartCount: c.Restarts(),
		ContainerID:  c.Run.ID,
	}
	switch c.State {
	case podlife.Running:
		status.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(c.Run.Started)}
	case podlife.Ended:
		status.State.Terminated = terminated(c.Run)
	default:
		status.State.Waiting = &corev1.ContainerStateWaiting{Reason: c.Reason, Message: c.Message}
	}
	if c.Last != nil {
		status.LastTerminationState.Terminated = terminated(*c.Last)
		if status.ContainerID == "" {
			status.ContainerID = c.Last.ID
		}
	}
	return status
}

// maxMessages is how much of their messages all containers of a pod show together,
// in bytes (kubernetes pkg/kubelet/container/runtime.go).
const maxMessages = 12 << 10

// bound cuts the messages of containers that have ended to each one's part.
func bound(statuses []corev1.ContainerStatus) {
	for _, status := range statuses {
		for _, t := range []*corev1.ContainerStateTerminated{status.State.Terminated, status.LastTerminationState.Terminated} {
			if t != nil {
				t.Message = strings.ToValidUTF8(t.Message[:min(len(t.Message), maxMessages/len(statuses))], "")
			}
		}
	}
}

func terminated(run podlife.Run) *corev1.ContainerStateTerminated {
	return &corev1.ContainerStateTerminated{
		ExitCode:    run.Exit.Code,
		Reason:      run.Exit.Reason,
		Message:     run.Exit.Message,
		StartedAt:   metav1.NewTime(run.Started),
		FinishedAt:  metav1.NewTime(run.Finished),
		ContainerID: run.ID,
	}
}

// Restore returns the containers as the API has them from an earlier process of
// the node.
func Restore(pod *corev1.Pod) []podlife.Container {
	restored := make([]podlife.Container, 0, len(pod.Status.ContainerStatuses))
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		c := podlife.Container{Name: status.Name, Runs: status.RestartCount, State: podlife.Waiting, ImageID: status.ImageID, Ready: status.Ready}
		if t := status.LastTerminationState.Terminated; t != nil {
			last := runOf(t)
			c.Last = &last
			c.Runs = status.RestartCount + 1
		}
		switch {
		case status.State.Running != nil:
			c.State, c.Runs = podlife.Running, status.RestartCount+1
			c.Run = podlife.Run{ID: status.ContainerID, Started: status.State.Running.StartedAt.Time}
		case status.State.Terminated != nil:
			c.State, c.Runs = podlife.Ended, status.RestartCount+1
			c.Run = runOf(status.State.Terminated)
		case status.State.Waiting != nil:
			c.Reason, c.Message = status.State.Waiting.Reason, status.State.Waiting.Message
		}
		restored = append(restored, c)
	}
	return restored
}

func runOf(t *corev1.ContainerStateTerminated) podlife.Run {
	return podlife.Run{
		ID: t.ContainerID, Started: t.StartedAt.Time, Finished: t.FinishedAt.Time,
		Exit: podlife.Exit{Code: t.ExitCode, Reason: t.Reason, Message: t.Message},
	}
}

// conditions sets those that a kubelet owns.
type conditions struct {
	pod    *corev1.Pod
	status *corev1.PodStatus
	now    metav1.Time
}

func (c conditions) set(kind corev1.PodConditionType, is bool, reason, message string) {
	condition := corev1.PodCondition{
		Type:               kind,
		Status:             corev1.ConditionFalse,
		Reason:             reason,
		Message:            message,
		ObservedGeneration: c.pod.Generation,
		LastTransitionTime: c.now,
	}
	if is {
		condition.Status = corev1.ConditionTrue
	}
	all := c.status.Conditions
	i := slices.IndexFunc(all, func(old corev1.PodCondition) bool { return old.Type == kind })
	if i < 0 {
		c.status.Conditions = append(all, condition)
		return
	}
	if all[i].Status == condition.Status {
		condition.LastTransitionTime = all[i].LastTransitionTime
	}
	all[i] = condition
}

const (
	reasonCompleted      = "PodCompleted"
	reasonFailed         = "PodFailed"
	reasonNotReady       = "ContainersNotReady"
	reasonNotInitialized = "ContainersNotInitialized"
	reasonGates          = "ReadinessGatesNotReady"
)

func (c conditions) setInitialized(s State) {
	var incomplete []string
	for _, it := range s.Containers {
		done := it.Ready
		if it.Sidecar {
			done = it.Started || it.Last != nil
		}
		if it.Init && !done {
			incomplete = append(incomplete, it.Name)
		}
	}
	switch {
	case s.Phase == corev1.PodSucceeded:
		c.set(corev1.PodInitialized, true, reasonCompleted, "")
	case len(incomplete) > 0:
		c.set(corev1.PodInitialized, false, reasonNotInitialized, fmt.Sprintf("containers with incomplete status: %s", incomplete))
	default:
		c.set(corev1.PodInitialized, true, "", "")
	}
}

func (c conditions) setReady(s State) {
	reason, message := c.unready(s)
	c.set(corev1.ContainersReady, reason == "", reason, message)
	if reason == "" {
		reason, message = c.gated()
	}
	c.set(corev1.PodReady, reason == "", reason, message)
}

// unready says why the pod's containers are not ready, or nothing.
func (c conditions) unready(s State) (reason, message string) {
	switch s.Phase {
	case corev1.PodSucceeded:
		return reasonCompleted, ""
	case corev1.PodFailed:
		return reasonFailed, ""
	}
	var unready []string
	for _, it := range c.status.ContainerStatuses {
		if !it.Ready {
			unready = append(unready, it.Name)
		}
	}
	for _, it := range s.Containers {
		if it.Sidecar && !it.Ready {
			unready = append(unready, it.Name)
		}
	}
	if len(unready) == 0 {
		return "", ""
	}
	return reasonNotReady, fmt.Sprintf("containers with unready status: %s", unready)
}

// Overruled is whether a condition that gates the pod's readiness has another
// status in after than in before, or the pod is no longer ready.
func Overruled(before, after *corev1.Pod) bool {
	if conditionOf(before, corev1.PodReady) == corev1.ConditionTrue && conditionOf(after, corev1.PodReady) != corev1.ConditionTrue {
		return true
	}
	return slices.ContainsFunc(after.Spec.ReadinessGates, func(g corev1.PodReadinessGate) bool {
		return conditionOf(before, g.ConditionType) != conditionOf(after, g.ConditionType)
	})
}

// conditionOf returns a condition's status, empty without it.
func conditionOf(pod *corev1.Pod, kind corev1.PodConditionType) corev1.ConditionStatus {
	for _, c := range pod.Status.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return ""
}

// gated says which readiness gates are closed.
func (c conditions) gated() (reason, message string) {
	var closed []string
	for _, gate := range c.pod.Spec.ReadinessGates {
		i := slices.IndexFunc(c.status.Conditions, func(it corev1.PodCondition) bool { return it.Type == gate.ConditionType })
		switch {
		case i < 0:
			closed = append(closed, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType))
		case c.status.Conditions[i].Status != corev1.ConditionTrue:
			closed = append(closed, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %s", gate.ConditionType, c.status.Conditions[i].Status))
		}
	}
	if len(closed) == 0 {
		return "", ""
	}
	return reasonGates, strings.Join(closed, ", ")
}
