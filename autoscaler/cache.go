package autoscaler

import (
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/utils/ptr"
	"knative.dev/serving/pkg/apis/serving"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/wisp-serving/wisp/autoscaler/lifecycle"
)

// revisionIndex finds a revision's pods without walking a namespace.
const revisionIndex = "revision"

// cacheOptions keep of each object only what is read: a thousand revisions
// with their pods are to fit into a few megabytes.
func cacheOptions(systemNamespace string) (cache.Options, error) {
	ofRevisions, err := labels.NewRequirement(serving.RevisionLabelKey, selection.Exists, nil)
	if err != nil {
		return cache.Options{}, err
	}
	selector := labels.NewSelector().Add(*ofRevisions)
	return cache.Options{
		DefaultTransform: cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			// Pods and Deployments are read-only here, and often: no copies.
			&corev1.Pod{}:        {Label: selector, Transform: trimPod, UnsafeDisableDeepCopy: ptr.To(true)},
			&appsv1.Deployment{}: {Label: selector, Transform: trimDeployment, UnsafeDisableDeepCopy: ptr.To(true)},
			&corev1.ConfigMap{}:  {Namespaces: map[string]cache.Config{systemNamespace: {}}, Transform: trimConfigMap},
		},
	}, nil
}

func trimMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace:         m.Namespace,
		Name:              m.Name,
		UID:               m.UID,
		ResourceVersion:   m.ResourceVersion,
		Generation:        m.Generation,
		DeletionTimestamp: m.DeletionTimestamp,
		Labels:            map[string]string{serving.RevisionLabelKey: m.Labels[serving.RevisionLabelKey]},
	}
}

// The transforms get a cache.DeletedFinalStateUnknown now and then, which they
// pass as it is.

func trimPod(obj any) (any, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	trimmed := &corev1.Pod{ObjectMeta: trimMeta(&pod.ObjectMeta)}
	trimmed.Spec.NodeName = pod.Spec.NodeName
	trimmed.Status.Phase = pod.Status.Phase
	for _, c := range pod.Status.Conditions {
		switch {
		case c.Type == corev1.PodReady:
			trimmed.Status.Conditions = append(trimmed.Status.Conditions, corev1.PodCondition{Type: c.Type, Status: c.Status})
		case c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse:
			trimmed.Status.Conditions = append(trimmed.Status.Conditions, corev1.PodCondition{
				Type: c.Type, Status: c.Status, Reason: c.Reason, Message: brief(c.Message),
			})
		}
	}
	for _, c := range pod.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && w.Message != "" {
			trimmed.Status.ContainerStatuses = append(trimmed.Status.ContainerStatuses, corev1.ContainerStatus{
				State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: w.Reason, Message: brief(w.Message)}},
			})
		}
	}
	return trimmed, nil
}

// maxMessage is how much is kept of what Kubernetes says is wrong, in bytes.
const maxMessage = 512

func brief(message string) string {
	return strings.ToValidUTF8(message[:min(len(message), maxMessage)], "")
}

func trimDeployment(obj any) (any, error) {
	d, ok := obj.(*appsv1.Deployment)
	if !ok {
		return obj, nil
	}
	trimmed := &appsv1.Deployment{ObjectMeta: trimMeta(&d.ObjectMeta)}
	trimmed.Spec.Replicas = d.Spec.Replicas
	trimmed.Spec.Template.Spec.RuntimeClassName = d.Spec.Template.Spec.RuntimeClassName
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
			trimmed.Status.Conditions = []appsv1.DeploymentCondition{{
				Type: c.Type, Status: c.Status, Reason: c.Reason, Message: brief(c.Message),
			}}
		}
	}
	return trimmed, nil
}

func trimConfigMap(obj any) (any, error) {
	cm, ok := obj.(*corev1.ConfigMap)
	if !ok {
		return obj, nil
	}
	cm.ManagedFields = nil
	if !slices.Contains(configMaps(), cm.Name) {
		cm.Data, cm.BinaryData = nil, nil
	}
	return cm, nil
}

// podReady reports whether a pod takes requests, as Knative counts it.
func podReady(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodRunning && pod.DeletionTimestamp == nil &&
		slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
}

// podTrouble returns what keeps a pod from being ready, if Kubernetes says more
// than that it isn't yet.
func podTrouble(pod *corev1.Pod) lifecycle.Trouble {
	if pod.DeletionTimestamp != nil || podReady(pod) {
		return lifecycle.Trouble{}
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return lifecycle.Trouble{Reason: c.Reason, Message: c.Message}
		}
	}
	for _, c := range pod.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && w.Message != "" {
			return lifecycle.Trouble{Reason: w.Reason, Message: w.Message}
		}
	}
	return lifecycle.Trouble{}
}

// targetTrouble returns why a Deployment can't make pods.
func targetTrouble(d *appsv1.Deployment) lifecycle.Trouble {
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
			return lifecycle.Trouble{Reason: c.Reason, Message: c.Message}
		}
	}
	return lifecycle.Trouble{}
}

// revisionOf is the value of an object in the revisionIndex.
func revisionOf(obj client.Object) []string {
	return []string{obj.GetLabels()[serving.RevisionLabelKey]}
}
