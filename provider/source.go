package provider

import (
	"context"
	"maps"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/provider/volume"
)

// source reads single objects as the kubelet: the Node authorizer grants those
// that a pod of this node refers to, and no list of others. It is safe for
// concurrent use.
type source struct {
	client kubernetes.Interface

	mu     sync.Mutex
	tokens map[tokenKey]token
}

var (
	_ podspec.Source = (*source)(nil)
	_ volume.Source  = (*source)(nil)
)

func newSource(client kubernetes.Interface) *source {
	return &source{client: client, tokens: make(map[tokenKey]token)}
}

func (s *source) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	return s.client.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
}

func (s *source) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	return s.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
}

type tokenKey struct {
	pod      types.UID
	audience string
	seconds  int64
}

type token struct {
	text string
	due  time.Time
}

// Token implements volume.Source. A token is requested anew when four fifths of
// its time are over, as a kubelet does.
func (s *source) Token(ctx context.Context, pod *corev1.Pod, p *corev1.ServiceAccountTokenProjection) (string, time.Time, error) {
	key := tokenKey{pod: pod.UID, audience: p.Audience}
	if p.ExpirationSeconds != nil {
		key.seconds = *p.ExpirationSeconds
	}
	now := time.Now()
	s.mu.Lock()
	held, ok := s.tokens[key]
	s.mu.Unlock()
	if ok && now.Before(held.due) {
		return held.text, held.due, nil
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: p.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
	}}
	if p.Audience != "" {
		request.Spec.Audiences = []string{p.Audience}
	}
	answer, err := s.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return "", time.Time{}, err
	}
	lifetime := answer.Status.ExpirationTimestamp.Sub(now)
	held = token{text: answer.Status.Token, due: now.Add(lifetime * 4 / 5)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[key] = held
	return held.text, held.due, nil
}

// forget drops the tokens of a pod.
func (s *source) forget(pod types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.tokens, func(k tokenKey, _ token) bool { return k.pod == pod })
}

// once is a source that reads each object once.
type once struct {
	*source
	configMaps map[types.NamespacedName]*corev1.ConfigMap
	secrets    map[types.NamespacedName]*corev1.Secret
}

func (s *source) once() *once {
	return &once{source: s, configMaps: map[types.NamespacedName]*corev1.ConfigMap{}, secrets: map[types.NamespacedName]*corev1.Secret{}}
}

func (o *once) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	return read(ctx, o.configMaps, o.source.ConfigMap, namespace, name)
}

func (o *once) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	return read(ctx, o.secrets, o.source.Secret, namespace, name)
}

func read[T any](ctx context.Context, known map[types.NamespacedName]*T, get func(context.Context, string, string) (*T, error), namespace, name string) (*T, error) {
	key := types.NamespacedName{Namespace: namespace, Name: name}
	if object, ok := known[key]; ok {
		return object, nil
	}
	object, err := get(ctx, namespace, name)
	if err == nil {
		known[key] = object
	}
	return object, err
}

// facts is what pods learn of the node.
func (p *Provider) facts() podspec.Facts {
	return podspec.Facts{
		PodIPs:  p.addresses(),
		HostIPs: p.addresses(),
		Services: func(namespace string) []*corev1.Service {
			all, _ := p.services.Services(namespace).List(labels.Everything()) // from memory: it never fails
			return all
		},
		Allocatable: corev1.ResourceList{
			corev1.ResourceCPU:    p.cfg.Node.Capacity.CPU,
			corev1.ResourceMemory: p.cfg.Node.Capacity.Memory,
		},
	}
}

// addresses are the node's, which its pods share.
func (p *Provider) addresses() []string { return []string{p.cfg.Node.Address} }
