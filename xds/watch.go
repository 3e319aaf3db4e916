package xds

import (
	"context"
	"fmt"

	"github.com/wisp-serving/wisp/config"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	"knative.dev/serving/pkg/apis/autoscaling"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/apis/serving"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func newScheme() (*k8sruntime.Scheme, error) {
	scheme := k8sruntime.NewScheme()
	for _, add := range []func(*k8sruntime.Scheme) error{
		corev1.AddToScheme, discoveryv1.AddToScheme, v1alpha1.AddToScheme, autoscalingv1alpha1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register API types: %w", err)
		}
	}
	return scheme, nil
}

// cacheOptions limits the caches to what the gateway reads: it holds every pod of
// every revision.
func cacheOptions() (cache.Options, error) {
	ofRevision, err := labels.NewRequirement(serving.RevisionLabelKey, selection.Exists, nil)
	if err != nil {
		return cache.Options{}, fmt.Errorf("select pods: %w", err)
	}
	shared := true // nothing that is read from the cache is changed
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}: {
				Label:                 labels.NewSelector().Add(*ofRevision),
				Transform:             trimPod,
				UnsafeDisableDeepCopy: &shared,
			},
			&corev1.Node{}: {
				Label:                 labels.SelectorFromSet(labels.Set{config.NodeLabel: "true"}),
				Transform:             trimNode,
				UnsafeDisableDeepCopy: &shared,
			},
			&corev1.Service{}: {
				Transform:             trimService,
				UnsafeDisableDeepCopy: &shared,
			},
			&discoveryv1.EndpointSlice{}: {
				Transform:             trimSlice,
				UnsafeDisableDeepCopy: &shared,
			},
			&corev1.Secret{}: {
				// No other Secret is ever sent here.
				Field:                 fields.OneTermEqualSelector("type", string(corev1.SecretTypeTLS)),
				Transform:             trimSecret,
				UnsafeDisableDeepCopy: &shared,
			},
			&v1alpha1.Ingress{}: {
				Transform: trimIngress,
			},
			&autoscalingv1alpha1.PodAutoscaler{}: {
				Transform:             trimAutoscaler,
				UnsafeDisableDeepCopy: &shared,
			},
		},
	}, nil
}

func trimPod(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	return &corev1.Pod{
		ObjectMeta: trimMeta(p, map[string]string{serving.RevisionLabelKey: revisionOf(p)}, nil),
		Status: corev1.PodStatus{
			PodIP:      p.Status.PodIP,
			HostIP:     p.Status.HostIP,
			Conditions: readyOnly(p.Status.Conditions),
		},
	}, nil
}

func readyOnly(conditions []corev1.PodCondition) []corev1.PodCondition {
	for _, c := range conditions {
		if c.Type == corev1.PodReady {
			return []corev1.PodCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return nil
}

func trimNode(o any) (any, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	out := &corev1.Node{
		ObjectMeta: trimMeta(n, map[string]string{config.NodeLabel: n.Labels[config.NodeLabel]}, nil),
		Spec:       corev1.NodeSpec{Unschedulable: n.Spec.Unschedulable},
		Status:     corev1.NodeStatus{Addresses: n.Status.Addresses},
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			out.Status.Conditions = []corev1.NodeCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return out, nil
}

// trimIngress leaves out what is about the object: labels, owners, and all annotations
// but two.
func trimIngress(o any) (any, error) {
	ing, ok := o.(*v1alpha1.Ingress)
	if !ok {
		return o, nil
	}
	annotations := map[string]string{}
	if class := networking.GetIngressClass(ing.Annotations); class != "" {
		annotations[networking.IngressClassAnnotationKey] = class
	}
	if places, ok := ing.Annotations[config.RoutesAnnotation]; ok {
		annotations[config.RoutesAnnotation] = places
	}
	out := &v1alpha1.Ingress{ObjectMeta: trimMeta(ing, nil, annotations), Spec: ing.Spec, Status: ing.Status}
	out.Generation, out.CreationTimestamp = ing.Generation, ing.CreationTimestamp
	return out, nil
}

func trimAutoscaler(o any) (any, error) {
	pa, ok := o.(*autoscalingv1alpha1.PodAutoscaler)
	if !ok {
		return o, nil
	}
	return &autoscalingv1alpha1.PodAutoscaler{
		ObjectMeta: trimMeta(pa, nil, map[string]string{autoscaling.ClassAnnotationKey: pa.Class()}),
		Spec:       autoscalingv1alpha1.PodAutoscalerSpec{ProtocolType: pa.Spec.ProtocolType},
	}, nil
}

func trimService(o any) (any, error) {
	s, ok := o.(*corev1.Service)
	if !ok {
		return o, nil
	}
	out := &corev1.Service{ObjectMeta: trimMeta(s, nil, nil)}
	out.Spec.Type, out.Spec.ExternalName = s.Spec.Type, s.Spec.ExternalName
	for _, p := range s.Spec.Ports {
		out.Spec.Ports = append(out.Spec.Ports, corev1.ServicePort{Name: p.Name, Port: p.Port, AppProtocol: p.AppProtocol})
	}
	return out, nil
}

func trimSlice(o any) (any, error) {
	s, ok := o.(*discoveryv1.EndpointSlice)
	if !ok {
		return o, nil
	}
	out := &discoveryv1.EndpointSlice{
		ObjectMeta:  trimMeta(s, map[string]string{discoveryv1.LabelServiceName: serviceOf(s)}, nil),
		AddressType: s.AddressType,
		Ports:       s.Ports,
	}
	for _, e := range s.Endpoints {
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{Addresses: e.Addresses[:min(1, len(e.Addresses))], Conditions: e.Conditions})
	}
	return out, nil
}

func trimSecret(o any) (any, error) {
	s, ok := o.(*corev1.Secret)
	if !ok {
		return o, nil
	}
	return &corev1.Secret{
		ObjectMeta: trimMeta(s, nil, nil),
		Type:       s.Type,
		Data: map[string][]byte{
			corev1.TLSCertKey:       s.Data[corev1.TLSCertKey],
			corev1.TLSPrivateKeyKey: s.Data[corev1.TLSPrivateKeyKey],
		},
	}, nil
}

func trimMeta(o client.Object, labels, annotations map[string]string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace:         o.GetNamespace(),
		Name:              o.GetName(),
		UID:               o.GetUID(),
		ResourceVersion:   o.GetResourceVersion(),
		DeletionTimestamp: o.GetDeletionTimestamp(),
		Labels:            labels,
		Annotations:       annotations,
	}
}

// watch makes the caches' events name in the inbox what they are about.
func watch(ctx context.Context, c cache.Cache, in *inbox) error {
	if err := c.IndexField(ctx, &corev1.Pod{}, podRevision, byRevision); err != nil {
		return fmt.Errorf("index pods by revision: %w", err)
	}
	if err := c.IndexField(ctx, &discoveryv1.EndpointSlice{}, sliceService, byService); err != nil {
		return fmt.Errorf("index endpoint slices by service: %w", err)
	}
	service := func(name func(client.Object) string) func(*changes, client.Object) {
		return func(c *changes, o client.Object) {
			c.services[types.NamespacedName{Namespace: o.GetNamespace(), Name: name(o)}] = true
		}
	}
	named := map[client.Object]func(*changes, client.Object){
		&v1alpha1.Ingress{}:                  func(c *changes, o client.Object) { c.ingresses[client.ObjectKeyFromObject(o)] = true },
		&autoscalingv1alpha1.PodAutoscaler{}: service(client.Object.GetName),
		&corev1.Service{}:                    service(client.Object.GetName),
		&discoveryv1.EndpointSlice{}:         service(serviceOf),
		&corev1.Pod{}:                        service(revisionOf),
		&corev1.Node{}:                       func(c *changes, _ client.Object) { c.nodes = true },
		&corev1.Secret{}:                     func(c *changes, o client.Object) { c.secrets[client.ObjectKeyFromObject(o)] = true },
	}
	for kind, name := range named {
		informer, err := c.GetInformer(ctx, kind)
		if err != nil {
			return fmt.Errorf("watch %T: %w", kind, err)
		}
		put := func(o any) {
			if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
				o = gone.Obj
			}
			if obj, ok := o.(client.Object); ok {
				in.put(func(c *changes) { name(c, obj) })
			}
		}
		_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
			AddFunc:    put,
			UpdateFunc: func(was, is any) { put(was); put(is) }, // a pod can change its revision
			DeleteFunc: put,
		})
		if err != nil {
			return fmt.Errorf("watch %T: %w", kind, err)
		}
	}
	return nil
}

func byRevision(o client.Object) []string { return []string{revisionOf(o)} }

func byService(o client.Object) []string { return []string{serviceOf(o)} }
