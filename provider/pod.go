package provider

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/wisp-serving/wisp/provider/podlife"
	"github.com/wisp-serving/wisp/provider/podlog"
	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/provider/podstatus"
	"github.com/wisp-serving/wisp/provider/volume"
)

// removeTimeout bounds the wait for the API server at a pod's end.
const removeTimeout = 10 * time.Second

var (
	// errDeleted is the cause that ends a pod's life for good.
	errDeleted = errors.New("the pod was deleted")
	// errDeadline is the cause that ends its containers when the pod has been
	// active for as long as it may.
	errDeadline = errors.New("the pod was active on the node longer than the specified deadline")
	// errDone is the cause that ends sidecars when the other containers have ended.
	errDone = errors.New("the pod's other containers have ended")
)

// pod is one pod's life on this node.
type pod struct {
	provider *Provider
	name     types.NamespacedName
	uid      types.UID
	log      *zap.SugaredLogger
	// end ends the life: for good if the cause is errDeleted.
	end context.CancelCauseFunc
	// killed ends what still runs when the grace period is over.
	killed context.Context
	kill   context.CancelFunc

	// telling keeps the order of what virtual-kubelet is told; told is closed when
	// it was told something.
	telling  sync.Mutex
	told     chan struct{}
	toldOnce sync.Once

	mu         sync.Mutex
	api        *corev1.Pod // never changed in place
	address    netip.Addr  // the pod's own while it has one
	ips        []string    // those that it has or had last
	accepted   time.Time
	containers []podlife.Container // init containers first
	running    map[string]*function
	followers  map[string]follower // by container
	logs       map[string]*podlog.Log
	volumes    *volume.Set // nil until they are made
	// fail ends the containers; nil while there are none to end.
	fail context.CancelCauseFunc
	// failed is errDeadline once it holds.
	failed   error
	deadline *time.Timer
	ending   bool // nothing runs again
	deleted  bool
	killAt   time.Time // zero: no grace period runs
	killThen *time.Timer
}

func newPod(p *Provider, api *corev1.Pod, end context.CancelCauseFunc) *pod {
	it := &pod{
		provider: p,
		name:     nameOf(api),
		uid:      api.UID,
		accepted: time.Now(),
		log:      p.cfg.Log.With("namespace", api.Namespace, "pod", api.Name),
		end:      end,
		told:     make(chan struct{}),
		api:      api,
		running:  make(map[string]*function),
		logs:     make(map[string]*podlog.Log),

		followers: make(map[string]follower),
	}
	if start := api.Status.StartTime; start != nil {
		it.accepted = start.Time // by an earlier process of this node
	}
	it.killed, it.kill = context.WithCancel(context.Background())
	it.takeAddress(api.Status.PodIP)
	it.containers = p.recall(api)
	return it
}

// live runs the pod to its end. It returns when nothing of the pod is left on
// this node.
func (p *pod) live(ctx context.Context) {
	defer p.release()
	p.provider.lives.Go(func() { p.announce(ctx) })
	p.work(ctx)
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), errDeleted) {
		return // The node stops: the pod lives on in the API, for its next start.
	}
	p.provider.discard(p.uid)
	remove, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	if err := p.provider.bury(remove, p); err != nil {
		p.log.Warnw("virtual-kubelet removes the pod at the end of its grace period", "error", err)
		p.provider.tell(p)
	}
}

// gone is whether the pod was deleted and nothing of it runs any more.
func (p *pod) gone() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.deleted && !p.runs()
}

// runs is whether a container runs; mu is held.
func (p *pod) runs() bool {
	return slices.ContainsFunc(p.containers, func(c podlife.Container) bool { return c.State == podlife.Running })
}

// quickStart is how long a pod may take to start without a status in between. Most
// run by then, and one status says all.
const quickStart = 100 * time.Millisecond

// announce says that the pod was taken if it has nothing else to say soon.
func (p *pod) announce(ctx context.Context) {
	timer := time.NewTimer(quickStart)
	defer timer.Stop()
	select {
	case <-timer.C:
		p.provider.publish(p)
	case <-p.told:
	case <-ctx.Done():
	}
}

// work runs the pod's containers until none of them runs again, or ctx ends.
func (p *pod) work(ctx context.Context) {
	spec, err := podspec.Parse(p.object())
	if err != nil {
		p.refuse(ctx, err)
		return
	}
	if err := p.awaitAddress(ctx); err != nil {
		return
	}
	defer p.giveAddress()
	work, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	p.mu.Lock()
	p.fail = fail
	p.limit()
	p.mu.Unlock()
	stopping := p.stopping(work)
	defer context.AfterFunc(work, stopping)()

	if p.mount(work, spec) {
		p.runContainers(work, spec)
	}
	if work.Err() != nil {
		stopping() // the other call may come after all has ended
	}
	p.conclude(ctx)
}

// stopping returns what marks the pod as one of which nothing runs again, if it
// is not just the node that stops.
func (p *pod) stopping(work context.Context) func() {
	return func() { p.ends(context.Cause(work)) }
}

// ends marks the pod as ended by a cause, unless it is just the node that stops.
func (p *pod) ends(cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ending = p.ending || errors.Is(cause, errDeleted) || errors.Is(cause, errDeadline)
	if errors.Is(cause, errDeadline) {
		p.failed = errDeadline
	}
}

// runContainers runs the init containers in their order, then the others at
// once, and returns when all have ended.
func (p *pod) runContainers(ctx context.Context, spec podspec.Spec) {
	var sidecars sync.WaitGroup
	beside, endSidecars := context.WithCancelCause(ctx)
	defer sidecars.Wait()
	defer endSidecars(errDone)
	for _, c := range spec.Init {
		it := newContainer(p, spec, c)
		if !c.Sidecar() {
			if !it.live(ctx) {
				return
			}
			continue
		}
		sidecars.Go(func() { it.live(beside) })
		select {
		case <-it.started:
		case <-ctx.Done():
			return
		}
	}
	p.initialized()
	var mains sync.WaitGroup
	for i, c := range spec.Containers {
		it := newContainer(p, spec, c)
		it.serves = spec.IsRevision() && i == spec.Server()
		mains.Go(func() { it.live(ctx) })
	}
	mains.Wait()
}

// initialized tells the main containers' statuses that they are next.
func (p *pod) initialized() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, c := range p.containers {
		if !c.Init && c.Reason == podlife.ReasonInitializing {
			p.containers[i].Reason = podlife.ReasonCreating
		}
	}
}

// conclude reports the pod's end if it is over, or its containers' end if the
// pod was deleted.
func (p *pod) conclude(ctx context.Context) {
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), errDeleted) {
		return
	}
	p.provider.publish(p)
}

// refuse reports what keeps the pod from running until it is deleted. It is
// never Failed: its ReplicaSet would replace it at once, and again.
func (p *pod) refuse(ctx context.Context, err error) {
	p.mu.Lock()
	for i, c := range p.containers {
		p.containers[i] = c.Wait(podlife.ReasonConfigError, err.Error())
	}
	p.mu.Unlock()
	p.event(corev1.EventTypeWarning, "", "Failed", err.Error())
	p.log.Warnw("pod cannot run", "error", err)
	p.provider.publish(p)
	<-ctx.Done()
}

// limit starts or restarts the clock of the pod's active deadline. mu is held.
func (p *pod) limit() {
	if p.deadline != nil {
		p.deadline.Stop()
	}
	seconds := p.api.Spec.ActiveDeadlineSeconds
	if seconds == nil || p.fail == nil {
		return
	}
	fail := p.fail
	left := time.Until(p.accepted.Add(time.Duration(*seconds) * time.Second))
	p.deadline = time.AfterFunc(left, func() {
		p.event(corev1.EventTypeNormal, "", "DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
		p.killAfter(podspec.Grace(&p.current().Spec))
		fail(errDeadline)
	})
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
	api.Status = podstatus.Of(api, p.state())
	return api
}

// state returns the pod's present state; mu is held.
func (p *pod) state() podstatus.State {
	s := podstatus.State{
		Containers: p.containers,
		Accepted:   p.accepted,
		Now:        time.Now(),
		PodIPs:     p.ips,
		HostIPs:    p.provider.addresses(),
	}
	s.Phase = podlife.Phase(p.containers, p.api.Spec.RestartPolicy, p.ending)
	if p.failed != nil && !p.runs() {
		s.Phase, s.Reason, s.Message = corev1.PodFailed, "DeadlineExceeded", "Pod was active on the node longer than the specified deadline"
	}
	return s
}

// functions returns what runs.
func (p *pod) functions() []*function {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.running))
}

// current returns the pod as the API had it last, which nobody changes.
func (p *pod) current() *corev1.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.api
}

func (p *pod) update(api *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.api = api
	p.limit()
	p.patch()
}

// delete ends the life for good; what runs may take grace. Called again, the
// earlier end holds.
func (p *pod) delete(grace time.Duration) {
	p.mu.Lock()
	p.ending, p.deleted = true, true
	p.mu.Unlock()
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
	for _, timer := range []*time.Timer{p.killThen, p.deadline} {
		if timer != nil {
			timer.Stop()
		}
	}
	p.kill()
	p.end(nil)
	p.returnAddress()
}

// event records one of the pod, or of one of its containers if path, as
// "spec.containers{name}", is not empty.
func (p *pod) event(kind, path, reason, message string) {
	ref := &corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod",
		Namespace: p.name.Namespace, Name: p.name.Name, UID: p.uid,
		FieldPath: path,
	}
	p.provider.recorder.Event(ref, kind, reason, message)
}

// String names the pod as a kubelet's messages do.
func (p *pod) String() string { return fmt.Sprintf("%s_%s(%s)", p.name.Name, p.name.Namespace, p.uid) }
