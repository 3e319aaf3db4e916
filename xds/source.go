package xds

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds/translate"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/networking/pkg/apis/networking"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	autoscalingv1alpha1 "knative.dev/serving/pkg/apis/autoscaling/v1alpha1"
	"knative.dev/serving/pkg/apis/serving"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// podRevision is the name of the index of pods by their revision, sliceService of
// that of EndpointSlices by their Service.
const (
	podRevision  = "revision"
	sliceService = "service"
)

// clusterSource reads the cluster from a cache, in the gateway's terms. What it
// returns may be shared with the cache and must not be changed.
type clusterSource struct{ reader client.Reader }

// ingress returns the KIngress of our class, or nil.
func (s clusterSource) ingress(ctx context.Context, key types.NamespacedName) (*v1alpha1.Ingress, error) {
	ing := &v1alpha1.Ingress{}
	found, err := s.get(ctx, key, ing)
	if err != nil || !found {
		return nil, err
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

// backend returns what is known of the Service of the given key, or false where
// there is none. It is a revision of Wisp's where a PodAutoscaler of our class
// has its key; a PodAutoscaler has its revision's name, and so has the Service.
func (s clusterSource) backend(ctx context.Context, key types.NamespacedName) (translate.Backend, bool, error) {
	pa := &autoscalingv1alpha1.PodAutoscaler{}
	if found, err := s.get(ctx, key, pa); err != nil {
		return translate.Backend{}, false, err
	} else if p, ok := protocolOf(pa); found && ok {
		return translate.Backend{Revision: p}, true, nil
	}
	svc := &corev1.Service{}
	found, err := s.get(ctx, key, svc)
	if err != nil || !found {
		return translate.Backend{}, false, err
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return translate.Backend{ExternalName: svc.Spec.ExternalName, Ports: portsOf(svc)}, true, nil
	}
	return translate.Backend{Ports: portsOf(svc)}, true, nil
}

// get reads o, and reports whether it is there.
func (s clusterSource) get(ctx context.Context, key types.NamespacedName, o client.Object) (bool, error) {
	err := s.reader.Get(ctx, key, o)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %T %s: %w", o, key, err)
	}
	return true, nil
}

func portsOf(svc *corev1.Service) []translate.Port {
	var out []translate.Port
	for _, p := range svc.Spec.Ports {
		out = append(out, translate.Port{Name: p.Name, Number: p.Port, Protocol: portProtocol(p)})
	}
	return out
}

// portProtocol returns what a port speaks: by the names that Knative gives its
// ports, or by Kubernetes' own word for it.
func portProtocol(p corev1.ServicePort) translate.Protocol {
	app := ""
	if p.AppProtocol != nil {
		app = *p.AppProtocol
	}
	switch {
	case p.Name == networking.ServicePortNameH2C, p.Name == "h2c", app == appProtocolH2C:
		return translate.H2C
	case p.Name == networking.ServicePortNameHTTPS, app == "https":
		return translate.Encrypted
	default:
		return translate.HTTP1
	}
}

// appProtocolH2C is from KEP-3726.
const appProtocolH2C = "kubernetes.io/h2c"

// certificate returns the certificate chain and the key in a Secret, both PEM, or
// false where there is no such Secret of type kubernetes.io/tls.
func (s clusterSource) certificate(ctx context.Context, key types.NamespacedName) (chain, private []byte, ok bool, err error) {
	secret := &corev1.Secret{}
	found, err := s.get(ctx, key, secret)
	if err != nil || !found || secret.Type != corev1.SecretTypeTLS {
		return nil, nil, false, err
	}
	return secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey], true, nil
}

// addresses returns where a Service's port, named as in its EndpointSlices, is
// served.
func (s clusterSource) addresses(ctx context.Context, key types.NamespacedName, port string) ([]translate.Endpoint, error) {
	list := &discoveryv1.EndpointSliceList{}
	err := s.reader.List(ctx, list, client.InNamespace(key.Namespace), client.MatchingFields{sliceService: key.Name})
	if err != nil {
		return nil, fmt.Errorf("list endpoint slices of service %s: %w", key, err)
	}
	return translate.Addresses(list.Items, port), nil
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

func serviceOf(o client.Object) string { return o.GetLabels()[discoveryv1.LabelServiceName] }

func podReady(conditions []corev1.PodCondition) bool {
	for _, c := range conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// peer is an address behind a port of one of the gateway's own Services.
type peer struct{ port, address string }

// peers returns who is behind one of the gateway's own Services, where it has
// somebody: in a cluster, all Envoys. domain is the Service's name in the cluster.
func (s clusterSource) peers(ctx context.Context, domain string) ([]peer, error) {
	labels := strings.SplitN(domain, ".", 3)
	if len(labels) < 3 || net.ParseIP(domain) != nil {
		return nil, nil
	}
	list := &discoveryv1.EndpointSliceList{}
	err := s.reader.List(ctx, list, client.InNamespace(labels[1]), client.MatchingFields{sliceService: labels[0]})
	if err != nil {
		return nil, fmt.Errorf("list endpoint slices of the gateway's service %s: %w", domain, err)
	}
	var out []peer
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			if ready := e.Conditions.Ready; ready != nil && !*ready || len(e.Addresses) == 0 {
				continue
			}
			for _, p := range slice.Ports {
				if p.Name != nil && p.Port != nil {
					out = append(out, peer{*p.Name, net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*p.Port)))})
				}
			}
		}
	}
	return out, nil
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

// everything returns all that there is to read first. What KIngresses name is
// read with them.
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
	return all, nil
}
