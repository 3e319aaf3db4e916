package autoscaler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"knative.dev/pkg/apis"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"knative.dev/serving/pkg/autoscaler/metrics"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/wisp-serving/wisp/autoscaler/decider"
	"github.com/wisp-serving/wisp/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var sortKey = types.NamespacedName{Namespace: "default", Name: "sort-00001"}

func sortPA(class string) *autoscalingv1alpha1.PodAutoscaler {
	return &autoscalingv1alpha1.PodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: sortKey.Namespace, Name: sortKey.Name, Generation: 1,
			Annotations: map[string]string{autoscaling.ClassAnnotationKey: class, autoscaling.MetricAnnotationKey: ""},
			Labels:      map[string]string{serving.RevisionLabelKey: sortKey.Name},
		},
		Spec: autoscalingv1alpha1.PodAutoscalerSpec{
			ScaleTargetRef: corev1.ObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "sort-00001-deployment"},
		},
	}
}

func sortDeployment(replicas int32) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: sortKey.Namespace, Name: "sort-00001-deployment",
			Labels: map[string]string{serving.RevisionLabelKey: sortKey.Name},
		},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(replicas),
			Template: corev1.PodTemplateSpec{Spec: corev1.PodSpec{RuntimeClassName: ptr.To(config.RuntimeClass)}},
		},
	}
}

func sortPod(name string, ready corev1.ConditionStatus) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: sortKey.Namespace, Name: name,
		Labels: map[string]string{serving.RevisionLabelKey: sortKey.Name},
	}}
	pod.Spec.NodeName = "wisp-0"
	pod.Status.Phase = corev1.PodRunning
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
	return pod
}

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "knative-serving", Name: name}, Data: data}
}

func knativeSettings() []client.Object {
	return []client.Object{
		configMap("config-autoscaler", map[string]string{"stable-window": "30s"}),
		configMap("config-deployment", map[string]string{"queue-sidecar-image": "queue"}),
	}
}

// cluster is a fake API server with a reconciler in front of it, which sees
// every write at once.
type cluster struct {
	t *testing.T
	client.Client
	r *reconciler
	// writes are the writes of the reconciler, in order.
	writes []string
	// statusErr fails writes of a status.
	statusErr error
	// follows is whether another autoscaler leads.
	follows bool
}

func newCluster(t *testing.T, objects ...client.Object) *cluster {
	t.Helper()
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t}
	c.Client = fake.NewClientBuilder().
		WithScheme(scheme).
		WithObjects(append(knativeSettings(), objects...)...).
		WithStatusSubresource(&autoscalingv1alpha1.PodAutoscaler{}).
		WithIndex(&corev1.Pod{}, revisionIndex, revisionOf).
		WithInterceptorFuncs(interceptor.Funcs{SubResourcePatch: c.patchScale, SubResourceUpdate: c.updateStatus, Patch: c.patch}).
		Build()
	log := zap.NewNop().Sugar()
	c.r = &reconciler{client: c.Client, live: c.Client, leads: func() bool { return !c.follows }, log: log, settings: &settings{namespace: "knative-serving", log: log}}
	if err := c.r.settings.load(t.Context(), c.Client); err != nil {
		t.Fatal(err)
	}
	c.r.deciders = decider.New(decider.Config{
		ReadyNodes: func(key types.NamespacedName) ([]string, error) { return c.r.readyNodes(t.Context(), key) },
		Meter:      noop.NewMeterProvider(),
		Log:        log,
	})
	return c
}

// patchScale plays the scale subresource, which the fake client can't patch.
func (c *cluster) patchScale(ctx context.Context, cl client.Client, subResource string, obj client.Object, patch client.Patch, _ ...client.SubResourcePatchOption) error {
	data, err := patch.Data(obj)
	if err != nil {
		return err
	}
	c.writes = append(c.writes, fmt.Sprintf("%s %s %s", subResource, obj.GetName(), data))
	var scale struct{ Spec struct{ Replicas int32 } }
	if err := json.Unmarshal(data, &scale); err != nil {
		return err
	}
	var d appsv1.Deployment
	if err := cl.Get(ctx, client.ObjectKeyFromObject(obj), &d); err != nil {
		return err
	}
	d.Spec.Replicas = &scale.Spec.Replicas
	return cl.Update(ctx, &d)
}

func (c *cluster) patch(ctx context.Context, cl client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
	data, err := patch.Data(obj)
	if err != nil {
		return err
	}
	c.writes = append(c.writes, fmt.Sprintf("patch %s %s", obj.GetName(), data))
	return cl.Patch(ctx, obj, patch, opts...)
}

func (c *cluster) updateStatus(ctx context.Context, cl client.Client, subResource string, obj client.Object, opts ...client.SubResourceUpdateOption) error {
	if pa, ok := obj.(*autoscalingv1alpha1.PodAutoscaler); ok {
		if c.statusErr != nil {
			return c.statusErr
		}
		c.writes = append(c.writes, "status "+active(pa))
	}
	return cl.SubResource(subResource).Update(ctx, obj, opts...)
}

func active(pa *autoscalingv1alpha1.PodAutoscaler) string {
	c := pa.Status.GetCondition(autoscalingv1alpha1.PodAutoscalerConditionActive)
	if c == nil {
		return "none"
	}
	return fmt.Sprint(c.Status, " ", c.Reason)
}

// reconcile reconciles once and checks the writes that it came to.
func (c *cluster) reconcile(when string, writes ...string) reconcile.Result {
	c.t.Helper()
	c.writes = nil
	result, err := c.r.Reconcile(c.t.Context(), reconcile.Request{NamespacedName: sortKey})
	if err != nil {
		c.t.Fatalf("%s: %v", when, err)
	}
	if got, want := fmt.Sprintf("%q", c.writes), fmt.Sprintf("%q", writes); got != want {
		c.t.Errorf("%s: writes are %s, want %s", when, got, want)
	}
	return result
}

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) pa() *autoscalingv1alpha1.PodAutoscaler {
	c.t.Helper()
	var pa autoscalingv1alpha1.PodAutoscaler
	c.must(c.Get(c.t.Context(), sortKey, &pa))
	return &pa
}

const (
	toZero = `scale sort-00001-deployment {"spec":{"replicas":0}}`
	toOne  = `scale sort-00001-deployment {"spec":{"replicas":1}}`
)

// TestLife leads one revision from its creation to zero and back, in fake
// time, with every part but the cluster and the network.
func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, sortPA(config.PodAutoscalerClass), sortDeployment(1))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		changed := make(chan types.NamespacedName, 16)
		go func() { done <- c.r.deciders.Run(ctx, func(key types.NamespacedName) { changed <- key }) }()

		c.reconcile("created", "status Unknown Queued")
		c.reconcile("nothing new")
		pod := sortPod("p1", corev1.ConditionFalse)
		c.must(c.Create(ctx, pod))
		c.reconcile("pod not ready")
		pod.Status.Conditions[0].Status = corev1.ConditionTrue
		c.must(c.Status().Update(ctx, pod))
		c.reconcile("pod ready", "status True ")
		pa := c.pa()
		if !pa.IsReady() || pa.Status.ServiceName != sortKey.Name || pa.Status.GetActualScale() != 1 {
			t.Errorf("status = %+v, want ready, with service name and one pod", pa.Status)
		}

		// 30 s and a tick of zeros. The decision for zero is the only change.
		for range 33 {
			c.r.deciders.Record(sortKey, metrics.Stat{PodName: "wisp-0"})
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if len(changed) != 1 {
			t.Fatalf("%d decisions, want 1", len(changed))
		}
		<-changed
		c.reconcile("idle", "status False NoTraffic")
		c.reconcile("inactive", toZero)
		c.must(c.Delete(ctx, pod))
		c.reconcile("pod gone", "status False NoTraffic")
		c.reconcile("at zero")

		// A request reaches some node. No time passes until the Deployment grows.
		time.Sleep(10500 * time.Millisecond)
		before := time.Now()
		c.r.deciders.Record(sortKey, metrics.Stat{PodName: "wisp-1", AverageConcurrentRequests: 1, RequestCount: 1})
		synctest.Wait()
		if len(changed) != 1 || time.Since(before) != 0 {
			t.Fatalf("%d decisions after %v, want 1 at once", len(changed), time.Since(before))
		}
		c.reconcile("wanted", toOne, "status Unknown Queued")
		c.must(c.Create(ctx, sortPod("p2", corev1.ConditionTrue)))
		c.reconcile("back", "status True ")

		cancel()
		c.must(<-done)
	})
}

func TestOtherClassesAreLeftAlone(t *testing.T) {
	c := newCluster(t, sortPA(autoscaling.KPA), sortDeployment(1))
	c.reconcile("another class")
}

func TestAClassThatChangesIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, sortPA(config.PodAutoscalerClass), sortDeployment(0))
		c.reconcile("ours", "status Unknown Queued")
		pa := c.pa()
		pa.Annotations[autoscaling.ClassAnnotationKey] = autoscaling.KPA
		c.must(c.Update(t.Context(), pa))
		c.reconcile("given away")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c.r.deciders.Record(sortKey, metrics.Stat{PodName: "wisp-0", AverageConcurrentRequests: 1})
		c.must(c.r.deciders.Run(ctx, func(types.NamespacedName) { t.Error("still decided") }))
	})
}

func TestDeletedIsForgotten(t *testing.T) {
	c := newCluster(t)
	c.reconcile("deleted")
}

func TestInvalidMetricIsACondition(t *testing.T) {
	pa := sortPA(config.PodAutoscalerClass)
	pa.Annotations[autoscaling.MetricAnnotationKey] = "cpu"
	c := newCluster(t, pa, sortDeployment(1))
	c.reconcile("invalid", "status False InvalidSetting")
	c.reconcile("still invalid")
	want := `autoscaling.knative.dev/metric = "cpu", must be concurrency or rps`
	if got := c.pa().Status.GetCondition(apis.ConditionReady).Message; got != want {
		t.Errorf("message = %q, want %q", got, want)
	}
}

func TestTargetThatIsNotThereYet(t *testing.T) {
	pa := sortPA(config.PodAutoscalerClass)
	pa.Annotations[autoscaling.MinScaleAnnotationKey] = "1"
	c := newCluster(t, pa)
	c.reconcile("no Deployment", "status Unknown Queued")
	c.must(c.Create(t.Context(), sortDeployment(0)))
	c.reconcile("Deployment", toOne)
}

func TestMinScaleTakesNoPodsAwayOnSilence(t *testing.T) {
	pa := sortPA(config.PodAutoscalerClass)
	pa.Annotations[autoscaling.MinScaleAnnotationKey] = "2"
	c := newCluster(t, pa, sortDeployment(9))
	c.reconcile("nothing known", "status Unknown Queued")
}

func TestConflictIsTriedAgain(t *testing.T) {
	c := newCluster(t, sortPA(config.PodAutoscalerClass), sortDeployment(1))
	c.statusErr = apierrors.NewConflict(autoscalingv1alpha1.Resource("podautoscalers"), sortKey.Name, errors.New("changed"))
	if got := c.reconcile("conflict").RequeueAfter; got != conflictDelay {
		t.Errorf("again after %v, want %v", got, conflictDelay)
	}
}

func TestErrorsNameTheirObject(t *testing.T) {
	c := newCluster(t, sortPA(config.PodAutoscalerClass), sortDeployment(1))
	c.statusErr = errors.New("no route to host")
	_, err := c.r.Reconcile(t.Context(), reconcile.Request{NamespacedName: sortKey})
	if want := "write status of PodAutoscaler default/sort-00001: no route to host"; err == nil || err.Error() != want {
		t.Errorf("err = %v, want %s", err, want)
	}
}

func TestPrimeTracksOurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := sortPA(autoscaling.KPA)
		other.Name = "other"
		c := newCluster(t, sortPA(config.PodAutoscalerClass), sortDeployment(0), other)
		c.must(c.r.prime(t.Context()))
		for _, name := range []string{sortKey.Name, "other"} {
			c.r.deciders.Record(types.NamespacedName{Namespace: "default", Name: name}, metrics.Stat{PodName: "wisp-0", AverageConcurrentRequests: 1})
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var decided []types.NamespacedName
		c.must(c.r.deciders.Run(ctx, func(key types.NamespacedName) { decided = append(decided, key) }))
		if len(decided) != 1 || decided[0] != sortKey {
			t.Errorf("decided %v, want %v only", decided, sortKey)
		}
	})
}

// TestFailover has one autoscaler lead and another follow, which then takes over:
// it takes no pod away, and knows of the panic that it has seen begin.
func TestFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pods := []client.Object{sortPA(config.PodAutoscalerClass), sortDeployment(1), sortPod("p1", corev1.ConditionTrue)}
		c := newCluster(t, pods...)
		c.follows = true
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.r.deciders.Run(ctx, func(types.NamespacedName) {}) }()
		load := func(seconds int, concurrency float64) {
			for range seconds {
				c.r.deciders.Record(sortKey, metrics.Stat{PodName: "wisp-0", AverageConcurrentRequests: concurrency, RequestCount: concurrency})
				time.Sleep(time.Second)
			}
			synctest.Wait()
		}
		c.reconcile("a follower writes nothing")
		load(40, 1)
		load(8, 1000) // a panic: 15 pods where there is one
		c.reconcile("nor under load")
		load(10, 1)

		c.follows = false
		c.reconcile("the leader died in the middle of the panic", `scale sort-00001-deployment {"spec":{"replicas":15}}`, "status True ")
		cancel()
		c.must(<-done)
	})
}

// TestANewLeaderLooksAtAll is about decisions that were made before it led.
func TestANewLeaderLooksAtAll(t *testing.T) {
	other := sortPA(autoscaling.KPA)
	other.Name = "other"
	c := newCluster(t, sortPA(config.PodAutoscalerClass), other)
	due := make(decisions, 2)
	c.r.lookAtAll(t.Context(), due)
	if len(due) != 1 || (<-due).Object != sortKey {
		t.Errorf("looked at %d, want at ours alone", len(due))
	}
}

func TestAFollowerHandsNothingBack(t *testing.T) {
	c := newCluster(t, sortPA(config.PodAutoscalerClass), nativeDeployment())
	c.follows = true
	c.reconcile("native, but not ours to say")
}

func nativeDeployment() *appsv1.Deployment {
	d := sortDeployment(1)
	d.Spec.Template.Spec.RuntimeClassName = nil
	return d
}

// TestWhatIsNotWasmIsHandedBack is a cluster whose default class is Wisp's.
func TestWhatIsNotWasmIsHandedBack(t *testing.T) {
	revision := &servingv1.Revision{ObjectMeta: metav1.ObjectMeta{Namespace: sortKey.Namespace, Name: sortKey.Name}}
	t.Run("by the class and metric of Knative", func(t *testing.T) {
		c := newCluster(t, sortPA(config.PodAutoscalerClass), nativeDeployment(), revision)
		c.reconcile("native", `patch sort-00001 {"metadata":{"annotations":{"autoscaling.knative.dev/class":"kpa.autoscaling.knative.dev","autoscaling.knative.dev/metric":"concurrency"}}}`)
		c.reconcile("handed back")
	})
	t.Run("with the metric that it has", func(t *testing.T) {
		pa := sortPA(config.PodAutoscalerClass)
		pa.Annotations[autoscaling.MetricAnnotationKey] = "rps"
		c := newCluster(t, pa, nativeDeployment(), revision)
		c.reconcile("native", `patch sort-00001 {"metadata":{"annotations":{"autoscaling.knative.dev/class":"kpa.autoscaling.knative.dev"}}}`)
	})
	t.Run("not where the revision asks for Wisp's", func(t *testing.T) {
		asking := revision.DeepCopy()
		asking.Annotations = map[string]string{autoscaling.ClassAnnotationKey: config.PodAutoscalerClass}
		c := newCluster(t, sortPA(config.PodAutoscalerClass), nativeDeployment(), asking)
		c.reconcile("native", "status False InvalidSetting")
		c.reconcile("still native")
		want := `autoscaling.knative.dev/class = wisp.dev, but the runtime class of its pods is "", must be wasm`
		if got := c.pa().Status.GetCondition(apis.ConditionReady).Message; got != want {
			t.Errorf("message = %q, want %q", got, want)
		}
	})
}

// TestStatusSaysWhatPodsWaitFor is a revision at zero whose pods can't come any
// more: what Kubernetes says of them, as soon as it does and when time is up.
func TestStatusSaysWhatPodsWaitFor(t *testing.T) {
	tests := []struct {
		name           string
		target         func(*appsv1.Deployment)
		pod            func(*corev1.Pod)
		reason, detail string
	}{
		{
			name: "quota", reason: "FailedCreate", detail: "exceeded quota",
			target: func(d *appsv1.Deployment) {
				d.Status.Conditions = []appsv1.DeploymentCondition{{Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: "exceeded quota"}}
			},
		},
		{
			name: "no node", reason: "Unschedulable", detail: "0/1 nodes",
			pod: func(p *corev1.Pod) {
				p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/1 nodes"}}
			},
		},
		{
			name: "no image", reason: "ImagePullBackOff", detail: "no such image",
			pod: func(p *corev1.Pod) {
				p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"}}}}
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, pod := sortDeployment(1), sortPod("p1", corev1.ConditionFalse)
			objects := []client.Object{sortPA(config.PodAutoscalerClass), d}
			if tt.target != nil {
				tt.target(d)
			}
			if tt.pod != nil {
				tt.pod(pod)
				objects = append(objects, pod)
			}
			c := newCluster(t, objects...)
			c.reconcile("waiting", "status Unknown "+tt.reason)
			if got := c.pa().Status.GetCondition(apis.ConditionReady).Message; got != tt.detail {
				t.Errorf("message = %q, want %q", got, tt.detail)
			}
		})
	}
}
