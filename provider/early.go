package provider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/serving/pkg/apis/serving"

	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/provider/queueproxy"
	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/runtime/measure"
	"github.com/wisp-serving/wisp/runtime/oci"
)

// Outlook tells what the cluster makes of a revision's pods. Its methods are safe
// for concurrent use.
type Outlook interface {
	// Refusal returns why Kubernetes runs no pod of the revision now, empty if it
	// hasn't said so. It doesn't block.
	Refusal(revision types.NamespacedName) string
	// TemplateDigest tells one template of the revision's Deployment from another,
	// empty if it isn't known. It doesn't block.
	TemplateDigest(revision types.NamespacedName) string
	// Silent asks whether the API server gives no answer, so that nobody can bring
	// a Pod, or say that none comes.
	Silent(ctx context.Context) bool
}

// blind is the Outlook of who can't see the cluster.
type blind struct{}

func (blind) Refusal(types.NamespacedName) string        { return "" }
func (blind) TemplateDigest(types.NamespacedName) string { return "" }
func (blind) Silent(context.Context) bool                { return false }

// silentAfter bounds asking the API server whether it is there.
const silentAfter = 2 * time.Second

// earlyStarts starts functions ahead of their Pods and hands them over. At most
// one per revision runs so, for at most a lease.
//
// See RATIONALE.md "Why may a function start before its Pod exists?"
type earlyStarts struct {
	runtime Runtime
	router  Router
	lease   time.Duration
	objects Objects
	facts   func() podspec.Facts
	outlook Outlook
	log     *zap.SugaredLogger
	metrics *queueproxy.Metrics // nil: nobody takes them

	templates *templates

	mu        sync.Mutex
	functions map[revisionKey]*earlyFunction
	count     int            // of functions so far, to tell them apart
	lives     sync.WaitGroup // of functions, from before their start
	stopped   bool
}

// earlyFunction is a function without a Pod.
type earlyFunction struct {
	// id is never used again: the function may stay in the router, as a Pod's,
	// while the next one starts.
	id       string
	template template
	// started is closed when the start is over; function is nil if it failed.
	started  chan struct{}
	function *function
	// taken is closed when a Pod has adopted it or its revision is gone.
	taken chan struct{}
}

// admit remembers a pod that has started, here or on another node.
func (e *earlyStarts) admit(pod *corev1.Pod, image oci.Image) {
	key := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Labels[serving.RevisionLabelKey]}
	t, err := e.templates.make(pod, image, e.outlook.TemplateDigest(key))
	if err != nil {
		e.log.Debugw("nothing starts ahead of this pod's like", "pod", nameOf(pod).String(), "error", err)
		return
	}
	e.templates.admit(t)
}

// start runs the revision's function and adds it to the router. It fails if
// nothing of the revision was admitted here, or if it must wait for its Pod.
func (e *earlyStarts) start(ctx context.Context, revision revisionKey) error {
	began := time.Now()
	ef, err := e.begin(revision)
	if err != nil {
		return err
	}
	defer e.lives.Done()
	f, err := e.run(ctx, ef)
	if err == nil { // before it has a request, so that the log has it before what comes of that
		e.log.Infow("function started ahead of its pod", "key", revision.String(), "took", time.Since(began))
	}

	e.mu.Lock()
	defer e.mu.Unlock()
	defer close(ef.started)
	if err != nil {
		e.drop(ef)
		return err
	}
	if e.stopped || e.functions[revision] != ef {
		e.drop(ef)
		e.lives.Go(func() { e.finish(ef.template.spec, f) })
		return fmt.Errorf("revision %s, or the node, goes away", revision)
	}
	ef.function = f
	f.begin()
	e.router.AddEarly(revision.NamespacedName, f.target, ef.template.spec.Concurrency, f.front)
	e.lives.Go(func() { e.live(ef) })
	return nil
}

// drop removes ef unless it was replaced; called with mu held.
func (e *earlyStarts) drop(ef *earlyFunction) {
	if key := keyOf(ef.template.spec); e.functions[key] == ef {
		delete(e.functions, key)
	}
}

// begin reserves the revision's place. Unless it fails, the start counts among
// lives.
func (e *earlyStarts) begin(revision revisionKey) (*earlyFunction, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t, ok := e.templates.get(revision)
	refusal := e.outlook.Refusal(revision.NamespacedName)
	digest := e.outlook.TemplateDigest(revision.NamespacedName)
	switch {
	case e.stopped:
		return nil, errors.New("the node is stopping")
	case !ok:
		return nil, fmt.Errorf("no pod of revision %s has run on a node yet", revision)
	case !t.spec.EarlyStart:
		return nil, fmt.Errorf("revision %s asks to wait for its pod, or starts with what is one pod's own", revision)
	case refusal != "":
		return nil, fmt.Errorf("Kubernetes refuses the pod of revision %s: %s", revision, refusal) //nolint:staticcheck // a name
	case t.digest != "" && digest != "" && t.digest != digest:
		return nil, fmt.Errorf("no pod of the present template of revision %s has run on a node yet", revision)
	case e.functions[revision] != nil:
		return nil, fmt.Errorf("revision %s is already starting", revision)
	}
	e.count++
	e.lives.Add(1)
	id := fmt.Sprintf("early/%s/%s/%d", revision, revision.uid, e.count)
	ef := &earlyFunction{id: id, template: t, started: make(chan struct{}), taken: make(chan struct{})}
	e.functions[revision] = ef
	return ef, nil
}

func (e *earlyStarts) run(ctx context.Context, ef *earlyFunction) (*function, error) {
	t, revision := ef.template, ef.template.spec.Revision
	container := t.spec.Containers[0]
	resolved, err := container.Resolve(ctx, t.pod, e.facts(), e.objects)
	if err != nil {
		return nil, fmt.Errorf("start revision %s: %w", revision, err)
	}
	if t.image.ModuleDigest == "" {
		// Without secrets: a private image that the store has lost waits for a Pod.
		request := imageRequest(container, resolved, nil)
		request.Reference, request.Policy = t.image.Reference, oci.PullIfNotPresent
		image, err := e.runtime.Pull(ctx, request)
		if err != nil {
			return nil, fmt.Errorf("start revision %s: %w", revision, err)
		}
		t.image = image
		e.templates.admit(t)
	}
	spec := sandboxSpec(ef.id, t.image, t.spec, container, resolved)
	spec.Place = measure.Place{Namespace: revision.Namespace, Revision: revision.Name}
	logs := newRelay(guestLog{e.log.With("namespace", revision.Namespace, "revision", revision.Name)})
	spec.Stdout, spec.Stderr = logs.writer(stdout), logs.writer(stderr)
	volumes, err := e.mount(ctx, t, &spec, resolved)
	if err != nil {
		return nil, fmt.Errorf("start revision %s: %w", revision, err)
	}
	spec.Proven = true // as a template: it was admitted after it had started
	sb, err := e.runtime.Start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start revision %s: %w", revision, err)
	}
	f := &function{Sandbox: sb, target: types.UID(ef.id), imageID: t.image.Reference, requests: answersRequests(spec.ABI), logs: logs, volumes: volumes}
	if f.front, err = queueproxy.New(frontConfig(t.spec, f, e.facts().PodIPs, e.metrics)); err != nil {
		return nil, errors.Join(err, sb.Close(ctx))
	}
	return f, nil
}

// live holds the function until a Pod takes it or the lease ends. While the API
// server is silent no Pod could have come, and the lease is given again.
func (e *earlyStarts) live(ef *earlyFunction) {
	timer := time.NewTimer(e.lease)
	defer timer.Stop()
	why := "no pod came for a function that was started ahead: it ends"
	for waiting := true; waiting; {
		select {
		case <-ef.taken:
			return
		case <-ef.function.ahead.done:
			waiting, why = false, "a function that was started ahead of its pod has ended by itself"
		case <-timer.C:
			waiting = e.silent()
			timer.Reset(e.lease)
		}
	}
	if e.take(ef) {
		e.log.Infow(why, "key", ef.template.spec.Revision.String(), "lease", e.lease, "error", ef.function.ahead.ended())
		e.finish(ef.template.spec, ef.function)
	}
}

func (e *earlyStarts) silent() bool {
	ctx, cancel := context.WithTimeout(context.Background(), silentAfter)
	defer cancel()
	return e.outlook.Silent(ctx)
}

// adopt hands the function that runs ahead of this pod over to it, nil if there
// is none of its template. It waits for a start in progress, so that one start
// serves both. The function stays in the router throughout; what it has written
// and will write goes to the pod's logs.
func (e *earlyStarts) adopt(ctx context.Context, spec podspec.Spec, out, errs io.Writer) *function {
	e.mu.Lock()
	ef := e.functions[keyOf(spec)]
	e.mu.Unlock()
	if ef == nil || ef.template.spec.TemplateHash != spec.TemplateHash {
		return nil
	}
	select {
	case <-ef.started:
	case <-ctx.Done():
		return nil
	}
	if ef.function == nil || !e.take(ef) {
		return nil
	}
	e.router.Adopted(spec.Revision, ef.function.target)
	ef.function.logs.to(out, errs)
	return ef.function
}

// take makes the caller the owner of ef's function, once.
func (e *earlyStarts) take(ef *earlyFunction) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	key := keyOf(ef.template.spec)
	if e.functions[key] != ef {
		return false
	}
	delete(e.functions, key)
	close(ef.taken)
	return true
}

// forget drops a deleted revision: its template and what runs ahead of a Pod.
func (e *earlyStarts) forget(revision revisionKey) {
	e.templates.forget(revision)
	e.endEarly(e.running(revision))
}

// refuse ends what runs ahead of a Pod that Kubernetes refuses.
func (e *earlyStarts) refuse(revision revisionKey, reason string) {
	if ef := e.running(revision); ef != nil {
		e.log.Infow("Kubernetes refuses the pod of a function that was started ahead: it ends", "key", revision.String(), "reason", reason)
		e.endEarly(ef)
	}
}

// retire ends what runs ahead of a Pod once there is one that takes requests on
// another node: it was in that one's stead.
func (e *earlyStarts) retire(revision revisionKey) {
	if ef := e.running(revision); ef != nil {
		e.log.Infow("a pod takes requests on another node: the function that was started ahead ends", "key", revision.String())
		e.endEarly(ef)
	}
}

func (e *earlyStarts) running(revision revisionKey) *earlyFunction {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.functions[revision]
}

// endEarly ends ef's function unless a Pod has it.
func (e *earlyStarts) endEarly(ef *earlyFunction) {
	if ef == nil || !e.take(ef) {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := ef.function; f != nil {
		e.lives.Go(func() { e.finish(ef.template.spec, f) })
	}
}

// stop ends every function without a Pod and waits for their ends.
func (e *earlyStarts) stop() {
	e.mu.Lock()
	e.stopped = true
	var left []*earlyFunction
	for _, ef := range e.functions {
		left = append(left, ef)
	}
	e.mu.Unlock()
	for _, ef := range left {
		e.endEarly(ef)
	}
	e.lives.Wait()
}

// finish takes the function out of the router and lets its requests finish, for
// as long as those of its Pod might. What it has written goes to the node's log.
func (e *earlyStarts) finish(spec podspec.Spec, f *function) {
	defer f.logs.flush()
	drained := e.router.Remove(spec.Revision, f.target)
	ctx, cancel := context.WithTimeout(context.Background(), spec.Grace)
	defer cancel()
	closeSandbox(ctx, drained, f.Sandbox, e.log)
	if f.ahead != nil {
		f.ahead.stop(guest.ErrClosed)
		<-f.ahead.done
	}
}

// aheadRun is the run of a function that was begun ahead of its Pod. A server
// answers only while it runs; other functions just wait there for their end.
type aheadRun struct {
	stop context.CancelCauseFunc
	done chan struct{} // closed once err is set
	err  error
}

// ended returns how the run ended, nil while it goes on.
func (a *aheadRun) ended() error {
	select {
	case <-a.done:
		return a.err
	default:
		return nil
	}
}

// begin begins the function's run ahead of its Pod. Run waits for it then.
func (f *function) begin() {
	ctx, stop := context.WithCancelCause(context.Background())
	f.ahead = &aheadRun{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(f.ahead.done)
		f.ahead.err = f.Sandbox.Run(ctx)
	}()
}

// Run runs the function to its end, or waits for the end of a run that was begun
// ahead of its Pod; see sandbox.Run.
func (f *function) Run(ctx context.Context) error {
	if f.ahead == nil {
		return f.Sandbox.Run(ctx)
	}
	defer context.AfterFunc(ctx, func() { f.ahead.stop(context.Cause(ctx)) })()
	<-f.ahead.done
	return f.ahead.err
}
