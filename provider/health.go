package provider

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/wisp-serving/wisp/provider/pause"
	"github.com/wisp-serving/wisp/provider/podlife"
	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/provider/probe"
	"github.com/wisp-serving/wisp/provider/queueproxy"
)

// eager is how long after a failure a revision's container is asked again until
// it is ready for the first time, as Knative's own proxy does.
const eager = 25 * time.Millisecond

// watcher asks how a running container is, from its start to its end. Its
// goroutines are joined by stop.
type watcher struct {
	*container
	f    *function
	kill context.CancelCauseFunc // ends the run

	cancel context.CancelFunc
	asking sync.WaitGroup
}

// watch starts to ask. One whose requests get an instance each has nothing to
// ask: it is ready as long as it is there.
func (c *container) watch(f *function, kill context.CancelCauseFunc) *watcher {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{container: c, f: f, kill: kill, cancel: cancel}
	if f.requests {
		w.hasStarted()
		w.setReady(true)
		return w
	}
	w.asking.Go(func() {
		if w.postStart(ctx) && w.startup(ctx) {
			w.hasStarted()
			w.asking.Go(func() { w.liveness(ctx) })
			w.readiness(ctx)
		}
	})
	return w
}

// stop ends the asking and waits for it.
func (w *watcher) stop() {
	w.cancel()
	w.asking.Wait()
}

func (w *watcher) target() probe.Target {
	t := probe.Target{Dial: w.f.Dial, Ports: w.spec.Ports}
	if ips := w.pod.facts().PodIPs; len(ips) > 0 {
		t.Host = ips[0]
	}
	return t
}

func (w *watcher) check(p *corev1.Probe) func(context.Context) error {
	return func(ctx context.Context) error { return probe.Check(ctx, p, w.target()) }
}

func (w *watcher) unhealthy(what string) func(error) {
	return func(err error) {
		w.event(corev1.EventTypeWarning, "Unhealthy", fmt.Sprintf("%s probe failed: %s", what, err))
	}
}

// startup returns whether the container has started.
func (w *watcher) startup(ctx context.Context) bool {
	p := w.spec.StartupProbe
	if p == nil {
		return ctx.Err() == nil
	}
	started := false
	probe.Run(ctx, p, 0, w.check(p), w.unhealthy("Startup"), func(ok bool, _ error) bool {
		started = ok
		if !ok {
			w.restart("startup")
		}
		return false
	})
	return started
}

func (w *watcher) hasStarted() {
	w.set(func(s podlife.Container) podlife.Container {
		s.Started = s.State == podlife.Running
		return s
	})
	w.startOnce.Do(func() { close(w.started) })
}

func (w *watcher) liveness(ctx context.Context) {
	p := w.spec.LivenessProbe
	if p == nil {
		return
	}
	probe.Run(ctx, p, 0, w.check(p), w.unhealthy("Liveness"), func(ok bool, _ error) bool {
		if !ok {
			w.restart("liveness")
		}
		return ok
	})
}

// restart ends the run because of a probe: its policy says what follows.
func (w *watcher) restart(what string) {
	w.event(corev1.EventTypeNormal, "Killing", fmt.Sprintf("Container %s failed %s probe, will be restarted", w.spec.Name, what))
	w.kill(errUnhealthy)
}

// readiness asks the container's own probe, or those that Knative has moved to
// its proxy; without any, the container is ready at once.
func (w *watcher) readiness(ctx context.Context) {
	p, until, check := w.spec.ReadinessProbe, time.Duration(0), w.check(w.spec.ReadinessProbe)
	if w.serves && len(w.pods.Proxy.Readiness) > 0 {
		p, until, check = w.pods.Proxy.Readiness[0], eager, w.asked
	}
	if p == nil {
		w.setReady(true)
		return
	}
	ready := false
	probe.Run(ctx, p, until, check, w.unhealthy("Readiness"), func(ok bool, _ error) bool {
		if ok != ready {
			ready = ok
			w.setReady(ok)
		}
		return true
	})
}

// asked asks all probes that Knative has given its proxy.
func (w *watcher) asked(ctx context.Context) error {
	target := w.target()
	target.DetectHTTP2 = w.pods.Proxy.DetectHTTP2
	for _, p := range w.pods.Proxy.Readiness {
		if err := probe.Check(ctx, p, target); err != nil {
			return err
		}
	}
	return nil
}

// setReady says whether the container takes requests, first to those who send
// them: a Ready pod must not refuse one.
func (w *watcher) setReady(ready bool) {
	w.route(w.f, ready)
	w.set(func(s podlife.Container) podlife.Container {
		s.Ready = ready && s.State == podlife.Running
		return s
	})
}

// route says whether the router sends f its revision's requests.
func (c *container) route(f *function, sends bool) {
	if !c.serves || f.routed == sends {
		return
	}
	router := c.pod.provider.cfg.Router
	if f.routed = sends; sends {
		router.Add(c.pods.Revision, f.target, c.pods.Concurrency, f.front)
	} else {
		router.Remove(c.pods.Revision, f.target)
	}
}

// unasked is whether the container has neither probe nor hook that its start
// waits for.
func (c *container) unasked() bool {
	if c.serves && len(c.pods.Proxy.Readiness) > 0 || c.spec.ReadinessProbe != nil || c.spec.StartupProbe != nil {
		return false
	}
	return c.spec.Lifecycle == nil || c.spec.Lifecycle.PostStart == nil || c.pods.IsRevision()
}

// postStart runs the container's hook, and ends the container if that fails.
func (w *watcher) postStart(ctx context.Context) bool {
	if w.spec.Lifecycle == nil || w.pods.IsRevision() {
		return ctx.Err() == nil
	}
	if err := w.hook(ctx, w.spec.Lifecycle.PostStart); err != nil && ctx.Err() == nil {
		w.event(corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed: "+err.Error())
		w.kill(errUnhealthy)
		return false
	}
	return ctx.Err() == nil
}

// preStop runs the container's hook, within the pod's grace period. Knative's own
// waits for its proxy, whose part the node plays.
func (w *watcher) preStop(ctx context.Context) {
	if w.spec.Lifecycle == nil || w.pods.IsRevision() {
		return
	}
	if err := w.hook(ctx, w.spec.Lifecycle.PreStop); err != nil {
		w.event(corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed: "+err.Error())
	}
}

// maxHook bounds a hook's answer.
const maxHook = 300

func (w *watcher) hook(ctx context.Context, h *corev1.LifecycleHandler) error {
	switch {
	case h == nil:
		return nil
	case h.Sleep != nil:
		if !pause.For(ctx, time.Duration(h.Sleep.Seconds)*time.Second) {
			return context.Cause(ctx)
		}
		return nil
	case h.HTTPGet != nil:
		return probe.Check(ctx, &corev1.Probe{TimeoutSeconds: maxHook, ProbeHandler: corev1.ProbeHandler{HTTPGet: h.HTTPGet}}, w.target())
	default:
		return errors.New("the hook names no action that a wasm container has")
	}
}

// frontConfig is Knative's proxy around a revision's function, as far as it is no
// Pod's.
func frontConfig(spec podspec.Spec, f *function, ips []string, metrics *queueproxy.Metrics) queueproxy.Config {
	cfg := queueproxy.Config{Settings: spec.Proxy, Function: f.Sandbox}
	if len(ips) > 0 {
		cfg.PodIP = ips[0]
	}
	if metrics != nil {
		cfg.Metrics = []*queueproxy.Metrics{metrics}
	}
	return cfg
}
