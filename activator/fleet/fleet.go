// Package fleet knows what there is of revisions beyond this node: ready pods on
// other nodes, the nodes themselves, and what Kubernetes says of pods that it
// doesn't run.
//
// It watches Pods and Deployments of revisions and the wasm Nodes, with the
// node's second identity, and keeps of each what is read. With Wisp's
// PodAutoscaler class a revision has no Service, so there are no EndpointSlices
// to watch in their place.
//
// It decides nothing about requests; package activator does, and is told. Its
// goroutines are the informers', joined by Run. Callbacks come from them, several
// at a time, and must not block.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"knative.dev/serving/pkg/apis/serving"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/ranking"
)

// byRevision is the name of the index of pods by their revision.
const byRevision = "revision"

// Revision names a revision for certain.
type Revision struct {
	types.NamespacedName
	UID types.UID
}

// Config is what New needs; all fields are required.
type Config struct {
	Client kubernetes.Interface
	// Node is this node's name, and Port where the nodes serve requests.
	Node string
	Port int
	// Elsewhere is told which other nodes have ready pods of a revision whenever
	// that changes: by host:port, how many requests each takes at a time (0: any
	// number). The map is the callee's.
	Elsewhere func(types.NamespacedName, map[string]int)
	// Refused is told that Kubernetes doesn't run a revision's pod, and why.
	Refused func(r Revision, reason string)
	// Started is told of a pod that has become ready on another node. The pod is
	// shared, and must not be changed.
	Started func(*corev1.Pod)
	// Appeared is told of the image of a revision that this node may be asked for,
	// as one of the first in the revision's order; again whenever the revision, or
	// the nodes, change.
	Appeared func(r Revision, image string)
	// Marked is told when this node was marked unschedulable, and when it is no
	// longer.
	Marked func(cordoned bool)
}

func (c Config) validate() error {
	if c.Client == nil || c.Elsewhere == nil || c.Refused == nil || c.Started == nil || c.Appeared == nil || c.Marked == nil {
		return errors.New("fleet: Client and all callbacks must be set")
	}
	if c.Node == "" || c.Port <= 0 {
		return fmt.Errorf("fleet: Node = %q, Port = %d, must be set", c.Node, c.Port)
	}
	return nil
}

// Fleet is the watch. Its methods are safe for concurrent use and don't block,
// but for those that take a context.
type Fleet struct {
	cfg                      Config
	factories                []informers.SharedInformerFactory
	pods, deployments, nodes cache.SharedIndexInformer
}

// New prepares the watch. It starts nothing.
func New(cfg Config) (*Fleet, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	f := &Fleet{cfg: cfg}
	revisions := f.factory(serving.RevisionLabelKey)
	f.pods = revisions.Core().V1().Pods().Informer()
	f.deployments = revisions.Apps().V1().Deployments().Informer()
	f.nodes = f.factory(config.NodeLabel + "=true").Core().V1().Nodes().Informer()
	for _, err := range []error{
		f.pods.AddIndexers(cache.Indexers{byRevision: revisionIndex}),
		f.pods.SetTransform(trimPod),
		f.deployments.SetTransform(trimDeployment),
		f.nodes.SetTransform(trimNode),
		handle(f.pods, f.podChanged),
		handle(f.deployments, f.deploymentChanged),
		handle(f.nodes, f.nodeChanged),
	} {
		if err != nil {
			return nil, fmt.Errorf("prepare the watch of other nodes: %w", err)
		}
	}
	return f, nil
}

func (f *Fleet) factory(selector string) informers.SharedInformerFactory {
	factory := informers.NewSharedInformerFactoryWithOptions(f.cfg.Client, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = selector }))
	f.factories = append(f.factories, factory)
	return factory
}

// handle has changed called with what an object was and is, nil where it wasn't
// or isn't there.
func handle(informer cache.SharedIndexInformer, changed func(was, is any)) error {
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { changed(nil, obj) },
		UpdateFunc: changed,
		DeleteFunc: func(obj any) {
			if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = last.Obj
			}
			changed(obj, nil)
		},
	})
	return err
}

// Run watches until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	for _, factory := range f.factories {
		factory.Start(ctx.Done())
	}
	<-ctx.Done()
	for _, factory := range f.factories {
		factory.Shutdown()
	}
	return nil
}

// Synced blocks until the first lists are in, or fails when ctx ends.
func (f *Fleet) Synced(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), f.pods.HasSynced, f.deployments.HasSynced, f.nodes.HasSynced) {
		return errors.Join(errors.New("list pods, deployments and nodes"), ctx.Err())
	}
	return nil
}

// Cordoned is whether this node is marked unschedulable.
func (f *Fleet) Cordoned() bool {
	obj, ok, err := f.nodes.GetStore().GetByKey(f.cfg.Node)
	return err == nil && ok && obj.(*node).cordoned
}

// Next returns the host:port of the other node that is the first to start the
// revision, empty if there is none.
func (f *Fleet) Next(revision types.NamespacedName) string {
	for _, n := range f.ranked(revision) {
		if n.Name != f.cfg.Node && !n.cordoned {
			return f.at(n.ip)
		}
	}
	return ""
}

// ranked returns the nodes that are ready, in the revision's order.
func (f *Fleet) ranked(revision types.NamespacedName) []*node {
	var ready []*node
	for _, obj := range f.nodes.GetStore().List() {
		if n := obj.(*node); n.ready && n.ip != "" {
			ready = append(ready, n)
		}
	}
	return ranking.Of(revision, ready, func(n *node) (string, bool) { return n.Name, n.cordoned })
}

// mayBeAsked is whether this node is among those that the gateway asks for the
// revision when it has no pods.
func (f *Fleet) mayBeAsked(revision types.NamespacedName) bool {
	for i, n := range f.ranked(revision) {
		if i >= ranking.Spares {
			break
		}
		if n.Name == f.cfg.Node {
			return true
		}
	}
	return false
}

func (f *Fleet) at(ip string) string { return net.JoinHostPort(ip, strconv.Itoa(f.cfg.Port)) }

// Refusal returns why Kubernetes runs no pod of the revision, empty if one is
// bound to a node, or if it hasn't said.
func (f *Fleet) Refusal(revision types.NamespacedName) string {
	d, _ := f.deployment(revision)
	return refusal(d, f.podsOf(revision))
}

// TemplateDigest tells one pod template of the revision's Deployment from
// another, empty if there is no Deployment.
func (f *Fleet) TemplateDigest(revision types.NamespacedName) string {
	if d, ok := f.deployment(revision); ok {
		return d.template
	}
	return ""
}

// Silent is whether the API server gives no answer, so that nobody could bring a
// Pod, or say that none comes.
func (f *Fleet) Silent(ctx context.Context) bool {
	return f.cfg.Client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error() != nil
}

func (f *Fleet) deployment(revision types.NamespacedName) (*deployment, bool) {
	// Named by Knative's rule (serving pkg/reconciler/revision/resources/names).
	key := revision.Namespace + "/" + deploymentName(revision.Name)
	obj, ok, err := f.deployments.GetStore().GetByKey(key)
	if err != nil || !ok {
		return nil, false
	}
	return obj.(*deployment), true
}

func (f *Fleet) podsOf(revision types.NamespacedName) []*corev1.Pod {
	objs, err := f.pods.GetIndexer().ByIndex(byRevision, revision.String())
	if err != nil {
		return nil // there is that index
	}
	pods := make([]*corev1.Pod, 0, len(objs))
	for _, obj := range objs {
		pods = append(pods, obj.(*corev1.Pod))
	}
	return pods
}

func (f *Fleet) podChanged(was, is any) {
	before, _ := was.(*corev1.Pod)
	after, _ := is.(*corev1.Pod)
	for _, pod := range []*corev1.Pod{before, after} {
		if pod != nil {
			f.lookElsewhere(revisionOf(pod).NamespacedName)
		}
	}
	if after == nil {
		return
	}
	if before == nil || !takesRequests(before) {
		f.lookStarted(after)
	}
	f.lookRefused(revisionOf(after))
}

func (f *Fleet) deploymentChanged(_, is any) {
	if d, ok := is.(*deployment); ok {
		f.lookRefused(d.revision)
		f.lookAhead(d)
	}
}

// lookAhead tells of a revision that this node may be asked for.
func (f *Fleet) lookAhead(d *deployment) {
	if d.image != "" && f.mayBeAsked(d.revision.NamespacedName) {
		f.cfg.Appeared(d.revision, d.image)
	}
}

// nodeChanged looks at every revision when a node comes or goes: whose pods
// count, and whom this node may be asked for.
func (f *Fleet) nodeChanged(was, is any) {
	before, _ := was.(*node)
	after, _ := is.(*node)
	if before != nil && after != nil && before.ip == after.ip && before.ready == after.ready && before.cordoned == after.cordoned {
		return
	}
	if before == nil {
		f.lookAtPodsOf(after.Name)
	}
	if after != nil && after.Name == f.cfg.Node && after.cordoned != (before != nil && before.cordoned) {
		f.cfg.Marked(after.cordoned)
	}
	for _, key := range f.pods.GetIndexer().ListIndexFuncValues(byRevision) {
		namespace, name, err := cache.SplitMetaNamespaceKey(key)
		if err == nil {
			f.lookElsewhere(types.NamespacedName{Namespace: namespace, Name: name})
		}
	}
	for _, obj := range f.deployments.GetStore().List() {
		f.lookAhead(obj.(*deployment))
	}
}

// lookAtPodsOf tells of the pods of a node that has come: until then they were
// nobody's.
func (f *Fleet) lookAtPodsOf(node string) {
	for _, obj := range f.pods.GetStore().List() {
		if pod := obj.(*corev1.Pod); pod.Spec.NodeName == node {
			f.lookStarted(pod)
		}
	}
}

func (f *Fleet) lookStarted(pod *corev1.Pod) {
	if _, ok := f.elsewhere(pod); ok && takesRequests(pod) {
		f.cfg.Started(pod)
	}
}

func (f *Fleet) lookElsewhere(revision types.NamespacedName) {
	at := map[string]int{}
	unbounded := map[string]bool{}
	for _, pod := range f.podsOf(revision) {
		n, ok := f.elsewhere(pod)
		if !ok || !takesRequests(pod) {
			continue
		}
		address := f.at(n.ip)
		concurrency := containerConcurrency(pod)
		unbounded[address] = unbounded[address] || concurrency == 0
		at[address] += concurrency
	}
	for address := range unbounded {
		if unbounded[address] {
			at[address] = 0
		}
	}
	f.cfg.Elsewhere(revision, at)
}

// elsewhere returns the other wasm node that runs the pod. Requests go to the
// node, which answers for its pods at its own address, whether or not they have
// others. Anybody may make a pod with a revision's labels; one on a wasm node runs
// as its node says.
func (f *Fleet) elsewhere(pod *corev1.Pod) (*node, bool) {
	if pod.Spec.NodeName == f.cfg.Node {
		return nil, false
	}
	obj, ok, err := f.nodes.GetStore().GetByKey(pod.Spec.NodeName)
	if err != nil || !ok {
		return nil, false
	}
	n := obj.(*node)
	return n, n.ip != ""
}

func (f *Fleet) lookRefused(r Revision) {
	if reason := f.Refusal(r.NamespacedName); reason != "" {
		f.cfg.Refused(r, reason)
	}
}
