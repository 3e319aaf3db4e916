package volume

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/wisp-serving/wisp/provider/podspec"
)

// Source is what volumes are read from.
type Source interface {
	podspec.Source
	// Token returns a token of the pod's ServiceAccount that is bound to the pod and
	// not about to expire, and when another is due.
	Token(ctx context.Context, pod *corev1.Pod, projection *corev1.ServiceAccountTokenProjection) (token string, due time.Time, err error)
}

// reader gathers a volume's files.
type reader struct {
	ctx    context.Context
	pod    *corev1.Pod
	facts  podspec.Facts
	source Source
	files  map[string][]byte
}

func (r *reader) volume(v corev1.Volume) error {
	sources, err := sourcesOf(v)
	if err != nil {
		return err
	}
	for _, source := range sources {
		if err := r.read(source); err != nil {
			return err
		}
	}
	return nil
}

// sourcesOf returns what a volume consists of: each kind but the projected one has
// one source, which a projected volume could have too.
func sourcesOf(v corev1.Volume) ([]corev1.VolumeProjection, error) {
	switch {
	case v.Projected != nil:
		return v.Projected.Sources, nil
	case v.ConfigMap != nil:
		return []corev1.VolumeProjection{{ConfigMap: &corev1.ConfigMapProjection{
			LocalObjectReference: v.ConfigMap.LocalObjectReference, Items: v.ConfigMap.Items, Optional: v.ConfigMap.Optional,
		}}}, nil
	case v.Secret != nil:
		return []corev1.VolumeProjection{{Secret: &corev1.SecretProjection{
			LocalObjectReference: corev1.LocalObjectReference{Name: v.Secret.SecretName}, Items: v.Secret.Items, Optional: v.Secret.Optional,
		}}}, nil
	case v.DownwardAPI != nil:
		return []corev1.VolumeProjection{{DownwardAPI: &corev1.DownwardAPIProjection{Items: v.DownwardAPI.Items}}}, nil
	default:
		return nil, fmt.Errorf("not a kind of volume that a wasm node makes")
	}
}

func (r *reader) read(p corev1.VolumeProjection) error {
	switch {
	case p.ConfigMap != nil:
		return r.configMap(p.ConfigMap.Name, p.ConfigMap.Items, p.ConfigMap.Optional)
	case p.Secret != nil:
		return r.secret(p.Secret.Name, p.Secret.Items, p.Secret.Optional)
	case p.DownwardAPI != nil:
		return r.downward(p.DownwardAPI.Items)
	case p.ServiceAccountToken != nil:
		token, _, err := r.source.Token(r.ctx, r.pod, p.ServiceAccountToken)
		if err != nil {
			return fmt.Errorf("token of ServiceAccount %s: %w", r.pod.Spec.ServiceAccountName, err)
		}
		r.files[p.ServiceAccountToken.Path] = []byte(token)
	}
	return nil
}

func (r *reader) configMap(name string, items []corev1.KeyToPath, optional *bool) error {
	object, err := r.source.ConfigMap(r.ctx, r.pod.Namespace, name)
	if err != nil {
		return missing(err, optional)
	}
	data := make(map[string][]byte, len(object.Data)+len(object.BinaryData))
	for key, value := range object.Data {
		data[key] = []byte(value)
	}
	for key, value := range object.BinaryData {
		data[key] = value
	}
	return r.keys(data, items, optional)
}

func (r *reader) secret(name string, items []corev1.KeyToPath, optional *bool) error {
	object, err := r.source.Secret(r.ctx, r.pod.Namespace, name)
	if err != nil {
		return missing(err, optional)
	}
	return r.keys(object.Data, items, optional)
}

// missing passes over an optional object that isn't there.
func missing(err error, optional *bool) error {
	if optional != nil && *optional && apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// keys adds those that items name under their paths, or all.
func (r *reader) keys(data map[string][]byte, items []corev1.KeyToPath, optional *bool) error {
	if len(items) == 0 {
		for key, value := range data {
			r.files[key] = value
		}
		return nil
	}
	for _, item := range items {
		value, ok := data[item.Key]
		if !ok && (optional == nil || !*optional) {
			return fmt.Errorf("references non-existent key: %s", item.Key)
		}
		if ok {
			r.files[item.Path] = value
		}
	}
	return nil
}

func (r *reader) downward(items []corev1.DownwardAPIVolumeFile) error {
	for _, item := range items {
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = podspec.Field(r.pod, r.facts, item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			value, err = r.resource(item.ResourceFieldRef)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", item.Path, err)
		}
		r.files[item.Path] = []byte(value)
	}
	return nil
}

func (r *reader) resource(ref *corev1.ResourceFieldSelector) (string, error) {
	for i := range r.pod.Spec.Containers {
		if c := &r.pod.Spec.Containers[i]; c.Name == ref.ContainerName {
			return podspec.Resource(c, r.facts, ref)
		}
	}
	return "", fmt.Errorf("containerName = %q, must be a container of the pod", ref.ContainerName)
}
