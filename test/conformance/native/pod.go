package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pod is one pod. Its fields don't change, but for api's status, which the
// node's lock guards.
type pod struct {
	node *Node
	api  *corev1.Pod
	end  context.CancelFunc
}

// process is a started pod.
type process struct {
	cmd     *exec.Cmd
	address string
	started metav1.Time
	exited  chan struct{} // closed when it has been waited for
}

// live runs the pod until ctx ends, or its process does. A pod that ends by
// itself stays in the API, failed, for whoever looks why a test has failed.
func (p *pod) live(ctx context.Context) {
	// A child is killed when the thread that forked it ends. Never unlocked, the
	// thread is the pod's own, and ends after its process.
	runtime.LockOSThread()
	pr, err := p.start()
	if err != nil {
		p.node.publish(p, failed("StartError", err.Error()))
		<-ctx.Done()
		p.remove(ctx)
		return
	}
	probe := p.api.Spec.Containers[0].ReadinessProbe
	p.node.publish(p, p.running(pr, probe == nil))
	if probe != nil && awaitProbe(ctx, probe, pr) {
		p.node.publish(p, p.running(pr, true))
	}
	select {
	case <-pr.exited:
		p.node.publish(p, failed("Exited", pr.cmd.ProcessState.String()))
		<-ctx.Done()
	case <-ctx.Done():
		p.node.publish(p, p.running(pr, false))
		pr.terminate(p.grace())
	}
	p.remove(ctx)
}

// start runs the pod's program in a network namespace of its own.
func (p *pod) start() (*process, error) {
	c := p.api.Spec.Containers[0]
	program, err := p.node.program(c.Image)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(p.node.cfg.LogDir, p.api.Name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	pr := &process{cmd: exec.Command(program, c.Args...), started: metav1.Now(), exited: make(chan struct{})}
	pr.cmd.Env = []string{"HOSTNAME=" + p.api.Name}
	for _, e := range c.Env {
		pr.cmd.Env = append(pr.cmd.Env, e.Name+"="+e.Value)
	}
	pr.cmd.Stdout, pr.cmd.Stderr = log, log
	pr.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := pr.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	go func() {
		defer close(pr.exited)
		_ = pr.cmd.Wait() // its state tells
	}()
	address, err := p.node.cfg.Connect(pr.cmd.Process.Pid)
	if err != nil {
		pr.terminate(0)
		return nil, err
	}
	pr.address = address.String()
	return pr, nil
}

// terminate ends the process: SIGTERM, and SIGKILL after grace.
func (pr *process) terminate(grace time.Duration) {
	pr.signal(syscall.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-pr.exited:
		return
	case <-timer.C:
	}
	pr.signal(syscall.SIGKILL)
	<-pr.exited
}

func (pr *process) signal(sig os.Signal) {
	if err := pr.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		panic(fmt.Sprintf("signal a child: %v", err)) // only a wrong signal number is left
	}
}

// grace is how long the process may take to end. When the test is over, nobody
// waits for it.
func (p *pod) grace() time.Duration {
	if p.node.running.Err() != nil {
		return 0
	}
	return time.Duration(*p.api.Spec.TerminationGracePeriodSeconds) * time.Second
}

// remove deletes the object of an ended pod. When the node stops, it stays.
func (p *pod) remove(ctx context.Context) {
	if p.node.running.Err() != nil {
		return
	}
	// What can fail here is a connection to the API server; virtual-kubelet
	// tries again after the grace period.
	_ = p.node.removeFromAPI(context.WithoutCancel(ctx), p.api)
}

func (p *pod) running(pr *process, ready bool) corev1.PodStatus {
	c := p.api.Spec.Containers[0]
	is := corev1.ConditionFalse
	if ready {
		is = corev1.ConditionTrue
	}
	return corev1.PodStatus{
		Phase:     corev1.PodRunning,
		HostIP:    p.node.cfg.Address,
		PodIP:     pr.address,
		PodIPs:    []corev1.PodIP{{IP: pr.address}},
		StartTime: &pr.started,
		Conditions: []corev1.PodCondition{
			{Type: corev1.PodInitialized, Status: corev1.ConditionTrue, LastTransitionTime: pr.started},
			{Type: corev1.ContainersReady, Status: is, LastTransitionTime: metav1.Now()},
			{Type: corev1.PodReady, Status: is, LastTransitionTime: metav1.Now()},
		},
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: c.Name, Image: c.Image, Ready: ready, Started: &ready,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: pr.started}},
		}},
	}
}

func failed(reason, message string) corev1.PodStatus {
	return corev1.PodStatus{Phase: corev1.PodFailed, Reason: reason, Message: message}
}
