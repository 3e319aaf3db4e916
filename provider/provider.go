// Package provider presents a wasm node to Kubernetes, through virtual-kubelet:
// it registers the Node, keeps its lease, and runs the pods bound to it as
// sandboxes of package runtime.
//
// A pod's life is in pod.go, a function's start ahead of its Pod in early.go,
// the node's own registration in node.go. What a Pod asks for is read by
// podspec and what is reported of it is made by podstatus, both pure.
//
// Goroutines, all joined by Run: one per pod, one per function that runs ahead
// of its Pod, and virtual-kubelet's controllers.
package provider

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/provider/nodespec"
	"github.com/wisp-serving/wisp/provider/podnet"
	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/provider/podstatus"
	"github.com/wisp-serving/wisp/provider/queueproxy"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/sandbox"
)

// Runtime is what the provider needs of package runtime.
type Runtime interface {
	Pull(ctx context.Context, r oci.Request) (oci.Image, error)
	Start(ctx context.Context, spec sandbox.Spec) (*sandbox.Sandbox, error)
	// Prepare pulls and compiles, so that a Start of it is quick.
	Prepare(ctx context.Context, ref string) error
}

// Router is told which functions take requests on this node.
type Router interface {
	Add(revision types.NamespacedName, id types.UID, concurrency int, h http.Handler)
	// AddEarly is Add for a function without a Pod; Adopted says that it has one.
	AddEarly(revision types.NamespacedName, id types.UID, concurrency int, h http.Handler)
	Adopted(revision types.NamespacedName, id types.UID)
	// Remove lets no new request come; drained is closed when the last one that
	// has come has ended.
	Remove(revision types.NamespacedName, id types.UID) (drained <-chan struct{})
	// Pod returns the handler of what comes to the address of one pod.
	Pod(revision types.NamespacedName, id types.UID) http.Handler
	// NewServer returns a server of h that bounds what its peers can do.
	NewServer(h http.Handler) *http.Server
}

// Config is what New needs; all fields but Events, Outlook, Objects, Metrics and
// PodMetrics are required.
type Config struct {
	Node config.Node
	// Versions are what the Node shows.
	Versions nodespec.Versions
	// Client acts as the kubelet, system:node:<name>.
	Client kubernetes.Interface
	// Events takes Events. With a budget of its own, a burst of pods has its
	// statuses told without waiting for its Events. nil is Client.
	Events  typedcorev1.EventsGetter
	Runtime Runtime
	Router  Router
	// Outlook is asked about starts ahead of Pods; nil knows nothing.
	Outlook Outlook
	// Objects gives what starts ahead of Pods need; nil gives nothing, so that what
	// needs any waits for its Pod.
	Objects Objects
	// Metrics takes the durations of requests; nil: nobody does.
	Metrics *queueproxy.Metrics
	// PodMetrics returns metrics of one pod's requests, and what answers who scrapes
	// them at the pod's own address; nil: nobody does.
	PodMetrics func() (*queueproxy.Metrics, http.Handler, error)
	Log        *zap.SugaredLogger
}

func (c Config) validate() error {
	if c.Client == nil || c.Runtime == nil || c.Router == nil || c.Log == nil {
		return errors.New("provider: Client, Runtime, Router and Log must be set")
	}
	return c.Node.Validate()
}

// Provider runs the node's pods. It implements virtual-kubelet's
// PodLifecycleHandler and PodNotifier; its methods are safe for concurrent use.
type Provider struct {
	cfg      Config
	source   *source
	early    *earlyStarts
	ahead    *ahead
	recorder record.EventRecorder
	ready    chan struct{}
	began    time.Time
	// podAddresses are the pods' own; nil if they share the node's.
	podAddresses *podnet.Addresses

	mu     sync.Mutex
	pods   map[types.UID]*pod
	byName map[types.NamespacedName]*pod
	notify func(*corev1.Pod)

	// lister is the API's truth of this node's pods, set by Run before any pod.
	lister corelisters.PodLister
	// services are those of the cluster, for the variables of pods.
	services  corelisters.ServiceLister
	informers informers.SharedInformerFactory
	// running is the context of pods; lives counts their goroutines.
	running context.Context
	lives   sync.WaitGroup
}

// New checks cfg. It starts nothing.
func New(cfg Config) (*Provider, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Events == nil {
		cfg.Events = cfg.Client.CoreV1()
	}
	if cfg.Outlook == nil {
		cfg.Outlook = blind{}
	}
	if cfg.Objects == nil {
		cfg.Objects = noObjects{}
	}
	p := &Provider{
		cfg:       cfg,
		source:    newSource(cfg.Client),
		ready:     make(chan struct{}),
		began:     time.Now(),
		informers: informers.NewSharedInformerFactoryWithOptions(cfg.Client, 0, informers.WithTransform(withoutManagedFields)),
		pods:      make(map[types.UID]*pod),
		byName:    make(map[types.NamespacedName]*pod),
	}
	p.services = p.informers.Core().V1().Services().Lister()
	if cfg.Node.PodCIDR != "" {
		network, err := netip.ParsePrefix(cfg.Node.PodCIDR)
		if err != nil {
			return nil, fmt.Errorf("podCIDR: %w", err)
		}
		if p.podAddresses, err = podnet.NewAddresses(network); err != nil {
			return nil, err
		}
	}
	templates, err := openTemplates(filepath.Join(cfg.Node.DataDir, "templates"), cfg.Node.Name, cfg.Objects, cfg.Log)
	if err != nil {
		return nil, err
	}
	p.early = &earlyStarts{
		runtime: cfg.Runtime, router: cfg.Router, lease: cfg.Node.EarlyStartLease.Duration,
		objects: cfg.Objects, facts: p.facts, outlook: cfg.Outlook, log: cfg.Log, metrics: cfg.Metrics,
		templates: templates, functions: make(map[revisionKey]*earlyFunction),
	}
	p.ahead = newAhead(cfg.Runtime, cfg.Log)
	return p, nil
}

// Ready is closed when the Node is registered and pods are taken.
func (p *Provider) Ready() <-chan struct{} { return p.ready }

// CreatePod takes the pod and returns; its life goes on in a goroutine that
// ends by DeletePod or with Run. It never fails: what is wrong with a pod is its
// status to tell, and virtual-kubelet would try again and again.
func (p *Provider) CreatePod(_ context.Context, api *corev1.Pod) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.pods[api.UID]; ok {
		return nil
	}
	if p.running == nil || p.running.Err() != nil {
		return nil // the node stops: its next start finds the pod in the API
	}
	ctx, end := context.WithCancelCause(p.running)
	it := newPod(p, api, end)
	p.pods[api.UID] = it
	p.byName[nameOf(api)] = it
	p.lives.Go(func() {
		it.live(ctx)
		p.forget(it)
	})
	return nil
}

// find returns the pod of that UID, false if it does not run here.
func (p *Provider) find(uid types.UID) (*pod, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	it, ok := p.pods[uid]
	return it, ok
}

// UpdatePod takes over what can be changed of a pod: labels and annotations, the
// deadline, and images, with which containers are restarted.
func (p *Provider) UpdatePod(ctx context.Context, api *corev1.Pod) error {
	it, ok := p.find(api.UID)
	if !ok {
		return p.CreatePod(ctx, api)
	}
	it.update(api)
	return nil
}

// DeletePod begins the pod's end and returns. It may be called again, with a
// shorter grace period. A pod that has ended, or that ended with an earlier
// process of this node, only has its object left: that goes at once.
func (p *Provider) DeletePod(ctx context.Context, api *corev1.Pod) error {
	it, ok := p.find(api.UID)
	if !ok {
		p.discard(api.UID)
		return p.removeFromAPI(ctx, nameOf(api), api.UID)
	}
	it.update(api)
	it.delete(grace(api))
	return nil
}

// GetPod returns the pod that runs under the name. One that has ended is not
// found, nor is one whose name another pod has taken in the API: it ends.
// virtual-kubelet compares pods without their UIDs, and would take the old one
// for the new one.
func (p *Provider) GetPod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	p.mu.Lock()
	it, ok := p.byName[types.NamespacedName{Namespace: namespace, Name: name}]
	p.mu.Unlock()
	if !ok {
		return nil, errdefs.NotFoundf("pod %s/%s does not run here", namespace, name)
	}
	if p.replaced(it.name, it.uid) {
		it.delete(grace(it.object()))
		return nil, errdefs.NotFoundf("the pod that is now %s/%s does not run here", namespace, name)
	}
	return it.object(), nil
}

// replaced is whether another pod has the name in the API.
func (p *Provider) replaced(name types.NamespacedName, uid types.UID) bool {
	current, err := p.lister.Pods(name.Namespace).Get(name.Name)
	return err == nil && current.UID != uid
}

// GetPodStatus returns the status of the pod that runs under the name.
func (p *Provider) GetPodStatus(ctx context.Context, namespace, name string) (*corev1.PodStatus, error) {
	api, err := p.GetPod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return &api.Status, nil
}

// all returns the pods that live here.
func (p *Provider) all() []*pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Collect(maps.Values(p.pods))
}

// GetPods returns every pod that runs here.
func (p *Provider) GetPods(context.Context) ([]*corev1.Pod, error) {
	lives := p.all()
	pods := make([]*corev1.Pod, 0, len(lives))
	for _, it := range lives {
		pods = append(pods, it.object())
	}
	return pods, nil
}

// NotifyPods registers the callback for status changes. virtual-kubelet calls
// it once, before any pod.
func (p *Provider) NotifyPods(_ context.Context, callback func(*corev1.Pod)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notify = callback
}

// StartEarly starts the revision's function ahead of its Pod, from what was
// last admitted to this node, and adds it to the router before it returns.
func (p *Provider) StartEarly(ctx context.Context, revision types.NamespacedName, uid types.UID) error {
	return p.early.start(ctx, revisionKey{revision, uid})
}

// ForgetRevision ends what runs ahead of a Pod for a revision that was deleted,
// and forgets how to start it.
func (p *Provider) ForgetRevision(revision types.NamespacedName, uid types.UID) {
	p.early.forget(revisionKey{revision, uid})
}

// RefuseRevision ends what runs ahead of a Pod that Kubernetes refuses.
func (p *Provider) RefuseRevision(revision types.NamespacedName, uid types.UID, reason string) {
	p.early.refuse(revisionKey{revision, uid}, reason)
}

// KeepRevisions forgets how to start the revisions that don't exist: those that
// were deleted while the node was away.
func (p *Provider) KeepRevisions(exists func(types.NamespacedName, types.UID) bool) {
	p.early.templates.prune(func(key revisionKey) bool { return exists(key.NamespacedName, key.uid) })
}

// LearnPod remembers how to start a revision of which a pod has become ready on
// another node, and ends what runs here ahead of one. The pod is not changed, and
// kept in part.
func (p *Provider) LearnPod(pod *corev1.Pod) {
	spec, err := podspec.Parse(pod)
	if err != nil {
		return // its own node says why
	}
	name := spec.Containers[spec.Server()].Name
	for _, c := range pod.Status.ContainerStatuses {
		if c.Name == name {
			p.early.admit(pod, oci.Image{Reference: c.ImageID})
		}
	}
	p.early.retire(keyOf(spec))
}

// PrepareImage has an image pulled and compiled soon, for a revision that may be
// called here. It doesn't block.
func (p *Provider) PrepareImage(ref string) { p.ahead.add(ref) }

// overruled tells the status of a pod anew when others have changed what decides
// its readiness: the conditions that gate it, or that it is ready, which is taken
// from the pods of a node that was silent for a while. virtual-kubelet hands on no
// change of the status alone.
func (p *Provider) overruled(before, after any) {
	old, isOld := before.(*corev1.Pod)
	api, isNew := after.(*corev1.Pod)
	if !isOld || !isNew || !podstatus.Overruled(old, api) {
		return
	}
	if it, ok := p.find(api.UID); ok {
		p.publish(it)
	}
}

// missed ends a pod whose deletion fell into a gap of the watch. Of those,
// virtual-kubelet takes no notice (DeleteFunc in its node/podcontroller.go).
func (p *Provider) missed(obj any) {
	last, ok := obj.(cache.DeletedFinalStateUnknown)
	if !ok {
		return
	}
	api, ok := last.Obj.(*corev1.Pod)
	if !ok {
		return
	}
	it, ok := p.find(api.UID)
	if ok {
		it.delete(grace(api))
	}
}

// bury tells the API the pod's last status and removes it, in this order, as a
// kubelet does: who watches sees how the pod has ended.
func (p *Provider) bury(ctx context.Context, it *pod) error {
	last := it.object()
	last.ResourceVersion = "" // nobody else writes it
	_, err := p.cfg.Client.CoreV1().Pods(it.name.Namespace).UpdateStatus(ctx, last, metav1.UpdateOptions{})
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err): // the name is free, or another's
		return nil
	case apierrors.IsInvalid(err): // it was changed meanwhile, by another deletion
	case err != nil:
		return fmt.Errorf("tell the last status of pod %s: %w", it.name, err)
	}
	return p.removeFromAPI(ctx, it.name, it.uid)
}

// removeFromAPI deletes a pod's object at once, if it is still the pod of that
// UID. virtual-kubelet would do so only after the full grace period, 300 s for
// a revision's pod.
func (p *Provider) removeFromAPI(ctx context.Context, name types.NamespacedName, uid types.UID) error {
	options := metav1.NewDeleteOptions(0)
	options.Preconditions = metav1.NewUIDPreconditions(string(uid))
	err := p.cfg.Client.CoreV1().Pods(name.Namespace).Delete(ctx, name.Name, *options)
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete ended pod %s from the API: %w", name, err)
	}
	return nil
}

// forget removes an ended pod, unless another has taken its name.
func (p *Provider) forget(it *pod) {
	p.source.forget(it.uid)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pods, it.uid)
	if p.byName[it.name] == it {
		delete(p.byName, it.name)
	}
}

// publish hands a pod's status to virtual-kubelet, which writes it to the API
// server. It keeps one status per name: that of a pod whose name another has
// taken would displace the other's.
func (p *Provider) publish(it *pod) {
	if it.gone() || p.replaced(it.name, it.uid) { // bury tells the last one
		return
	}
	p.tell(it)
	if !p.replaced(it.name, it.uid) {
		return
	}
	// virtual-kubelet may have waited until the name was known again, and then
	// have taken this status for the other pod's.
	p.mu.Lock()
	other, ok := p.byName[it.name]
	p.mu.Unlock()
	if ok && other != it {
		p.tell(other)
	}
}

// tell calls virtual-kubelet with the pod's present status.
func (p *Provider) tell(it *pod) {
	p.mu.Lock()
	notify := p.notify
	p.mu.Unlock()
	it.telling.Lock()
	defer it.telling.Unlock()
	it.toldOnce.Do(func() { close(it.told) })
	notify(it.object())
}

func nameOf(api *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: api.Namespace, Name: api.Name}
}

// grace returns how long the pod's requests may run on.
func grace(api *corev1.Pod) time.Duration {
	if seconds := api.DeletionGracePeriodSeconds; seconds != nil {
		return time.Duration(*seconds) * time.Second
	}
	return podspec.Grace(&api.Spec)
}
