package podspec

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Kind is a kind of object that containers start with.
type Kind string

// The kinds there are.
const (
	ConfigMap Kind = "ConfigMap"
	Secret    Kind = "Secret"
)

// Reference names an object in a pod's namespace.
type Reference struct {
	Kind Kind
	Name string
}

// References returns the ConfigMaps and Secrets that the pod's containers start
// with, by their environment or a volume that they mount; each once, in order.
func (s Spec) References() []Reference {
	var refs []Reference
	add := func(kind Kind, name string) { refs = append(refs, Reference{kind, name}) }
	for _, c := range slices.Concat(s.Init, s.Containers) {
		environmentOf(c, add)
		for _, m := range c.VolumeMounts {
			if !IsImplicitToken(m) {
				contentOf(s.Volumes[m.Name], add)
			}
		}
	}
	slices.SortFunc(refs, func(a, b Reference) int {
		return strings.Compare(string(a.Kind)+"/"+a.Name, string(b.Kind)+"/"+b.Name)
	})
	return slices.Compact(refs)
}

func environmentOf(c Container, add func(Kind, string)) {
	for _, from := range c.EnvFrom {
		if from.ConfigMapRef != nil {
			add(ConfigMap, from.ConfigMapRef.Name)
		}
		if from.SecretRef != nil {
			add(Secret, from.SecretRef.Name)
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			continue
		}
		if ref := e.ValueFrom.ConfigMapKeyRef; ref != nil {
			add(ConfigMap, ref.Name)
		}
		if ref := e.ValueFrom.SecretKeyRef; ref != nil {
			add(Secret, ref.Name)
		}
	}
}

func contentOf(v corev1.Volume, add func(Kind, string)) {
	if v.ConfigMap != nil {
		add(ConfigMap, v.ConfigMap.Name)
	}
	if v.Secret != nil {
		add(Secret, v.Secret.SecretName)
	}
	if v.Projected == nil {
		return
	}
	for _, p := range v.Projected.Sources {
		if p.ConfigMap != nil {
			add(ConfigMap, p.ConfigMap.Name)
		}
		if p.Secret != nil {
			add(Secret, p.Secret.Name)
		}
	}
}
