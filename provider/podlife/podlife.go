// Package podlife decides what becomes of a pod's containers: what state follows
// from a start or an exit, whether and when a container runs again, and which
// phase the pod is in. It is pure: time comes in.
//
// The rules are a kubelet's (kubernetes pkg/kubelet/kuberuntime and
// pkg/kubelet/kubelet_pods.go), so that controllers see what they expect.
package podlife

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// State is where a container is in its life.
type State string

// A container waits, runs, has ended, waits again.
const (
	Waiting State = "Waiting"
	Running State = "Running"
	Ended   State = "Ended"
)

// Reasons of waiting and ended containers, as a kubelet names them.
const (
	ReasonCreating                = "ContainerCreating"
	ReasonInitializing            = "PodInitializing"
	ReasonConfigError             = "CreateContainerConfigError"
	ReasonCreateError             = "CreateContainerError"
	ReasonErrImagePull            = "ErrImagePull"
	ReasonPullBackOff             = "ImagePullBackOff"
	ReasonErrImageNeverPull       = "ErrImageNeverPull"
	ReasonInvalidImageName        = "InvalidImageName"
	ReasonCrashLoop               = "CrashLoopBackOff"
	ReasonStartError              = "StartError"
	ReasonCompleted               = "Completed"
	ReasonError                   = "Error"
	ReasonOOMKilled               = "OOMKilled"
	ReasonStatusUnknown           = "ContainerStatusUnknown"
	CodeStartError          int32 = 128 // as container runtimes report a container that could not be started
	CodeKilled              int32 = 137 // SIGKILL
	CodeTerminated          int32 = 143 // SIGTERM
	CodeTrap                int32 = 134 // SIGABRT, as other engines' commands exit by a trap
)

// Exit is how a run ended.
type Exit struct {
	Code    int32  `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
}

// Run is one run of a container.
type Run struct {
	// ID tells runs apart, "wisp://<pod UID>/<container>/<number>".
	ID      string    `json:"id"`
	Started time.Time `json:"started"`
	// Finished and Exit are set once it has ended.
	Finished time.Time `json:"finished"`
	Exit     Exit      `json:"exit"`
}

// Container is what the node knows of a container. It is a value: each event
// makes a new one.
type Container struct {
	Name string `json:"name"`
	// Init containers run before the others; Sidecar is whether one runs on
	// beside them.
	Init    bool  `json:"init,omitempty"`
	Sidecar bool  `json:"sidecar,omitempty"`
	State   State `json:"state"`
	// Reason and Message say what a waiting container waits for.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	// Run is the present one or that which ended last, unless Waiting. Last is
	// the one before.
	Run  Run  `json:"run"`
	Last *Run `json:"last,omitempty"`
	// Runs counts runs so far, starts that failed included.
	Runs int32 `json:"runs"`
	// Started is whether the startup probe has passed in this run, Ready whether
	// the container takes requests.
	Started bool    `json:"started,omitempty"`
	Ready   bool    `json:"ready,omitempty"`
	ImageID string  `json:"imageID,omitempty"`
	BackOff BackOff `json:"backOff"`
}

// Restarts returns how often the container was started again.
func (c Container) Restarts() int32 { return max(c.Runs-1, 0) }

// Wait is the container waiting for what reason and message say.
func (c Container) Wait(reason, message string) Container {
	c = c.shelve()
	c.State, c.Reason, c.Message = Waiting, reason, message
	return c
}

// Begin is the container after a start.
func (c Container) Begin(id string, now time.Time) Container {
	c = c.shelve()
	c.State, c.Reason, c.Message = Running, "", ""
	c.Run = Run{ID: id, Started: now}
	c.Runs++
	return c
}

// End is the container after its run has ended. One that was never started
// counts as a run too.
func (c Container) End(exit Exit, id string, now time.Time) Container {
	if c.State != Running {
		c = c.Begin(id, now)
	}
	c.State, c.Started, c.Ready = Ended, false, c.Init && !c.Sidecar && exit.Code == 0
	c.Run.Finished, c.Run.Exit = now, exit
	return c
}

// shelve makes a run that has ended the last one.
func (c Container) shelve() Container {
	if c.State == Ended {
		last := c.Run
		c.Last = &last
	}
	c.Run, c.Started, c.Ready = Run{}, false, false
	return c
}

// Recover is the container as the next process of the node finds it: what ran
// has ended, nobody knows how.
func (c Container) Recover(now time.Time) Container {
	if c.State != Running {
		return c
	}
	return c.End(Exit{
		Code: CodeKilled, Reason: ReasonStatusUnknown,
		Message: "the container was ended by a restart of its node",
	}, "", now)
}

// Again is whether a container that has ended runs again under its pod's policy.
func (c Container) Again(policy corev1.RestartPolicy) bool {
	switch {
	case c.Sidecar:
		return true
	case c.Run.Exit.Code == 0:
		return policy == corev1.RestartPolicyAlways && !c.Init
	default:
		return policy != corev1.RestartPolicyNever
	}
}

// The bounds of a kubelet's back-off (kubernetes pkg/kubelet/kubelet.go).
const (
	FirstBackOff = 10 * time.Second
	MaxBackOff   = 5 * time.Minute
)

// BackOff paces a container's restarts. The zero value is a container that has
// not ended yet.
type BackOff struct {
	// Delay precedes the restart after the next one, unless the container has
	// run long by then.
	Delay time.Duration `json:"delay,omitempty"`
	// Updated is when the last restart was due.
	Updated time.Time `json:"updated,omitzero"`
}

// Next returns how long after a run's end the container starts again, and the
// back-off after that: at once, then 10 s, doubled up to 5 min. A container that
// has run for twice the longest delay begins anew.
func (b BackOff) Next(finished time.Time) (time.Duration, BackOff) {
	if b.Delay == 0 || finished.Sub(b.Updated) > 2*MaxBackOff {
		return 0, BackOff{Delay: FirstBackOff, Updated: finished}
	}
	return b.Delay, BackOff{Delay: min(2*b.Delay, MaxBackOff), Updated: finished.Add(b.Delay)}
}

// Phase returns the phase of a pod that has these containers. over is whether
// none of them will run again, whatever the policy says: its pod was deleted or
// has failed.
func Phase(containers []Container, policy corev1.RestartPolicy, over bool) corev1.PodPhase {
	var n counts
	for _, c := range containers {
		n.add(c, policy)
	}
	switch {
	case n.initFailed && !n.active:
		return corev1.PodFailed
	case n.initializing || n.waiting > 0:
		if over && !n.active {
			return corev1.PodFailed
		}
		return corev1.PodPending
	case n.running > 0, n.again > 0 && !over:
		return corev1.PodRunning
	case n.failed == 0 && (over || policy != corev1.RestartPolicyAlways):
		return corev1.PodSucceeded
	case over || policy == corev1.RestartPolicyNever:
		return corev1.PodFailed
	default:
		return corev1.PodRunning // it restarts
	}
}

// counts is what decides a phase.
type counts struct {
	active                   bool // something runs
	initializing             bool
	initFailed               bool // for good
	waiting, running, failed int  // main containers
	again                    int  // of those that have ended, those that wait to run again
}

func (n *counts) add(c Container, policy corev1.RestartPolicy) {
	n.active = n.active || c.State == Running
	exit := c.Run.Exit
	if c.State == Waiting && c.Last != nil {
		exit = c.Last.Exit
	}
	switch {
	case c.Sidecar:
		n.initializing = n.initializing || c.State == Waiting && c.Last == nil
	case c.Init:
		succeeded := c.State == Ended && exit.Code == 0
		n.initFailed = n.initFailed || c.State == Ended && exit.Code != 0 && policy == corev1.RestartPolicyNever
		n.initializing = n.initializing || !succeeded
	case c.State == Running:
		n.running++
	case c.State == Waiting && (c.Last == nil || exit.Reason == ReasonStartError):
		n.waiting++ // has never run
	default:
		if c.State == Waiting {
			n.again++
		}
		if exit.Code != 0 {
			n.failed++
		}
	}
}
