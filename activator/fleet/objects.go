package fleet

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/pkg/kmeta"
	"knative.dev/serving/pkg/apis/serving"

	"github.com/wisp-serving/wisp/config"
)

// queueProxy is the name of Knative's sidecar (QueueContainerName in serving
// pkg/reconciler/revision/resources).
const queueProxy = "queue-proxy"

// deployment is what is kept of a revision's Deployment: a thousand idle ones
// live in this cache.
type deployment struct {
	metav1.ObjectMeta
	revision Revision
	// template tells its pod template from others.
	template string
	// refused is why it can't create pods, empty if it can.
	refused string
	// image is what its pods run, empty if that is no wasm.
	image string
}

// node is what is kept of a wasm node.
type node struct {
	metav1.ObjectMeta
	ip              string
	ready, cordoned bool
}

// The transforms get an object that they made before, or a
// cache.DeletedFinalStateUnknown, now and then, which they pass as it is.

func trimDeployment(obj any) (any, error) {
	d, ok := obj.(*appsv1.Deployment)
	if !ok {
		return obj, nil
	}
	digest, err := templateDigest(&d.Spec.Template)
	if err != nil {
		return nil, fmt.Errorf("read deployment %s/%s: %w", d.Namespace, d.Name, err)
	}
	out := &deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: d.Namespace, Name: d.Name, UID: d.UID, ResourceVersion: d.ResourceVersion},
		revision:   revisionOf(d),
		template:   digest,
	}
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue && c.Reason == "FailedCreate" {
			out.refused = c.Message
		}
	}
	if class := d.Spec.Template.Spec.RuntimeClassName; class != nil && *class == config.RuntimeClass {
		out.image = userImage(&d.Spec.Template.Spec)
	}
	return out, nil
}

func templateDigest(template *corev1.PodTemplateSpec) (string, error) {
	text, err := json.Marshal(template)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8]), nil
}

func userImage(spec *corev1.PodSpec) string {
	for _, c := range spec.Containers {
		if c.Name != queueProxy {
			return c.Image
		}
	}
	return ""
}

func trimNode(obj any) (any, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	out := &node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion},
		cordoned:   n.Spec.Unschedulable,
	}
	for _, c := range n.Status.Conditions {
		out.ready = out.ready || (c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue)
	}
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP && out.ip == "" && net.ParseIP(a.Address) != nil {
			out.ip = a.Address
		}
	}
	return out, nil
}

// trimPod keeps the spec: another node starts from it what this pod runs. Pods
// are there only where something runs.
func trimPod(obj any) (any, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	out := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
			CreationTimestamp: pod.CreationTimestamp, DeletionTimestamp: pod.DeletionTimestamp,
			Labels: pod.Labels, Annotations: pod.Annotations,
		},
		Spec: pod.Spec,
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady || c.Type == corev1.PodScheduled {
			out.Status.Conditions = append(out.Status.Conditions, corev1.PodCondition{
				Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message,
			})
		}
	}
	for _, c := range pod.Status.ContainerStatuses {
		out.Status.ContainerStatuses = append(out.Status.ContainerStatuses, corev1.ContainerStatus{Name: c.Name, ImageID: c.ImageID})
	}
	return out, nil
}

func revisionIndex(obj any) ([]string, error) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return nil, nil
	}
	return []string{revisionOf(pod).String()}, nil
}

func revisionOf(o metav1.Object) Revision {
	labels := o.GetLabels()
	return Revision{
		NamespacedName: types.NamespacedName{Namespace: o.GetNamespace(), Name: labels[serving.RevisionLabelKey]},
		UID:            types.UID(labels[serving.RevisionUID]),
	}
}

func deploymentName(revision string) string { return kmeta.ChildName(revision, "-deployment") }

// containerConcurrency reads what Knative tells the pod's sidecar (serving
// pkg/reconciler/revision/resources/queue.go); 0 is any number.
func containerConcurrency(pod *corev1.Pod) int {
	for _, c := range pod.Spec.Containers {
		if c.Name != queueProxy {
			continue
		}
		for _, e := range c.Env {
			if e.Name == "CONTAINER_CONCURRENCY" {
				n, _ := strconv.Atoi(e.Value)
				return max(n, 0)
			}
		}
	}
	return 0
}

func takesRequests(pod *corev1.Pod) bool {
	_, ready := condition(pod, corev1.PodReady, corev1.ConditionTrue)
	return ready && pod.DeletionTimestamp == nil
}

func condition(pod *corev1.Pod, kind corev1.PodConditionType, status corev1.ConditionStatus) (corev1.PodCondition, bool) {
	for _, c := range pod.Status.Conditions {
		if c.Type == kind {
			return c, c.Status == status
		}
	}
	return corev1.PodCondition{}, false
}

// refusal returns why no pod runs: none could be created, or none finds a node. A
// pod that has one may still come.
func refusal(d *deployment, pods []*corev1.Pod) string {
	var unscheduled string
	for _, pod := range pods {
		if pod.DeletionTimestamp != nil {
			continue
		}
		if pod.Spec.NodeName != "" {
			return ""
		}
		if c, ok := condition(pod, corev1.PodScheduled, corev1.ConditionFalse); ok {
			unscheduled = fmt.Sprintf("pod %s: %s: %s", pod.Name, c.Reason, c.Message)
		}
	}
	if d != nil && d.refused != "" {
		return d.refused
	}
	return unscheduled
}
