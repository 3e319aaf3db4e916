package e2e

import (
	"fmt"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	appsv1 "k8s.io/api/apps/v1"

	"github.com/wisp-serving/wisp/test/platform"
)

// restartedPods is how many pods live through the restart of their node.
const restartedPods = 100

// TestNodeRestart restarts a node under a hundred pods and a Job that is done:
// none is lost, doubled or stuck, and the Job's work is not done again.
func TestNodeRestart(t *testing.T) {
	w := newWorker(t, platform.Start(t, platform.Options{}))
	w.create(t, &batchv1.Job{ObjectMeta: w.meta("done"), Spec: batchv1.JobSpec{
		Template: corev1.PodTemplateSpec{Spec: w.spec(corev1.RestartPolicyNever, "print", "once")},
	}})
	platform.WaitFor(t, w.Platform, &batchv1.Job{ObjectMeta: w.meta("done")}, "be complete", func(j *batchv1.Job) bool { return hasCondition(j, batchv1.JobComplete) })
	w.create(t, w.deployment("sleepers", restartedPods, w.spec(corev1.RestartPolicyAlways, "print", "up", "sleep", "3600")))
	w.awaitAvailable(t, "sleepers", restartedPods)
	before := w.podsOf(t, "sleepers")

	w.Restart(t, "wisp-node")

	for uid, name := range before {
		pod := w.await(t, name, "be up again", func(p *corev1.Pod) bool {
			return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount == 1 && ready(p)
		})
		if pod.UID != uid {
			t.Errorf("pod %s is another one", name)
		}
	}
	w.awaitAvailable(t, "sleepers", restartedPods)
	if after := w.podsOf(t, "sleepers"); len(after) != restartedPods {
		t.Errorf("got %d pods after the restart, want %d", len(after), restartedPods)
	}
	var pods corev1.PodList
	if err := w.Client.List(t.Context(), &pods, client.InNamespace(w.namespace), client.MatchingLabels{"job-name": "done"}); err != nil {
		t.Fatal(err)
	}
	if len(pods.Items) != 1 || pods.Items[0].Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("got %d pods of the job that was done, want the one", len(pods.Items))
	}
	if got := w.logs(t, "job/done"); got != "once\n" {
		t.Errorf("got log %q of the job that was done, want it kept", got)
	}
}

// TestAPIServerKilled kills the API server while a pod runs and one ends: the
// node goes on, and tells what has happened when there is somebody to tell.
func TestAPIServerKilled(t *testing.T) {
	w := newWorker(t, platform.Start(t, platform.Options{}))
	w.create(t, &corev1.Pod{ObjectMeta: w.meta("lives"), Spec: w.spec(corev1.RestartPolicyAlways, "sleep", "3600")})
	w.create(t, &corev1.Pod{ObjectMeta: w.meta("ends"), Spec: w.spec(corev1.RestartPolicyNever, "sleep", "2", "print", "done")})
	for _, name := range []string{"lives", "ends"} {
		w.await(t, name, "run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	}
	w.Kill(t, "kube-apiserver")
	w.await(t, "ends", "have succeeded", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	lives := w.await(t, "lives", "be ready", ready)
	if restarts := lives.Status.ContainerStatuses[0].RestartCount; restarts != 0 {
		t.Errorf("got %d restarts of a pod that the API server's end is nothing to", restarts)
	}
	w.Kubectl(t, "delete", "pod", "lives", "-n", w.namespace)
	if got := w.logs(t, "ends"); got != "done\n" {
		t.Errorf("got log %q", got)
	}
}

func (w *worker) awaitAvailable(t testing.TB, deployment string, n int32) {
	t.Helper()
	platform.WaitFor(t, w.Platform, &appsv1.Deployment{ObjectMeta: w.meta(deployment)}, fmt.Sprintf("have %d pods", n), func(d *appsv1.Deployment) bool {
		return d.Status.AvailableReplicas == n && d.Status.Replicas == n && d.Status.ObservedGeneration == d.Generation
	})
}

// podsOf returns the names of a deployment's pods by UID.
func (w *worker) podsOf(t testing.TB, deployment string) map[types.UID]string {
	t.Helper()
	var list corev1.PodList
	if err := w.Client.List(t.Context(), &list, client.InNamespace(w.namespace), client.MatchingLabels{"app": deployment}); err != nil {
		t.Fatal(err)
	}
	pods := map[types.UID]string{}
	for _, p := range list.Items {
		pods[p.UID] = p.Name
	}
	return pods
}
