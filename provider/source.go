package provider

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/wisp-serving/wisp/provider/podspec"
)

// source reads single objects as the kubelet: the Node authorizer grants those
// that a pod of this node refers to, and no list of others.
type source struct{ client kubernetes.Interface }

var _ podspec.Source = source{}

func (s source) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	return s.client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (s source) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	return s.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
}

// facts is what pods learn of the node.
func (p *Provider) facts() podspec.Facts {
	return podspec.Facts{
		PodIPs:  p.addresses(),
		HostIPs: p.addresses(),
		Allocatable: corev1.ResourceList{
			corev1.ResourceCPU:    p.cfg.Node.Capacity.CPU,
			corev1.ResourceMemory: p.cfg.Node.Capacity.Memory,
		},
	}
}

// addresses are the node's, which its pods share.
func (p *Provider) addresses() []string { return []string{p.cfg.Node.Address} }
