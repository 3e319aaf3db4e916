package xds

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds/translate"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/apis/serving"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

// TestTrimKeepsWhatIsRead reads the same from trimmed objects as from whole ones.
func TestTrimKeepsWhatIsRead(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", Labels: map[string]string{serving.RevisionLabelKey: "r", "other": "x"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}},
		Status: corev1.PodStatus{PodIP: "10.0.0.1", HostIP: "10.0.0.2", Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionTrue, Message: "long"},
		}},
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{config.NodeLabel: "true", "other": "x"}},
		Spec:       corev1.NodeSpec{Unschedulable: true},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "n"}, {Type: corev1.NodeInternalIP, Address: "10.0.0.2"}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
			Images:     []corev1.ContainerImage{{SizeBytes: 1}},
		},
	}
	pa := &autoscalingv1alpha1.PodAutoscaler{ObjectMeta: metav1.ObjectMeta{
		Namespace: "default", Name: "r", Annotations: map[string]string{autoscaling.ClassAnnotationKey: config.PodAutoscalerClass},
	}}
	pa.Spec.ProtocolType = translateH2C
	pa.Spec.ScaleTargetRef.Name = "r-deployment"

	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s", Labels: map[string]string{"other": "x"}}}
	h2c := "kubernetes.io/h2c"
	svc.Spec = corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "h2c", Port: 80, AppProtocol: &h2c, NodePort: 30000}}}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "s-1", Labels: map[string]string{discoveryv1.LabelServiceName: "s", "other": "x"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &svc.Spec.Ports[0].Name, Port: new(int32)}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.7", "10.0.0.8"}, TargetRef: &corev1.ObjectReference{Name: "p"}}},
	}
	*slice.Ports[0].Port = 8080
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"},
		Type:       corev1.SecretTypeTLS,
		Data:       map[string][]byte{corev1.TLSCertKey: []byte("chain"), corev1.TLSPrivateKeyKey: []byte("key"), "ca.crt": []byte("more")},
	}

	ing := newShelf(1).ingresses[shelved(0)]
	ing.CreationTimestamp, ing.Generation = metav1.Unix(1, 0), 3
	ing.Labels = map[string]string{"other": "x"}
	ing.Annotations[config.RoutesAnnotation], ing.Annotations["other"] = "/path", "x"
	ing.Status.InitializeConditions()

	whole := []client.Object{pod, node, pa, svc, slice, secret, ing}
	var trimmed []client.Object
	for i, trim := range []func(any) (any, error){trimPod, trimNode, trimAutoscaler, trimService, trimSlice, trimSecret, trimIngress} {
		o, err := trim(whole[i])
		if err != nil {
			t.Fatal(err)
		}
		trimmed = append(trimmed, o.(client.Object))
	}
	if got := trimmed[0].(*corev1.Pod); len(got.Spec.Containers) > 0 || len(got.Labels) != 1 {
		t.Errorf("pod keeps more than is read: %+v", got)
	}
	if got := trimmed[6].(*v1alpha1.Ingress); len(got.Labels) > 0 || len(got.Annotations) != 2 {
		t.Errorf("KIngress keeps more than is read: %+v", got)
	}
	if diff := cmp.Diff(readAll(t, whole), readAll(t, trimmed)); diff != "" {
		t.Errorf("read (-whole +trimmed):\n%s", diff)
	}
}

// readAll returns what the gateway reads of a revision r in default.
func readAll(t *testing.T, objects []client.Object) []any {
	t.Helper()
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithIndex(&corev1.Pod{}, podRevision, byRevision).
		WithIndex(&discoveryv1.EndpointSlice{}, sliceService, byService).
		Build()
	src := clusterSource{c}
	revision := types.NamespacedName{Namespace: "default", Name: "r"}
	backend, ok, err := src.backend(t.Context(), revision)
	if err != nil {
		t.Fatal(err)
	}
	pods, err := src.pods(t.Context(), revision)
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := src.nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	service := types.NamespacedName{Namespace: "default", Name: "s"}
	other, otherOK, err := src.backend(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	addresses, err := src.addresses(t.Context(), service, "h2c")
	if err != nil {
		t.Fatal(err)
	}
	chain, private, certified, err := src.certificate(t.Context(), service)
	if err != nil {
		t.Fatal(err)
	}
	if !ok || len(pods) != 1 || len(nodes) != 1 || !otherOK || len(addresses) != 1 || !certified {
		t.Errorf("read %v, %v, %v, %v, %v, %v: want one of each", ok, pods, nodes, otherOK, addresses, certified)
	}
	ing, err := src.ingress(t.Context(), shelved(0))
	if err != nil {
		t.Fatal(err)
	}
	if ing == nil {
		t.Fatal("no KIngress of Wisp's class")
	}
	form, refusal := translate.Translate(ing, translate.World{
		Gateway: translate.Gateway{SharedHost: "shared.example", SharedNamespaces: []string{"*"}},
		Backend: func(types.NamespacedName) (translate.Backend, bool) {
			return translate.Backend{Revision: translate.HTTP1}, true
		},
	})
	return []any{backend, pods, nodes, other, addresses, chain, private, form, refusal, ing.Status, ing.Generation, ing.CreationTimestamp}
}

func TestPodsThatTakeNoRequests(t *testing.T) {
	now := metav1.Now()
	base := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", Labels: map[string]string{serving.RevisionLabelKey: "r"}}}
	base.Status.PodIP = "10.0.0.1"
	base.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	tests := map[string]func(*corev1.Pod){
		"not ready":    func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse },
		"no condition": func(p *corev1.Pod) { p.Status.Conditions = nil },
		"no address":   func(p *corev1.Pod) { p.Status.PodIP = "" },
		"going away": func(p *corev1.Pod) {
			p.DeletionTimestamp, p.Finalizers = &now, []string{"wisp.dev/test"}
		},
		"of another revision": func(p *corev1.Pod) { p.Labels[serving.RevisionLabelKey] = "s" },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			p := base.DeepCopy()
			spoil(p)
			scheme, err := newScheme()
			if err != nil {
				t.Fatal(err)
			}
			c := fake.NewClientBuilder().WithScheme(scheme).WithObjects(p).WithIndex(&corev1.Pod{}, podRevision, byRevision).Build()
			got, err := clusterSource{c}.pods(t.Context(), types.NamespacedName{Namespace: "default", Name: "r"})
			if err != nil || len(got) > 0 {
				t.Errorf("pods are %v, %v; want none", got, err)
			}
		})
	}
}

func TestNodesThatAreNotAsked(t *testing.T) {
	base := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{config.NodeLabel: "true"}}}
	base.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}}
	base.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	tests := map[string]func(*corev1.Node){
		"not ready":               func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown },
		"no wasm node":            func(n *corev1.Node) { n.Labels = nil },
		"no address":              func(n *corev1.Node) { n.Status.Addresses = nil },
		"what Envoy would refuse": func(n *corev1.Node) { n.Status.Addresses[0].Address = "10.0.0.300" },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			n := base.DeepCopy()
			spoil(n)
			scheme, err := newScheme()
			if err != nil {
				t.Fatal(err)
			}
			got, err := clusterSource{fake.NewClientBuilder().WithScheme(scheme).WithObjects(n).Build()}.nodes(t.Context())
			if err != nil || len(got) > 0 {
				t.Errorf("nodes are %v, %v; want none", got, err)
			}
		})
	}
}

func TestWatchNamesBothRevisionsOfAPod(t *testing.T) {
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	informers := &informertest.FakeInformers{Scheme: scheme}
	in := newInbox()
	if err := watch(t.Context(), informers, in); err != nil {
		t.Fatal(err)
	}
	pods, err := informers.FakeInformerFor(t.Context(), &corev1.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	of := func(revision string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", Labels: map[string]string{serving.RevisionLabelKey: revision}}}
	}
	pods.Update(of("r"), of("s"))
	want := map[types.NamespacedName]bool{{Namespace: "default", Name: "r"}: true, {Namespace: "default", Name: "s"}: true}
	if diff := cmp.Diff(want, in.take().services); diff != "" {
		t.Errorf("revisions (-want +got):\n%s", diff)
	}
}
