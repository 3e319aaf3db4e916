package podspec

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Source gives single objects, as a kubelet may read them. A missing one is an
// error of kind apierrors.IsNotFound. What it returns is not changed.
type Source interface {
	ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error)
	Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error)
}

// Facts is what a pod learns of itself on a node.
type Facts struct {
	PodIPs, HostIPs []string
	// Allocatable stands for limits that a container doesn't set.
	Allocatable corev1.ResourceList
	// Services returns the Services of a namespace; nil knows none.
	Services func(namespace string) []*corev1.Service
}

// Resolved is what a container starts with.
type Resolved struct {
	// Command and Args replace the image's ENTRYPOINT and CMD, unless nil.
	Command, Args []string
	// Env is "KEY=value", each key once.
	Env []string
	// Skipped are keys of EnvFrom that can't be names of variables.
	Skipped []string

	values map[string]string
}

// Expand replaces the references in s to the container's variables.
func (r Resolved) Expand(s string) string { return expand(s, r.values) }

// Resolve looks up what the container's environment refers to, in a kubelet's
// order: Services, then EnvFrom, then Env, of which the last of a name holds. A
// missing object or key is an error unless it is optional.
func (c Container) Resolve(ctx context.Context, pod *corev1.Pod, facts Facts, source Source) (Resolved, error) {
	env := environment{
		ctx: ctx, pod: pod, container: c.Container, facts: facts,
		objects: objects{source: source, namespace: pod.Namespace},
		values:  serviceVariables(pod, facts.Services),
	}
	for name := range env.values {
		env.names = append(env.names, name)
	}
	slices.Sort(env.names)
	for i, from := range c.EnvFrom {
		if err := env.addAll(from); err != nil {
			return Resolved{}, fmt.Errorf("%s.envFrom[%d]: %w", c.Path, i, err)
		}
	}
	for i, e := range c.Env {
		if err := env.add(e); err != nil {
			return Resolved{}, fmt.Errorf("%s.env[%d] (%s): %w", c.Path, i, e.Name, err)
		}
	}
	return Resolved{
		Command: expandAll(c.Command, env.values),
		Args:    expandAll(c.Args, env.values),
		Env:     env.entries(),
		Skipped: env.skipped,
		values:  env.values,
	}, nil
}

// environment is one under way.
type environment struct {
	ctx       context.Context
	pod       *corev1.Pod
	container *corev1.Container
	facts     Facts
	objects   objects
	names     []string // in the order in which they came first
	values    map[string]string
	skipped   []string
}

func (e *environment) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *environment) entries() []string {
	entries := make([]string, 0, len(e.names))
	for _, name := range e.names {
		entries = append(entries, name+"="+e.values[name])
	}
	return entries
}

// addAll adds every key of an object, in the keys' order.
func (e *environment) addAll(from corev1.EnvFromSource) error {
	var data map[string]string
	var err error
	switch {
	case from.ConfigMapRef != nil:
		data, err = e.objects.configMap(e.ctx, from.ConfigMapRef.Name, isTrue(from.ConfigMapRef.Optional))
	case from.SecretRef != nil:
		data, err = e.objects.secret(e.ctx, from.SecretRef.Name, isTrue(from.SecretRef.Optional))
	}
	for _, key := range slices.Sorted(maps.Keys(data)) {
		name := from.Prefix + key
		if strings.ContainsAny(name, "=\x00") {
			e.skipped = append(e.skipped, name)
			continue
		}
		e.set(name, data[key])
	}
	return err
}

func (e *environment) add(v corev1.EnvVar) error {
	value, found, err := expand(v.Value, e.values), true, error(nil)
	if from := v.ValueFrom; v.Value == "" && from != nil {
		value, found, err = e.lookUp(from)
	}
	if err == nil && found {
		e.set(v.Name, value)
	}
	return err
}

// lookUp returns false for an optional value that isn't there.
func (e *environment) lookUp(from *corev1.EnvVarSource) (string, bool, error) {
	switch {
	case from.FieldRef != nil:
		value, err := Field(e.pod, e.facts, from.FieldRef.FieldPath)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err := Resource(e.container, e.facts, from.ResourceFieldRef)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		data, err := e.objects.configMap(e.ctx, ref.Name, isTrue(ref.Optional))
		return e.key(data, err, "ConfigMap", ref.Name, ref.Key, isTrue(ref.Optional))
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		data, err := e.objects.secret(e.ctx, ref.Name, isTrue(ref.Optional))
		return e.key(data, err, "Secret", ref.Name, ref.Key, isTrue(ref.Optional))
	default:
		return "", false, nil
	}
}

func (e *environment) key(data map[string]string, err error, kind, name, key string, optional bool) (string, bool, error) {
	if err != nil {
		return "", false, err
	}
	value, ok := data[key]
	if !ok && !optional {
		return "", false, fmt.Errorf("couldn't find key %s in %s %s/%s", key, kind, e.pod.Namespace, name)
	}
	return value, ok, nil
}

// objects remembers what it has read, so that one start sees one version of
// each object.
type objects struct {
	source    Source
	namespace string
	read      map[string]map[string]string
}

func (o *objects) configMap(ctx context.Context, name string, optional bool) (map[string]string, error) {
	return o.get("ConfigMap/"+name, optional, func() (map[string]string, error) {
		object, err := o.source.ConfigMap(ctx, o.namespace, name)
		if err != nil {
			return nil, err
		}
		return object.Data, nil
	})
}

func (o *objects) secret(ctx context.Context, name string, optional bool) (map[string]string, error) {
	return o.get("Secret/"+name, optional, func() (map[string]string, error) {
		object, err := o.source.Secret(ctx, o.namespace, name)
		if err != nil {
			return nil, err
		}
		data := make(map[string]string, len(object.Data))
		for key, value := range object.Data {
			data[key] = string(value)
		}
		return data, nil
	})
}

func (o *objects) get(id string, optional bool, read func() (map[string]string, error)) (map[string]string, error) {
	if data, ok := o.read[id]; ok {
		return data, nil
	}
	data, err := read()
	switch {
	case err == nil:
		if o.read == nil {
			o.read = make(map[string]map[string]string)
		}
		o.read[id] = data
		return data, nil
	case optional && apierrors.IsNotFound(err):
		return nil, nil
	default:
		return nil, err
	}
}

// expandAll expands args, whose references are to the container's variables
// (Container.Args in k8s.io/api/core/v1). nil stays nil.
func expandAll(args []string, known map[string]string) []string {
	args = slices.Clone(args)
	for i, arg := range args {
		args[i] = expand(arg, known)
	}
	return args
}

// expand replaces $(KEY) by a known variable's value; $$ stands for one $; a
// reference to an unknown variable stays as it is (Kubernetes' rules:
// EnvVar.Value in k8s.io/api/core/v1).
func expand(s string, known map[string]string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(s, "$")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		if rest, ok := strings.CutPrefix(after, "$"); ok {
			b.WriteByte('$')
			s = rest
			continue
		}
		name, rest, closed := strings.Cut(strings.TrimPrefix(after, "("), ")")
		value, ok := known[name]
		if !strings.HasPrefix(after, "(") || !closed || !ok {
			b.WriteByte('$')
			s = after
			continue
		}
		b.WriteString(value)
		s = rest
	}
}
