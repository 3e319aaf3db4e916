package provider

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/wisp-serving/wisp/provider/pause"
	"github.com/wisp-serving/wisp/provider/podlife"
	"github.com/wisp-serving/wisp/provider/podlog"
	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/provider/queueproxy"
	"github.com/wisp-serving/wisp/provider/volume"
	"github.com/wisp-serving/wisp/runtime"
	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/runtime/measure"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/sandbox"
)

// container is one container's life, on a goroutine of its own.
type container struct {
	pod  *pod
	pods podspec.Spec
	spec podspec.Container
	// present is spec with the image that it has now; see follow.
	present podspec.Container
	log     *zap.SugaredLogger
	// serves is whether the router sends it its revision's requests.
	serves bool
	// started is closed when the container has started once.
	started   chan struct{}
	startOnce sync.Once
	lastOOM   atomic.Int64 // when outOfMemory last told of one
}

func newContainer(p *pod, pods podspec.Spec, spec podspec.Container) *container {
	return &container{
		pod: p, pods: pods, spec: spec,
		log:     p.log.With("container", spec.Name),
		started: make(chan struct{}),
	}
}

// function is a sandbox that runs, and its place in the router if it has one.
type function struct {
	*sandbox.Sandbox
	target  types.UID
	imageID string
	// requests is whether each request gets an instance of its own: then the
	// container runs as long as it is let.
	requests bool
	// logs carry what a function wrote ahead of its Pod, and ahead is its run, which
	// was begun then; both are nil for others.
	logs  *relay
	ahead *aheadRun
	// volumes are what it was started with ahead of its Pod; nil without any.
	volumes *volume.Set
	log     *podlog.Writer
	// message is what the run leaves behind; nil for what runs without such a file.
	message *message
	// front answers a revision's requests; nil without one. routed is whether the
	// router sends it any: one goroutine at a time says so.
	front      *queueproxy.Proxy
	routed     bool
	requestLog *podlog.Writer // nil without one
	// ports are what listens for it at the pod's own address, and podMetrics answers
	// scrapes there; nil without one.
	ports      []port
	podMetrics http.Handler
}

// port is what listens at a pod's own address.
type port interface {
	// Close takes no more connections, and lets those that there are end until ctx
	// does.
	Close(ctx context.Context)
}

// used returns the CPU time that the function has taken so far and the memory
// that it holds.
func (f *function) used() (cpu time.Duration, memory int64) {
	u := f.Usage()
	return u.CPU, u.Memory
}

// errUnhealthy is the cause that ends a run whose liveness probe has failed.
var errUnhealthy = errors.New("the liveness probe failed")

// live runs the container again and again, as its policy has it, until it has
// ended for good or ctx ends. It returns whether it has succeeded.
func (c *container) live(ctx context.Context) bool {
	ran := c.state().State == podlife.Ended // with an earlier process of the node
	for ctx.Err() == nil {
		present, leave := c.follow(ctx)
		if !ran {
			c.once(ctx, present)
		}
		ran = false
		over := c.rest(present)
		leave()
		if over {
			return c.state().Run.Exit.Code == 0
		}
	}
	return false
}

// rest waits until the container may run again. It returns whether it has ended
// for good instead.
func (c *container) rest(ctx context.Context) (over bool) {
	if state := c.state(); state.State == podlife.Ended {
		if !state.Again(c.pods.Restart) {
			return true
		}
		c.pause(ctx, state)
	}
	if isPatched(ctx) { // another image is another container: it has never failed
		c.set(func(s podlife.Container) podlife.Container {
			s.BackOff = podlife.BackOff{}
			return s
		})
	}
	return false
}

// pause waits out the back-off of a container that has ended, at most until ctx
// ends.
func (c *container) pause(ctx context.Context, state podlife.Container) {
	delay, backOff := state.BackOff.Next(state.Run.Finished)
	state.BackOff = backOff
	if delay == 0 {
		c.set(func(podlife.Container) podlife.Container { return state })
		return
	}
	message := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", delay, c.spec.Name, c.pod)
	c.set(func(podlife.Container) podlife.Container { return state.Wait(podlife.ReasonCrashLoop, message) })
	c.event(corev1.EventTypeWarning, "BackOff", fmt.Sprintf("Back-off restarting failed container %s in pod %s", c.spec.Name, c.pod))
	pause.For(ctx, time.Until(state.Run.Finished.Add(delay)))
}

// once runs the container once, with its present image, unless that context ends
// before.
func (c *container) once(ctx, present context.Context) {
	f := c.adopt(present)
	if f == nil {
		if f = c.start(present); f == nil {
			return
		}
	}
	if c.initializes() {
		present = ctx // what it has begun it may end, as with a kubelet
	}
	c.run(ctx, present, f)
}

// initializes is whether it is an init container that the others wait for.
func (c *container) initializes() bool {
	state := c.state()
	return state.Init && !state.Sidecar
}

// adopt takes over the function that was started ahead of the pod, if it was.
func (c *container) adopt(ctx context.Context) *function {
	if !c.serves || c.state().Runs > 0 {
		return nil
	}
	log, err := c.beginLog()
	if err != nil {
		return nil // start will tell
	}
	f := c.pod.provider.early.adopt(ctx, c.pods, log.Stream("stdout"), log.Stream("stderr"))
	if f == nil {
		log.Close()
		return nil
	}
	f.log, f.routed = log, true
	if err := c.setFront(f); err != nil { // a request log that can't be written
		c.event(corev1.EventTypeWarning, "Failed", "Error: "+err.Error())
	}
	c.event(corev1.EventTypeNormal, "Started", "Adopted the function that was started ahead of this pod")
	if err := c.expose(f); err != nil { // its requests come by the node's own address too
		c.event(corev1.EventTypeWarning, "Failed", "Error: "+err.Error())
	}
	return f
}

// beginLog begins the log of the next run.
func (c *container) beginLog() (*podlog.Writer, error) {
	return c.pod.provider.logOf(c.pod.uid, c.spec.Name).Begin(int(c.state().Runs))
}

// start tries until a sandbox stands. It returns nil once ctx has ended without
// one, or when the container has ended because it can't be started.
func (c *container) start(ctx context.Context) *function {
	delay := podlife.FirstBackOff
	for {
		f, err := c.attempt(ctx)
		switch {
		case err == nil:
			return f
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, runtime.ErrUnusable):
			c.event(corev1.EventTypeWarning, "Failed", "Error: "+err.Error())
			c.cannotStart(ctx, err)
			return nil
		}
		if !c.backOff(ctx, err, delay) {
			return nil
		}
		delay = min(2*delay, podlife.MaxBackOff)
	}
}

// configError is an environment that can't be made now.
type configError struct{ error }

func (e configError) Unwrap() error { return e.error }

// attempt resolves, pulls and starts once.
func (c *container) attempt(ctx context.Context) (*function, error) {
	api := c.pod.current()
	resolved, err := c.spec.Resolve(ctx, api, c.pod.facts(), c.pod.provider.source)
	if err != nil {
		return nil, configError{err}
	}
	if len(resolved.Skipped) > 0 {
		c.event(corev1.EventTypeWarning, "InvalidEnvironmentVariableNames",
			fmt.Sprintf("Keys [%s] of envFrom were skipped since they are no names of variables", strings.Join(resolved.Skipped, ", ")))
	}
	image, err := c.pull(ctx, api, resolved)
	if err != nil {
		return nil, err
	}
	spec := sandboxSpec(c.id(c.state().Runs), image, c.pods, c.spec, resolved)
	spec.Place = measure.Place{Namespace: c.pod.name.Namespace, Revision: c.pods.Revision.Name}
	if err := c.mount(&spec, resolved); err != nil {
		return nil, err
	}
	var message *message
	if c.spec.TerminationMessagePath != "" {
		if message, err = newMessage(); err != nil {
			return nil, err
		}
		spec.Files = append(spec.Files, message.at(c.spec.TerminationMessagePath))
	}
	writer, err := c.beginLog()
	if err != nil {
		return nil, err
	}
	spec.Stdout, spec.Stderr = writer.Stream("stdout"), writer.Stream("stderr")
	spec.Env = append([]string{"HOSTNAME=" + cmp.Or(api.Spec.Hostname, api.Name)}, spec.Env...)
	spec.OnOOM = c.outOfMemory
	sb, err := c.pod.provider.cfg.Runtime.Start(ctx, spec)
	if err != nil {
		writer.Close()
		return nil, err
	}
	f := &function{
		Sandbox: sb, target: c.pod.uid, imageID: image.Reference,
		requests: answersRequests(spec.ABI), log: writer, message: message,
	}
	if c.serves {
		if err := c.setFront(f); err != nil {
			return nil, errors.Join(err, c.discard(ctx, f))
		}
	}
	if err := c.expose(f); err != nil {
		return nil, errors.Join(err, c.discard(ctx, f))
	}
	c.event(corev1.EventTypeNormal, "Created", "Created container: "+c.spec.Name)
	if c.serves && c.present.Image == c.spec.Image { // another is not the revision's
		c.pod.provider.early.admit(api, image)
	}
	return f, nil
}

// discard closes a function that was never run.
func (c *container) discard(ctx context.Context, f *function) error {
	f.log.Close()
	return f.Close(ctx)
}

// setFront puts Knative's proxy before a revision's function, or makes the one of a
// function that has run ahead of its pod the pod's.
func (c *container) setFront(f *function) error {
	var log io.Writer
	if c.pods.Proxy.RequestLog != "" {
		w, err := c.pod.provider.logOf(c.pod.uid, podspec.QueueProxy).Begin(int(c.state().Runs))
		if err != nil {
			return err
		}
		f.requestLog, log = w, w.Stream("stdout")
	}
	cfg := frontConfig(c.pods, f, c.pod.facts().PodIPs, c.pod.provider.cfg.Metrics)
	cfg.Pod, cfg.RequestLog = c.pod.name.Name, log
	if !f.requests {
		cfg.Ready = (&watcher{container: c, f: f}).asked
	}
	if measure := c.pod.provider.cfg.PodMetrics; measure != nil && c.address().IsValid() {
		metrics, scrapes, err := measure()
		if err != nil {
			return err
		}
		cfg.Metrics, f.podMetrics = append(cfg.Metrics, metrics), scrapes
	}
	if f.front != nil {
		return f.front.Become(cfg)
	}
	var err error
	f.front, err = queueproxy.New(cfg)
	return err
}

func (c *container) pull(ctx context.Context, api *corev1.Pod, resolved podspec.Resolved) (oci.Image, error) {
	began := time.Now()
	request := imageRequest(c.present, resolved, c.pullSecrets(ctx, api))
	if request.Policy == oci.PullAlways {
		c.event(corev1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", c.present.Image))
	}
	image, err := c.pod.provider.cfg.Runtime.Pull(ctx, request)
	if err != nil {
		return oci.Image{}, err
	}
	if image.Cached && request.Policy != oci.PullAlways {
		c.event(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Container image %q already present on machine", c.present.Image))
		return image, nil
	}
	took := time.Since(began).Round(time.Millisecond)
	c.event(corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %s (%s including waiting). Image size: %d bytes.", c.present.Image, took, took, image.Size))
	return image, nil
}

// pullSecrets reads the pod's registry credentials, among which admission has put
// its ServiceAccount's. One that can't be had may not be needed: the pull tells.
func (c *container) pullSecrets(ctx context.Context, api *corev1.Pod) [][]byte {
	var secrets [][]byte
	for _, ref := range api.Spec.ImagePullSecrets {
		secret, err := c.pod.provider.source.Secret(ctx, api.Namespace, ref.Name)
		if err != nil {
			c.event(corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret", fmt.Sprintf("Unable to retrieve image pull secret %s, pulling without it: %s", ref.Name, err))
			continue
		}
		for _, key := range []string{corev1.DockerConfigJsonKey, corev1.DockerConfigKey} {
			if content := secret.Data[key]; len(content) > 0 {
				secrets = append(secrets, content)
			}
		}
	}
	return secrets
}

// backOff reports why the last attempt failed and waits before the next. It
// returns false if ctx ended.
func (c *container) backOff(ctx context.Context, err error, delay time.Duration) bool {
	reason, later := podlife.ReasonCreateError, podlife.ReasonCreateError
	message := err.Error()
	switch {
	case errors.Is(err, runtime.ErrImagePull):
		reason, later = podlife.ReasonErrImagePull, podlife.ReasonPullBackOff
		if errors.Is(err, runtime.ErrImageNeverPull) {
			reason, later = podlife.ReasonErrImageNeverPull, podlife.ReasonErrImageNeverPull
		}
		c.event(corev1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %s", c.present.Image, message))
	case errors.As(err, &configError{}):
		reason, later = podlife.ReasonConfigError, podlife.ReasonConfigError
	}
	c.event(corev1.EventTypeWarning, "Failed", "Error: "+reason+": "+message)
	c.set(func(s podlife.Container) podlife.Container { return s.Wait(reason, message) })
	if later != reason {
		c.event(corev1.EventTypeNormal, "BackOff", fmt.Sprintf("Back-off pulling image %q: trying again in %s", c.present.Image, delay))
		c.set(func(s podlife.Container) podlife.Container { return s.Wait(later, message) })
	}
	return pause.For(ctx, delay)
}

// cannotStart reports a container that no attempt can start. Where the pod would
// try for ever it waits, and shows the one failure: from that, Knative fails its
// Revision at once.
func (c *container) cannotStart(ctx context.Context, err error) {
	exit := podlife.Exit{Code: podlife.CodeStartError, Reason: podlife.ReasonStartError, Message: err.Error()}
	waits := c.pods.Restart == corev1.RestartPolicyAlways || c.spec.Sidecar()
	reason := podlife.ReasonCreateError
	if errors.Is(err, runtime.ErrImageName) {
		reason = podlife.ReasonInvalidImageName
	}
	c.set(func(s podlife.Container) podlife.Container {
		s = s.End(exit, c.id(s.Runs), time.Now())
		if waits {
			s = s.Wait(reason, err.Error())
		}
		return s
	})
	c.log.Warnw("container cannot start", "error", err)
	if waits {
		<-ctx.Done()
	}
}

// run runs a sandbox to its end and closes it. When the context of its image ends
// first, it ends the sandbox.
func (c *container) run(ctx, present context.Context, f *function) {
	now := time.Now()
	unasked := f.requests || c.unasked()
	if unasked {
		c.route(f, true)
	}
	// Where there is nobody to ask, one status says all.
	c.set(func(s podlife.Container) podlife.Container {
		s = s.Begin(c.id(s.Runs), now)
		s.ImageID, s.Started, s.Ready = f.imageID, unasked, unasked
		return s
	})
	c.event(corev1.EventTypeNormal, "Started", "Started container "+c.spec.Name)
	c.log.Infow("container started", "image", f.imageID, "after", now.Sub(c.pod.accepted))

	running, kill := context.WithCancelCause(context.Background())
	defer kill(nil)
	ended := make(chan error, 1)
	go func() { ended <- f.Run(running) }()
	c.hold(f)
	watcher := c.watch(f, kill)
	var err, cause error
	select {
	case err = <-ended:
		watcher.stop()
		c.close(f)
		cause = context.Cause(ctx)
	case <-present.Done():
		watcher.stop()
		cause = context.Cause(present)
		c.stop(cause, f, watcher)
		err = <-ended
	}
	c.hold(nil)
	f.log.Close()
	if f.requestLog != nil {
		f.requestLog.Close()
	}
	c.ended(cause, f, err)
}

// hold makes f what runs in the container, nil for nothing.
func (c *container) hold(f *function) {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	if f == nil {
		delete(c.pod.running, c.spec.Name)
		return
	}
	c.pod.running[c.spec.Name] = f
}

// close frees a sandbox whose run has ended.
func (c *container) close(f *function) {
	drained := c.remove(f)
	gone, cancel := context.WithCancel(context.Background())
	cancel() // nobody is left to answer
	f.conceal(gone)
	closeSandbox(c.pod.killed, drained, f.Sandbox, c.log)
}

// stop ends a running sandbox for the given cause: its requests may take what is
// left of the grace period, and a command is ended at once, as a process is by a
// signal that it doesn't handle.
func (c *container) stop(cause error, f *function, w *watcher) {
	drained := c.remove(f)
	killed := c.pod.killed
	switch {
	case errors.Is(cause, errPatched):
		c.event(corev1.EventTypeNormal, "Killing", fmt.Sprintf("Container %s definition changed, will be restarted", c.spec.Name))
		var cancel context.CancelFunc
		killed, cancel = context.WithTimeout(killed, c.pods.Grace)
		defer cancel()
	case isEnd(cause):
		c.event(corev1.EventTypeNormal, "Killing", "Stopping container "+c.spec.Name)
	default:
		c.pod.killAfter(c.pod.provider.cfg.Node.DrainTimeout.Duration)
	}
	w.preStop(killed)
	f.conceal(killed)
	closeSandbox(killed, drained, f.Sandbox, c.log)
}

// isEnd is whether the cause ends a container for good, and not with the node
// alone.
func isEnd(cause error) bool {
	return errors.Is(cause, errDeleted) || errors.Is(cause, errDeadline) || errors.Is(cause, errDone)
}

// remove takes the function out of the router. The channel is closed when no
// request is left that has come by it.
func (c *container) remove(f *function) <-chan struct{} {
	if f.front != nil {
		f.front.Drain()
	}
	if f.routed {
		f.routed = false
		return c.pod.provider.cfg.Router.Remove(c.pods.Revision, f.target)
	}
	none := make(chan struct{})
	close(none)
	return none
}

// ended records how a run has ended, for the given cause or by itself, unless just
// the node stops: its next start will find that.
func (c *container) ended(cause error, f *function, err error) {
	c.pod.ends(cause) // before the container's end is told: both may be the pod's
	patched := errors.Is(cause, errPatched)
	if cause != nil && !patched && !isEnd(cause) {
		return
	}
	exit := exitOf(err, f.requests)
	if exit.Reason == podlife.ReasonOOMKilled {
		c.event(corev1.EventTypeWarning, podlife.ReasonOOMKilled, exit.Message)
	}
	exit = c.explain(f, exit)
	c.set(func(s podlife.Container) podlife.Container {
		s = s.End(exit, s.Run.ID, time.Now())
		if patched { // whatever its policy, it runs again
			s = s.Wait(podlife.ReasonCreating, "")
		}
		return s
	})
	c.pod.provider.remember(c.pod)
	c.log.Infow("container ended", "code", exit.Code, "reason", exit.Reason)
}

// oomEvents is how often at most a container's requests say that they are out of
// memory.
const oomEvents = 10 * time.Second

// outOfMemory tells of a request that failed for want of memory. Its container
// goes on: each request has an instance of its own.
func (c *container) outOfMemory(oom *guest.OOMError) {
	now, last := time.Now(), c.lastOOM.Load()
	if now.UnixNano()-last < int64(oomEvents) || !c.lastOOM.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	c.event(corev1.EventTypeWarning, podlife.ReasonOOMKilled, "A request's instance ended: "+cut(oom.Error()))
}

// exitOf says how a run ended, as a container's status does. requests is whether
// the run is one that only its end ends.
func exitOf(err error, requests bool) podlife.Exit {
	exit, trap, oom := new(guest.ExitError), new(guest.TrapError), new(guest.OOMError)
	switch {
	case errors.As(err, &oom): // which wraps how the guest took it
		return podlife.Exit{Code: podlife.CodeKilled, Reason: podlife.ReasonOOMKilled, Message: cut(oom.Error())}
	case err == nil, requests && errors.Is(err, guest.ErrClosed):
		return podlife.Exit{Reason: podlife.ReasonCompleted}
	case errors.As(err, &exit):
		return podlife.Exit{Code: int32(exit.Status & 0xff), Reason: podlife.ReasonError} // as wait(2) tells it
	case errors.As(err, &trap):
		return podlife.Exit{Code: podlife.CodeTrap, Reason: podlife.ReasonError, Message: cut(trap.Trap.Error())}
	case errors.Is(err, guest.ErrClosed), errors.Is(err, errUnhealthy):
		return podlife.Exit{Code: podlife.CodeTerminated, Reason: podlife.ReasonError}
	default:
		return podlife.Exit{Code: podlife.CodeStartError, Reason: podlife.ReasonStartError, Message: cut(err.Error())}
	}
}

// cut shortens a message to what is shown of one.
func cut(message string) string {
	return strings.ToValidUTF8(message[:min(len(message), maxMessage)], "")
}

// id names a run of the container.
func (c *container) id(run int32) string {
	return fmt.Sprintf("wisp://%s/%s/%d", c.pod.uid, c.spec.Name, run)
}

// state returns the container's present state.
func (c *container) state() podlife.Container {
	c.pod.mu.Lock()
	defer c.pod.mu.Unlock()
	return c.pod.containers[c.index()]
}

// set changes the container's state, and publishes it if that is another one.
func (c *container) set(next func(podlife.Container) podlife.Container) {
	c.pod.mu.Lock()
	i := c.index()
	before := c.pod.containers[i]
	after := next(before)
	c.pod.containers[i] = after
	c.pod.mu.Unlock()
	if after != before {
		c.pod.provider.publish(c.pod)
	}
}

// index is the container's place in its pod; the pod's mu is held.
func (c *container) index() int {
	for i := range c.pod.containers {
		if c.pod.containers[i].Name == c.spec.Name {
			return i
		}
	}
	panic("container " + c.spec.Name + " is not in its pod") // recall has made one for each
}

func (c *container) event(kind, reason, message string) {
	path := "spec.containers{" + c.spec.Name + "}"
	if strings.HasPrefix(c.spec.Path, "spec.initContainers") {
		path = "spec.initContainers{" + c.spec.Name + "}"
	}
	c.pod.event(kind, path, reason, message)
}
