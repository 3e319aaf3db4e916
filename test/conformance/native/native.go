// Package native is a Kubernetes node whose pods are processes of this machine,
// for tests that need one beside, or instead of, a wasm node.
//
// It runs what Knative's conformance suites deploy and no more: pods of one
// container with a program for its image, a network namespace and an address of
// its own, plain environment variables, and a readiness probe over HTTP or TCP.
// A pod's life is in pod.go. Goroutines, all joined by Run: one per pod, and
// virtual-kubelet's controllers.
package native

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	"github.com/virtual-kubelet/virtual-kubelet/node"
	"github.com/virtual-kubelet/virtual-kubelet/node/nodeutil"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
)

// Config is what New needs; all fields are required.
type Config struct {
	// Name is the Node object's name, Address the node's own IP address.
	Name    string
	Address string
	Client  kubernetes.Interface
	// Programs are what images mean, by the last part of an image's repository:
	// "runtime" for dev.local/runtime:latest.
	Programs map[string]string
	// Connect gives the network namespace of a process an interface, and
	// returns its address.
	Connect func(pid int) (netip.Addr, error)
	// LogDir is the folder of the pods' output, in files <pod>.log.
	LogDir string
}

// Node runs pods. It implements virtual-kubelet's PodLifecycleHandler and
// PodNotifier; its methods are safe for concurrent use.
type Node struct {
	cfg   Config
	ready chan struct{}

	mu      sync.Mutex
	pods    map[types.NamespacedName]*pod
	notify  func(*corev1.Pod)
	running context.Context // of the pods; set by Run
	lives   sync.WaitGroup
}

// New checks cfg. It starts nothing.
func New(cfg Config) (*Node, error) {
	if cfg.Name == "" || cfg.Client == nil || cfg.Connect == nil || cfg.LogDir == "" {
		return nil, errors.New("native node: Name, Client, Connect and LogDir must be set")
	}
	if _, err := netip.ParseAddr(cfg.Address); err != nil {
		return nil, fmt.Errorf("native node: %w", err)
	}
	return &Node{cfg: cfg, ready: make(chan struct{}), pods: map[types.NamespacedName]*pod{}}, nil
}

// Ready is closed when the Node is registered and pods are taken.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Run registers the node and runs its pods until ctx ends. Their processes have
// ended when it returns. Call it once.
func (n *Node) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	n.mu.Lock()
	n.running = ctx
	n.mu.Unlock()
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: n.cfg.Client.CoreV1().Events("")})
	recorder := broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "native", Host: n.cfg.Name})
	pods, watched, err := n.podController(recorder)
	if err != nil {
		return err
	}
	nodes, err := node.NewNodeController(node.NewNaiveNodeProvider(), n.object(), n.cfg.Client.CoreV1().Nodes(),
		node.WithNodeEnableLeaseV1(nodeutil.NodeLeaseV1Client(n.cfg.Client), node.DefaultLeaseDuration))
	if err != nil {
		return fmt.Errorf("prepare the node controller: %w", err)
	}
	watched.Start(ctx.Done())
	g.Go(func() error { return pods.Run(ctx, runtime.NumCPU()) })
	g.Go(func() error {
		select {
		case <-pods.Ready():
			return nodes.Run(ctx)
		case <-ctx.Done():
			return nil
		}
	})
	g.Go(func() error {
		select {
		case <-nodes.Ready():
			close(n.ready)
		case <-ctx.Done():
		}
		return nil
	})
	err = g.Wait()
	n.lives.Wait()
	watched.Shutdown()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// podController watches this node's pods. The other informers that
// virtual-kubelet asks for are for what it doesn't resolve here.
func (n *Node) podController(recorder record.EventRecorder) (*node.PodController, informers.SharedInformerFactory, error) {
	mine := informers.NewSharedInformerFactoryWithOptions(n.cfg.Client, 0, nodeutil.PodInformerFilter(n.cfg.Name))
	unused := informers.NewSharedInformerFactory(n.cfg.Client, 0).Core().V1()
	pods, err := node.NewPodController(node.PodControllerConfig{
		PodClient:                            n.cfg.Client.CoreV1(),
		PodInformer:                          mine.Core().V1().Pods(),
		EventRecorder:                        recorder,
		Provider:                             n,
		ConfigMapInformer:                    unused.ConfigMaps(),
		SecretInformer:                       unused.Secrets(),
		ServiceInformer:                      unused.Services(),
		SyncPodsFromKubernetesRateLimiter:    retries(),
		DeletePodsFromKubernetesRateLimiter:  retries(),
		SyncPodStatusFromProviderRateLimiter: retries(),
		SkipDownwardAPIResolution:            true,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("prepare the pod controller: %w", err)
	}
	return pods, mine, nil
}

// retries delays what failed. virtual-kubelet's default lets 10 items a second
// through in all.
func retries() workqueue.TypedRateLimiter[any] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[any](time.Millisecond, time.Second)
}

func (n *Node) object() *corev1.Node {
	capacity := corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("8"),
		corev1.ResourceMemory: resource.MustParse("8Gi"),
		corev1.ResourcePods:   resource.MustParse("250"),
	}
	now := metav1.Now()
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: n.cfg.Name,
			Labels: map[string]string{
				corev1.LabelHostname: n.cfg.Name, corev1.LabelOSStable: runtime.GOOS, corev1.LabelArchStable: runtime.GOARCH,
			},
		},
		Status: corev1.NodeStatus{
			Capacity: capacity, Allocatable: capacity,
			Conditions: []corev1.NodeCondition{{
				Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Serving",
				LastHeartbeatTime: now, LastTransitionTime: now,
			}},
			Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: n.cfg.Address}},
		},
	}
}

// CreatePod takes the pod and returns; its life goes on in a goroutine.
func (n *Node) CreatePod(_ context.Context, api *corev1.Pod) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pods[nameOf(api)] != nil || n.running.Err() != nil {
		return nil
	}
	ctx, end := context.WithCancel(n.running)
	p := &pod{node: n, api: api.DeepCopy(), end: end}
	n.pods[nameOf(api)] = p
	n.lives.Go(func() {
		defer end()
		p.live(ctx)
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.pods, nameOf(api))
	})
	return nil
}

// UpdatePod does nothing: there is nothing about a pod here that may change.
func (n *Node) UpdatePod(context.Context, *corev1.Pod) error { return nil }

// DeletePod begins the pod's end and returns.
func (n *Node) DeletePod(ctx context.Context, api *corev1.Pod) error {
	n.mu.Lock()
	p := n.pods[nameOf(api)]
	n.mu.Unlock()
	if p == nil {
		return n.removeFromAPI(ctx, api)
	}
	p.end()
	return nil
}

// GetPod returns the pod as it was created, with its present status.
func (n *Node) GetPod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.pods[types.NamespacedName{Namespace: namespace, Name: name}]
	if p == nil {
		return nil, errdefs.NotFoundf("pod %s/%s does not run here", namespace, name)
	}
	return p.api.DeepCopy(), nil
}

// GetPodStatus returns the status of a pod.
func (n *Node) GetPodStatus(ctx context.Context, namespace, name string) (*corev1.PodStatus, error) {
	api, err := n.GetPod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return &api.Status, nil
}

// GetPods returns every pod.
func (n *Node) GetPods(context.Context) ([]*corev1.Pod, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []*corev1.Pod
	for _, p := range n.pods {
		all = append(all, p.api.DeepCopy())
	}
	return all, nil
}

// NotifyPods registers the callback for status changes.
func (n *Node) NotifyPods(_ context.Context, callback func(*corev1.Pod)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.notify = callback
}

// publish sets a pod's status and tells virtual-kubelet, which writes it.
func (n *Node) publish(p *pod, status corev1.PodStatus) {
	n.mu.Lock()
	p.api.Status = status
	api, notify := p.api.DeepCopy(), n.notify
	n.mu.Unlock()
	notify(api)
}

// removeFromAPI deletes a pod's object at once, which virtual-kubelet does only
// after the grace period.
func (n *Node) removeFromAPI(ctx context.Context, api *corev1.Pod) error {
	options := metav1.NewDeleteOptions(0)
	options.Preconditions = metav1.NewUIDPreconditions(string(api.UID))
	return n.cfg.Client.CoreV1().Pods(api.Namespace).Delete(ctx, api.Name, *options)
}

// program returns what runs for an image.
func (n *Node) program(image string) (string, error) {
	name, _, _ := strings.Cut(path.Base(image), ":")
	program, ok := n.cfg.Programs[name]
	if !ok {
		return "", fmt.Errorf("image %s: no program is known for it", image)
	}
	return program, nil
}

func nameOf(api *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: api.Namespace, Name: api.Name}
}
