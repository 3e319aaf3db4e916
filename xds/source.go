package xds

import (
	"context"
	"fmt"
	"net"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds/translate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/apis/serving"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// podRevision is the name of the index of pods by their revision.
const podRevision = "revision"

// clusterSource reads the cluster from a cache, in the gateway's terms. What it
// returns may be shared with the cache and must not be changed.
type clusterSource struct{ reader client.Reader }

// ingress returns the KIngress of our class, or nil.
func (s clusterSource) ingress(ctx context.Context, key types.NamespacedName) (*v1alpha1.Ingress, error) {
	ing := &v1alpha1.Ingress{}
	err := s.reader.Get(ctx, key, ing)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read ingress %s: %w", key, err)
	}
	if !ours(ing) {
		return nil, nil
	}
	return ing, nil
}

// ours reports whether ing is of our class and not going away.
func ours(ing client.Object) bool {
	return networking.GetIngressClass(ing.GetAnnotations()) == config.IngressClass && ing.GetDeletionTimestamp() == nil
}

// protocol returns what a revision speaks, or false where its PodAutoscaler
// isn't of our class. A PodAutoscaler has its revision's name.
func (s clusterSource) protocol(ctx context.Context, revision types.NamespacedName) (translate.Protocol, bool, error) {
	pa := &autoscalingv1alpha1.PodAutoscaler{}
	err := s.reader.Get(ctx, revision, pa)
	if apierrors.IsNotFound(err) {
		return "", false, nil
	}
	if err != nil {
		return "", false, fmt.Errorf("read pod autoscaler %s: %w", revision, err)
	}
	p, ok := protocolOf(pa)
	return p, ok, nil
}

func protocolOf(pa *autoscalingv1alpha1.PodAutoscaler) (translate.Protocol, bool) {
	if pa.Class() != config.PodAutoscalerClass {
		return "", false
	}
	if pa.Spec.ProtocolType == networking.ProtocolH2C {
		return translate.H2C, true
	}
	return translate.HTTP1, true
}

// pods returns a revision's pods that take requests.
func (s clusterSource) pods(ctx context.Context, revision types.NamespacedName) ([]translate.Pod, error) {
	list := &corev1.PodList{}
	err := s.reader.List(ctx, list, client.InNamespace(revision.Namespace), client.MatchingFields{podRevision: revision.Name})
	if err != nil {
		return nil, fmt.Errorf("list pods of revision %s: %w", revision, err)
	}
	var out []translate.Pod
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil && p.Status.PodIP != "" && podReady(p.Status.Conditions) {
			out = append(out, translate.Pod{IP: p.Status.PodIP, NodeIP: p.Status.HostIP})
		}
	}
	return out, nil
}

func revisionOf(o client.Object) string { return o.GetLabels()[serving.RevisionLabelKey] }

func podReady(conditions []corev1.PodCondition) bool {
	for _, c := range conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// nodes returns the ready wasm nodes.
func (s clusterSource) nodes(ctx context.Context) ([]translate.Node, error) {
	list := &corev1.NodeList{}
	if err := s.reader.List(ctx, list, client.MatchingLabels{config.NodeLabel: "true"}); err != nil {
		return nil, fmt.Errorf("list wasm nodes: %w", err)
	}
	var out []translate.Node
	for _, n := range list.Items {
		if ip := internalIP(n.Status.Addresses); ip != "" && n.DeletionTimestamp == nil && nodeReady(n.Status.Conditions) {
			out = append(out, translate.Node{Name: n.Name, IP: ip, Cordoned: n.Spec.Unschedulable})
		}
	}
	return out, nil
}

// internalIP returns the first internal address, or nothing. The API server takes
// any text for one; Envoy refuses endpoints with such a text, and with them those
// of all other revisions in the same response.
func internalIP(addresses []corev1.NodeAddress) string {
	for _, a := range addresses {
		if a.Type == corev1.NodeInternalIP && net.ParseIP(a.Address) != nil {
			return a.Address
		}
	}
	return ""
}

func nodeReady(conditions []corev1.NodeCondition) bool {
	for _, c := range conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// everything returns all keys there are, for the first reading.
func (s clusterSource) everything(ctx context.Context) (changes, error) {
	all := noChanges()
	all.nodes = true
	ingresses := &v1alpha1.IngressList{}
	if err := s.reader.List(ctx, ingresses); err != nil {
		return all, fmt.Errorf("list ingresses: %w", err)
	}
	for i := range ingresses.Items {
		all.ingresses[client.ObjectKeyFromObject(&ingresses.Items[i])] = true
	}
	autoscalers := &autoscalingv1alpha1.PodAutoscalerList{}
	if err := s.reader.List(ctx, autoscalers); err != nil {
		return all, fmt.Errorf("list pod autoscalers: %w", err)
	}
	for i := range autoscalers.Items {
		all.revisions[client.ObjectKeyFromObject(&autoscalers.Items[i])] = true
	}
	return all, nil
}
