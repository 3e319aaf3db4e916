package e2e

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	"github.com/virtual-kubelet/virtual-kubelet/node"
	"github.com/virtual-kubelet/virtual-kubelet/node/nodeutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/provider/podlife"
	"github.com/wisp-serving/wisp/provider/podstatus"
	"github.com/wisp-serving/wisp/test/platform"
)

const stubName = "stub"

// stub is a node that runs nothing: it says at once that its pods run, with the
// statuses and events of a real one. What it takes for that is the API server's
// and virtual-kubelet's time.
type stub struct {
	client   kubernetes.Interface
	recorder record.EventRecorder
	notify   func(*corev1.Pod)

	mu   sync.Mutex
	pods map[types.NamespacedName]*corev1.Pod
}

// startStub runs a stub node until the test ends, with clients like the node's.
func startStub(t testing.TB, p *platform.Platform) {
	t.Helper()
	limits := config.DefaultNode().Cluster
	cfg := rest.CopyConfig(p.REST)
	cfg.QPS, cfg.Burst = limits.QPS, limits.Burst
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	events, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	// Pods of a node that isn't there are removed.
	if err := p.Client.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: stubName}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: events.CoreV1().Events("")})
	s := &stub{
		client:   client,
		recorder: broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: stubName}),
		pods:     map[types.NamespacedName]*corev1.Pod{},
	}
	mine := informers.NewSharedInformerFactoryWithOptions(client, 0, nodeutil.PodInformerFilter(stubName),
		informers.WithTransform(func(obj any) (any, error) {
			if pod, ok := obj.(*corev1.Pod); ok {
				pod.ManagedFields = nil // as the node does
			}
			return obj, nil
		}))
	unused := informers.NewSharedInformerFactory(client, 0).Core().V1()
	limiter := func() workqueue.TypedRateLimiter[any] {
		return workqueue.NewTypedItemExponentialFailureRateLimiter[any](time.Millisecond, time.Second)
	}
	pods, err := node.NewPodController(node.PodControllerConfig{
		PodClient: client.CoreV1(), PodInformer: mine.Core().V1().Pods(), EventRecorder: &record.FakeRecorder{}, Provider: s,
		ConfigMapInformer: unused.ConfigMaps(), SecretInformer: unused.Secrets(), ServiceInformer: unused.Services(),
		SyncPodsFromKubernetesRateLimiter: limiter(), DeletePodsFromKubernetesRateLimiter: limiter(), SyncPodStatusFromProviderRateLimiter: limiter(),
		SkipDownwardAPIResolution: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	mine.Start(ctx.Done())
	ended := make(chan error, 1)
	go func() { ended <- pods.Run(ctx, 2) }()
	t.Cleanup(func() {
		cancel()
		broadcaster.Shutdown()
		if err := <-ended; err != nil {
			t.Errorf("run the stub node: %v", err)
		}
	})
	<-pods.Ready()
}

func (s *stub) NotifyPods(_ context.Context, notify func(*corev1.Pod)) { s.notify = notify }

func (s *stub) CreatePod(_ context.Context, pod *corev1.Pod) error {
	pod = pod.DeepCopy()
	s.mu.Lock()
	s.pods[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = pod
	s.mu.Unlock()
	for _, reason := range []string{"Pulled", "Created", "Started"} {
		s.recorder.Event(pod, corev1.EventTypeNormal, reason, reason+" container main of a stub node")
	}
	c := podlife.Container{Name: "main"}.Begin("wisp://"+string(pod.UID)+"/main/0", time.Now())
	c.Started, c.Ready = true, true
	s.notify(s.status(pod, corev1.PodRunning, c))
	return nil
}

// status returns the pod with a status as a node of Wisp's makes it.
func (s *stub) status(pod *corev1.Pod, phase corev1.PodPhase, c podlife.Container) *corev1.Pod {
	addresses := []string{"127.0.0.1"}
	s.mu.Lock()
	defer s.mu.Unlock()
	pod.Status = podstatus.Of(pod, podstatus.State{
		Phase: phase, Containers: []podlife.Container{c}, Accepted: c.Run.Started, Now: time.Now(), PodIPs: addresses, HostIPs: addresses,
	})
	return pod.DeepCopy()
}

func (s *stub) UpdatePod(context.Context, *corev1.Pod) error { return nil }

func (s *stub) DeletePod(ctx context.Context, pod *corev1.Pod) error {
	key := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	s.mu.Lock()
	known := s.pods[key]
	delete(s.pods, key)
	s.mu.Unlock()
	if known == nil {
		return errdefs.NotFound("not here")
	}
	s.recorder.Event(pod, corev1.EventTypeNormal, "Killing", "Stopping container main of a stub node")
	last := s.status(known, corev1.PodFailed, podlife.Container{Name: "main"}.End(podlife.Exit{Code: podlife.CodeTerminated, Reason: podlife.ReasonError}, "wisp://"+string(pod.UID)+"/main/0", time.Now()))
	last.ResourceVersion = ""
	options := metav1.NewDeleteOptions(0)
	options.Preconditions = metav1.NewUIDPreconditions(string(pod.UID))
	go func() {
		_, _ = s.client.CoreV1().Pods(pod.Namespace).UpdateStatus(context.WithoutCancel(ctx), last, metav1.UpdateOptions{})
		_ = s.client.CoreV1().Pods(pod.Namespace).Delete(context.WithoutCancel(ctx), pod.Name, *options)
	}()
	return nil
}

func (s *stub) GetPod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if pod := s.pods[types.NamespacedName{Namespace: namespace, Name: name}]; pod != nil {
		return pod.DeepCopy(), nil
	}
	return nil, errdefs.NotFound("not here")
}

func (s *stub) GetPodStatus(ctx context.Context, namespace, name string) (*corev1.PodStatus, error) {
	pod, err := s.GetPod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return &pod.Status, nil
}

func (s *stub) GetPods(context.Context) ([]*corev1.Pod, error) { return nil, nil }
