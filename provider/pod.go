package provider

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/provider/podstatus"
	"github.com/wisp-serving/wisp/runtime"
	"github.com/wisp-serving/wisp/runtime/sandbox"
)

// A kubelet's back-off for images and containers (kubernetes
// pkg/kubelet/kubelet.go).
const (
	firstBackOff = 10 * time.Second
	maxBackOff   = 5 * time.Minute
)

// removeTimeout bounds the wait for the API server at a pod's end.
const removeTimeout = 10 * time.Second

// errDeleted is the cause that ends a pod's life for good.
var errDeleted = errors.New("the pod was deleted")

// pod is one pod's life on this node.
type pod struct {
	provider *Provider
	name     types.NamespacedName
	uid      types.UID
	accepted time.Time
	log      *zap.SugaredLogger
	// end ends the life: for good if the cause is errDeleted.
	end context.CancelCauseFunc
	// killed ends the requests that still run when the grace period is over.
	killed context.Context
	kill   context.CancelFunc

	// telling keeps the order of what virtual-kubelet is told.
	telling sync.Mutex

	mu       sync.Mutex
	api      *corev1.Pod // never changed in place
	state    podstatus.State
	killAt   time.Time // zero: no grace period runs
	killThen *time.Timer
}

func newPod(p *Provider, api *corev1.Pod, end context.CancelCauseFunc) *pod {
	now := time.Now()
	it := &pod{
		provider: p,
		name:     nameOf(api),
		uid:      api.UID,
		accepted: now,
		log:      p.cfg.Log.With("namespace", api.Namespace, "pod", api.Name),
		end:      end,
		api:      api,
	}
	it.killed, it.kill = context.WithCancel(context.Background())
	it.state = it.complete(podstatus.State{Phase: corev1.PodPending, Reason: podstatus.ReasonCreating})
	return it
}

// function is a sandbox that takes requests as a target of the router.
type function struct {
	*sandbox.Sandbox
	target  types.UID
	imageID string
}

// live runs the pod: pull, start, serve, end. It returns when nothing of the
// pod is left on this node.
func (p *pod) live(ctx context.Context) {
	defer p.release()
	p.provider.publish(p)
	spec, err := podspec.Parse(p.object())
	if err != nil {
		p.wait(ctx, podstatus.ReasonConfigError, err, false)
	} else if f := p.start(ctx, spec); f != nil {
		p.serve(ctx, spec, f)
	}
	if !errors.Is(context.Cause(ctx), errDeleted) {
		return // The node stops: the pod lives on in the API, for its next start.
	}
	p.enter(podstatus.State{Phase: corev1.PodSucceeded})
	remove, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	if err := p.provider.removeFromAPI(remove, p.name, p.uid); err != nil {
		p.log.Warnw("virtual-kubelet removes the pod at the end of its grace period", "error", err)
	}
}

// start returns the running function, adopted or new, or nil once ctx has ended
// without one.
func (p *pod) start(ctx context.Context, spec podspec.Spec) *function {
	if f := p.provider.early.adopt(ctx, spec); f != nil {
		p.event(corev1.EventTypeNormal, "Started", "Adopted the function that was started ahead of this pod")
		return f
	}
	delay := firstBackOff
	for {
		f, err := p.attempt(ctx, spec)
		switch {
		case err == nil:
			return f
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, runtime.ErrUnusable):
			p.event(corev1.EventTypeWarning, "Failed", err.Error())
			p.wait(ctx, podstatus.ReasonCreateError, err, true)
			return nil
		}
		if !p.backOff(ctx, err, delay) {
			return nil
		}
		delay = min(2*delay, maxBackOff)
	}
}

// attempt pulls and starts once.
func (p *pod) attempt(ctx context.Context, spec podspec.Spec) (*function, error) {
	began := time.Now()
	p.event(corev1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", spec.Image))
	image, err := p.provider.cfg.Runtime.Pull(ctx, spec.Image)
	if err != nil {
		return nil, err
	}
	p.event(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %s", spec.Image, time.Since(began).Round(time.Millisecond)))

	id := p.name.String() + "/" + string(p.uid)
	sb, err := p.provider.cfg.Runtime.Start(ctx, sandboxSpec(id, image, spec, guestLog{p.log}))
	if err != nil {
		return nil, err
	}
	p.event(corev1.EventTypeNormal, "Started", "Started container "+spec.Container)
	p.provider.early.admit(template{spec: spec, image: image})
	f := &function{Sandbox: sb, target: p.uid, imageID: image.Reference}
	p.provider.cfg.Router.Add(spec.Revision, f.target, spec.Concurrency, sb)
	return f, nil
}

// serve reports the pod ready and, when ctx ends, drains it.
func (p *pod) serve(ctx context.Context, spec podspec.Spec, f *function) {
	now := time.Now()
	p.enter(podstatus.State{Phase: corev1.PodRunning, Started: now, ImageID: f.imageID})
	p.log.Infow("pod started", "image", f.imageID, "took", now.Sub(p.accepted))

	<-ctx.Done()
	drained := p.provider.cfg.Router.Remove(spec.Revision, f.target)
	if errors.Is(context.Cause(ctx), errDeleted) {
		p.event(corev1.EventTypeNormal, "Killing", "Stopping container "+spec.Container)
	} else {
		p.killAfter(p.provider.cfg.Node.DrainTimeout.Duration)
	}
	closeSandbox(p.killed, drained, f.Sandbox, p.log)
}

// backOff reports why the last attempt failed and waits before the next. It
// returns false if ctx ended.
func (p *pod) backOff(ctx context.Context, err error, delay time.Duration) bool {
	reason, later := podstatus.ReasonCreateError, podstatus.ReasonCreateError
	if errors.Is(err, runtime.ErrImagePull) {
		reason, later = podstatus.ReasonErrImagePull, podstatus.ReasonPullBackOff
	}
	p.event(corev1.EventTypeWarning, "Failed", err.Error())
	p.enter(podstatus.State{Phase: corev1.PodPending, Reason: reason, Message: err.Error()})
	p.event(corev1.EventTypeNormal, "BackOff", fmt.Sprintf("Trying again in %s", delay))
	p.enter(podstatus.State{Phase: corev1.PodPending, Reason: later, Message: err.Error()})
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// wait reports what the pod will wait for until it is deleted. It is never
// Failed: its ReplicaSet would replace it at once, and again.
func (p *pod) wait(ctx context.Context, reason string, err error, neverStarts bool) {
	p.enter(podstatus.State{Phase: corev1.PodPending, Reason: reason, Message: err.Error(), NeverStarts: neverStarts})
	p.log.Warnw("pod cannot run", "reason", reason, "error", err)
	<-ctx.Done()
}

// enter sets the state and publishes it.
func (p *pod) enter(s podstatus.State) {
	p.mu.Lock()
	if s.Phase == corev1.PodSucceeded {
		s.Started, s.ImageID = p.state.Started, p.state.ImageID
	}
	p.state = p.complete(s)
	p.mu.Unlock()
	p.provider.publish(p)
}

// complete adds what all states of the pod share.
func (p *pod) complete(s podstatus.State) podstatus.State {
	s.Since = time.Now()
	s.Accepted = p.accepted
	s.NodeIP = p.provider.cfg.Node.Address
	return s
}

// object returns the pod with its present status. The caller owns it.
func (p *pod) object() *corev1.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	api := p.api.DeepCopy()
	// virtual-kubelet hands on no change that is of the status alone, such as a
	// condition that another has set.
	if current, err := p.provider.lister.Pods(p.name.Namespace).Get(p.name.Name); err == nil && current.UID == p.uid {
		api.Status = current.Status
	}
	api.Status = podstatus.Of(api, p.state)
	return api
}

func (p *pod) update(api *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.api = api
}

// delete ends the life for good; requests that run may take grace. Called
// again, the earlier end holds.
func (p *pod) delete(grace time.Duration) {
	p.killAfter(grace)
	p.end(errDeleted)
}

func (p *pod) killAfter(grace time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := time.Now().Add(grace)
	if !p.killAt.IsZero() && !at.Before(p.killAt) {
		return
	}
	if p.killThen != nil {
		p.killThen.Stop()
	}
	p.killAt, p.killThen = at, time.AfterFunc(grace, p.kill)
}

// release gives back what the life held.
func (p *pod) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.killThen != nil {
		p.killThen.Stop()
	}
	p.kill()
	p.end(nil)
}

func (p *pod) event(kind, reason, message string) {
	p.provider.recorder.Event(p.object(), kind, reason, message)
}
