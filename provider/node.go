package provider

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/log"
	"github.com/virtual-kubelet/virtual-kubelet/node"
	"github.com/virtual-kubelet/virtual-kubelet/node/nodeutil"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"github.com/wisp-serving/wisp/provider/nodespec"
)

// Run registers the node and runs its pods until ctx ends. Pods are drained
// then, but stay in the API: the next start runs them again. It returns after
// every goroutine that it or a pod started has ended, and must be called once.
func (p *Provider) Run(ctx context.Context) error {
	ctx = log.WithLogger(ctx, vkLogger{SugaredLogger: p.cfg.Log.Named("virtual-kubelet")})
	// Not ended by ctx: the pods' last events come after it.
	broadcaster := record.NewBroadcaster(record.WithContext(context.WithoutCancel(ctx)))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: p.cfg.Events.Events("")})
	p.recorder = broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: p.cfg.Node.Name})

	pods, podInformers, err := p.podController()
	if err != nil {
		return err
	}
	nodes, err := p.nodeController()
	if err != nil {
		return err
	}

	g, running := errgroup.WithContext(ctx)
	p.admitPods(running)
	podInformers.Start(running.Done())
	p.informers.Start(running.Done())
	g.Go(func() error {
		p.informers.WaitForCacheSync(running.Done()) // a pod is to see all Services
		return pods.Run(running, runtime.NumCPU())
	})
	g.Go(func() error { return p.register(running, pods, nodes) })
	g.Go(func() error {
		p.ahead.run(running)
		return nil
	})
	g.Go(func() error { return p.serveAPI(running) })
	g.Go(func() error {
		p.refreshVolumes(running)
		return nil
	})
	err = g.Wait()
	p.lives.Wait()
	p.early.stop()
	podInformers.Shutdown()
	p.informers.Shutdown()
	if ctx.Err() != nil {
		return nil // stopped from outside: what ended because of it is no error
	}
	return err
}

// register announces the node once its pods can be taken, so that nothing is
// scheduled here before.
func (p *Provider) register(ctx context.Context, pods *node.PodController, nodes *node.NodeController) error {
	select {
	case <-pods.Ready():
	case <-pods.Done():
		return pods.Err()
	case <-ctx.Done():
		return nil
	}
	p.sweep()
	done := make(chan error, 1)
	go func() { done <- nodes.Run(ctx) }()
	select {
	case <-nodes.Ready():
		p.cfg.Log.Infow("node registered", "node", p.cfg.Node.Name, "address", p.cfg.Node.Address)
		close(p.ready)
	case err := <-done:
		return fmt.Errorf("register node %s: %w", p.cfg.Node.Name, err)
	}
	return <-done
}

func (p *Provider) admitPods(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running = ctx
}

// podController watches this node's pods alone. virtual-kubelet asks for
// informers of Secrets, ConfigMaps and Services too, to resolve environments
// that the provider resolves itself: those are never started, so that the node
// doesn't watch every Secret of the cluster.
func (p *Provider) podController() (*node.PodController, informers.SharedInformerFactory, error) {
	mine := informers.NewSharedInformerFactoryWithOptions(p.cfg.Client, 0,
		nodeutil.PodInformerFilter(p.cfg.Node.Name), informers.WithTransform(withoutManagedFields))
	p.lister = mine.Core().V1().Pods().Lister()
	if _, err := mine.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: p.overruled, DeleteFunc: p.missed}); err != nil {
		return nil, nil, fmt.Errorf("prepare the watch of pods: %w", err)
	}
	unused := informers.NewSharedInformerFactory(p.cfg.Client, 0).Core().V1()
	pods, err := node.NewPodController(node.PodControllerConfig{
		PodClient:   p.cfg.Client.CoreV1(),
		PodInformer: mine.Core().V1().Pods(),
		// Its own events, two for each pod, say nothing that the pod's don't.
		EventRecorder:                        &record.FakeRecorder{},
		Provider:                             p,
		ConfigMapInformer:                    unused.ConfigMaps(),
		SecretInformer:                       unused.Secrets(),
		ServiceInformer:                      unused.Services(),
		SyncPodsFromKubernetesRateLimiter:    retryLimiter(),
		DeletePodsFromKubernetesRateLimiter:  retryLimiter(),
		SyncPodStatusFromProviderRateLimiter: retryLimiter(),
		// An API server may be away for longer than virtual-kubelet has patience.
		SyncPodsFromKubernetesShouldRetryFunc:    retryForEver,
		DeletePodsFromKubernetesShouldRetryFunc:  retryForEver,
		SyncPodStatusFromProviderShouldRetryFunc: retryForEver,
		SkipDownwardAPIResolution:                true,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("prepare the pod controller: %w", err)
	}
	return pods, mine, nil
}

// withoutManagedFields drops from an object what only the API server has a use for:
// most of a pod's memory, and of the time in which virtual-kubelet compares two
// byte by byte.
func withoutManagedFields(obj any) (any, error) {
	if object, err := meta.Accessor(obj); err == nil {
		object.SetManagedFields(nil)
	}
	return obj, nil
}

// retryForEver retries what failed, as often as it takes, at the limiter's pace.
func retryForEver(context.Context, string, int, time.Time, error) (*time.Duration, error) {
	return nil, nil
}

// retryLimiter delays what failed. virtual-kubelet's default also lets only 10
// items a second through in all, which would pace pod starts.
func retryLimiter() workqueue.TypedRateLimiter[any] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[any](time.Millisecond, 30*time.Second)
}

func (p *Provider) nodeController() (*node.NodeController, error) {
	object := nodespec.Of(p.cfg.Node, p.cfg.Versions, time.Now())
	nodes, err := node.NewNodeController(node.NewNaiveNodeProvider(), object, p.cfg.Client.CoreV1().Nodes(),
		node.WithNodeEnableLeaseV1(nodeutil.NodeLeaseV1Client(p.cfg.Client), node.DefaultLeaseDuration))
	if err != nil {
		return nil, fmt.Errorf("prepare the node controller: %w", err)
	}
	return nodes, nil
}
