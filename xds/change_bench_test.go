package xds

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"runtime"
	"testing"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds/server"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/apis/serving"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// BenchmarkChange measures what one change costs the gateway among many services: a
// pod that comes or goes, and a KIngress that leads to another revision. No Envoy is
// connected.
func BenchmarkChange(b *testing.B) {
	for _, services := range []int{10, 100, 1000} {
		s := newShelf(services)
		g := s.gateway(b)
		b.Run(fmt.Sprintf("endpoints/services=%d", services), func(b *testing.B) {
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				s.pods[shelved(0, 1)] = readyPods(n % 2)
				s.absorb(b, g, func(c *changes) { c.services[shelved(0, 1)] = true })
			}
		})
		b.Run(fmt.Sprintf("routes/services=%d", services), func(b *testing.B) {
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				ing := s.ingress(0, 1+n%2)
				ing.Generation = int64(n + 2)
				s.ingresses[shelved(0)] = ing
				s.absorb(b, g, func(c *changes) { c.ingresses[shelved(0)] = true })
			}
		})
	}
}

// shelf is a cluster of services in memory, each with two revisions, of which the
// first one is led to and has a pod.
type shelf struct {
	ingresses   map[types.NamespacedName]*v1alpha1.Ingress
	autoscalers map[types.NamespacedName]*autoscalingv1alpha1.PodAutoscaler
	pods        map[types.NamespacedName][]corev1.Pod
	node        corev1.Node
}

// shelved returns the name of a service, or of one of its revisions.
func shelved(service int, revision ...int) types.NamespacedName {
	name := fmt.Sprintf("svc-%d", service)
	for _, r := range revision {
		name = fmt.Sprintf("%s-%05d", name, r)
	}
	return types.NamespacedName{Namespace: namespace, Name: name}
}

func newShelf(services int) *shelf {
	s := &shelf{
		ingresses:   map[types.NamespacedName]*v1alpha1.Ingress{},
		autoscalers: map[types.NamespacedName]*autoscalingv1alpha1.PodAutoscaler{},
		pods:        map[types.NamespacedName][]corev1.Pod{},
	}
	s.node.Name, s.node.Labels = "node-a", map[string]string{config.NodeLabel: "true"}
	s.node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}
	s.node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for i := range services {
		s.ingresses[shelved(i)] = s.ingress(i, 1)
		for _, r := range []int{1, 2} {
			pa := &autoscalingv1alpha1.PodAutoscaler{ObjectMeta: meta(shelved(i, r).Name)}
			pa.Annotations = map[string]string{autoscaling.ClassAnnotationKey: config.PodAutoscalerClass}
			pa.Spec.ProtocolType = networking.ProtocolHTTP1
			s.autoscalers[shelved(i, r)] = pa
		}
		s.pods[shelved(i, 1)] = readyPods(1)
	}
	return s
}

// ingress returns a service's KIngress, which leads to one of its revisions.
func (s *shelf) ingress(service, revision int) *v1alpha1.Ingress {
	ing := &v1alpha1.Ingress{ObjectMeta: meta(shelved(service).Name)}
	ing.Annotations = map[string]string{networking.IngressClassAnnotationKey: config.IngressClass}
	at := path(to(shelved(service, revision).Name))
	ing.Spec.Rules = []v1alpha1.IngressRule{
		rule("External", ing.Name+".default.example.com", at),
		rule("Local", ing.Name+".default.svc.cluster.local", at),
	}
	ing.Spec.Rules[1].Hosts = append(ing.Spec.Rules[1].Hosts, ing.Name+".default.svc", ing.Name+".default")
	return ing
}

func readyPods(n int) []corev1.Pod {
	pods := make([]corev1.Pod, n)
	for i := range pods {
		pods[i].Status.PodIP, pods[i].Status.HostIP = "192.0.2.1", "192.0.2.1"
		pods[i].Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	return pods
}

// gateway returns a gateway that has published all of the shelf.
func (s *shelf) gateway(b *testing.B) *gateway {
	b.Helper()
	bed := newBed(b, "127.117.0")
	bed.srv = server.New(serverConfig(bed.cfg), bed.metrics, zap.NewNop().Sugar())
	g, err := newGateway(bed.cfg, deps{
		source: clusterSource{s}, server: bed.srv, metrics: bed.metrics, log: zap.NewNop().Sugar(),
		notify: func(context.Context, map[types.NamespacedName]bool) {},
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := g.seed(b.Context()); err != nil {
		b.Fatal(err)
	}
	return g
}

// absorb has g take a change and publish what follows.
func (s *shelf) absorb(b *testing.B, g *gateway, change func(*changes)) {
	c := noChanges()
	change(&c)
	if err := g.absorb(b.Context(), c); err != nil {
		b.Fatal(err)
	}
	if err := g.advance(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// Get implements client.Reader.
func (s *shelf) Get(_ context.Context, key client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	switch o := o.(type) {
	case *v1alpha1.Ingress:
		if ing, ok := s.ingresses[key]; ok {
			*o = *ing
			return nil
		}
	case *autoscalingv1alpha1.PodAutoscaler:
		if pa, ok := s.autoscalers[key]; ok {
			*o = *pa
			return nil
		}
	}
	return apierrors.NewNotFound(schema.GroupResource{}, key.Name)
}

// List implements client.Reader.
func (s *shelf) List(_ context.Context, list client.ObjectList, options ...client.ListOption) error {
	o := (&client.ListOptions{}).ApplyOptions(options)
	switch list := list.(type) {
	case *v1alpha1.IngressList:
		for _, ing := range s.ingresses {
			list.Items = append(list.Items, *ing)
		}
	case *corev1.NodeList:
		list.Items = []corev1.Node{s.node}
	case *corev1.PodList:
		revision, _ := o.FieldSelector.RequiresExactMatch(podRevision)
		list.Items = s.pods[types.NamespacedName{Namespace: o.Namespace, Name: revision}]
	}
	return nil
}

// BenchmarkHeld measures what a gateway holds for each service beside its copies of
// the cluster's objects, with no Envoy connected.
func BenchmarkHeld(b *testing.B) {
	const services = 1000  // however large b.N is: no time is measured
	newShelf(1).gateway(b) // what packages hold once they are used
	s := newShelf(services)
	before := held()
	g := s.gateway(b)
	b.ReportMetric(float64(held()-before)/services, "B/service")
	runtime.KeepAlive(g)
	runtime.KeepAlive(s)
}

// BenchmarkCopies measures what the caches of a gateway hold of the objects that
// Knative makes for a service with one revision that has no pod.
func BenchmarkCopies(b *testing.B) {
	const services = 1000 // however large b.N is: no time is measured
	caches, err := cacheOptions()
	if err != nil {
		b.Fatal(err)
	}
	trims := map[reflect.Type]toolscache.TransformFunc{}
	for kind, options := range caches.ByObject {
		trims[reflect.TypeOf(kind)] = options.Transform
	}
	before := held()
	var copies []any
	for i := range services {
		for _, o := range knativeObjects(b, i) {
			o, err := trims[reflect.TypeOf(o)](o)
			if err != nil {
				b.Fatal(err)
			}
			copies = append(copies, o)
		}
	}
	b.ReportMetric(float64(held()-before)/services, "B/service")
	runtime.KeepAlive(copies)
}

// knativeObjects returns a service's objects as they come from the API server, each
// string of its own.
func knativeObjects(b *testing.B, service int) []client.Object {
	b.Helper()
	ing := newShelf(0).ingress(service, 1)
	revision := shelved(service, 1).Name
	ing.Status = ready(ing, domains{external: "wisp-gateway.wisp-system.svc.cluster.local", internal: "wisp-gateway-internal.wisp-system.svc.cluster.local"})
	pa := &autoscalingv1alpha1.PodAutoscaler{ObjectMeta: meta(revision)}
	pa.Annotations = map[string]string{autoscaling.ClassAnnotationKey: config.PodAutoscalerClass}
	objects := []client.Object{ing, pa}
	for _, name := range []string{ing.Name, revision, revision + "-private"} {
		svc := &corev1.Service{ObjectMeta: meta(name)}
		svc.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "https", Port: 443}}
		slice := &discoveryv1.EndpointSlice{ObjectMeta: meta(name + "-x7k2p")}
		slice.Labels = map[string]string{discoveryv1.LabelServiceName: name}
		objects = append(objects, svc, slice)
	}
	for i, o := range objects {
		o.SetUID(types.UID(fmt.Sprintf("0b1c7a52-3f5e-4f0e-9d5b-%012d", i)))
		o.SetResourceVersion("1234567")
		o.SetLabels(labels.Merge(o.GetLabels(), map[string]string{
			serving.ConfigurationLabelKey: ing.Name, serving.ServiceLabelKey: ing.Name, serving.RevisionUID: string(o.GetUID()), serving.RevisionLabelKey: revision,
		}))
		o.SetAnnotations(labels.Merge(o.GetAnnotations(), map[string]string{serving.CreatorAnnotation: "kubernetes-admin", serving.UpdaterAnnotation: "kubernetes-admin"}))
		o.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "serving.knative.dev/v1", Kind: "Route", Name: ing.Name, UID: o.GetUID()}})
		raw, err := json.Marshal(o)
		if err != nil {
			b.Fatal(err)
		}
		fresh := reflect.New(reflect.TypeOf(o).Elem()).Interface().(client.Object)
		if err := json.Unmarshal(raw, fresh); err != nil {
			b.Fatal(err)
		}
		objects[i] = fresh
	}
	return objects
}
