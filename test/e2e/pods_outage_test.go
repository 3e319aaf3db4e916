package e2e

import (
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/wisp-serving/wisp/test/platform"
)

// TestPodsWithoutAPIServer stops the API server dead, for WISP_OUTAGE or 15 s: pods
// go on, end and restart by their policies, and what has become of them is told
// when there is somebody to tell. None is lost, doubled or restarted because of it.
func TestPodsWithoutAPIServer(t *testing.T) {
	away := outage(t, 15*time.Second)
	w := newWorker(t, platform.Start(t, platform.Options{}))
	w.create(t, w.deployment("sleepers", 10, w.spec(corev1.RestartPolicyAlways, "sleep", "3600")))
	w.awaitAvailable(t, "sleepers", 10)
	before := w.podsOf(t, "sleepers")
	// These end during the outage.
	w.create(t, &batchv1.Job{ObjectMeta: w.meta("job"), Spec: batchv1.JobSpec{
		Template: corev1.PodTemplateSpec{Spec: w.spec(corev1.RestartPolicyNever, "sleep", "10", "print", "done")},
	}})
	w.create(t, &corev1.Pod{ObjectMeta: w.meta("fails"), Spec: w.spec(corev1.RestartPolicyNever, "sleep", "10", "exit", "3")})
	w.create(t, &corev1.Pod{ObjectMeta: w.meta("restarts"), Spec: w.spec(corev1.RestartPolicyOnFailure, "sleep", "10", "print", "again", "exit", "1")})
	running := func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning }
	fails, restarts := w.await(t, "fails", "run", running), w.await(t, "restarts", "run", running)

	began := time.Now().Truncate(time.Second) // what a status tells
	pause(t, w.Platform, "kube-apiserver", func() { time.Sleep(away) })
	ended := time.Now()

	job := platform.WaitFor(t, w.Platform, &batchv1.Job{ObjectMeta: w.meta("job")}, "be complete", func(j *batchv1.Job) bool { return hasCondition(j, batchv1.JobComplete) })
	if job.Status.Succeeded != 1 || job.Status.Failed != 0 {
		t.Errorf("got %d pods of the job that have succeeded and %d that have failed, want one and none", job.Status.Succeeded, job.Status.Failed)
	}
	if got := w.logs(t, "job/job"); got != "done\n" {
		t.Errorf("got log %q of the job, want its work done once", got)
	}
	pod := w.await(t, "fails", "have failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	exit := pod.Status.ContainerStatuses[0].State.Terminated
	if pod.UID != fails.UID || exit == nil || exit.ExitCode != 3 || exit.FinishedAt.Time.Before(began) || exit.FinishedAt.After(ended) {
		t.Errorf("got %+v, want its exit with 3 during the outage, from %s to %s", exit, began, ended)
	}
	pod = w.await(t, "restarts", "have restarted", func(p *corev1.Pod) bool { return p.Status.ContainerStatuses[0].RestartCount >= 1 })
	if last := pod.Status.ContainerStatuses[0].LastTerminationState.Terminated; pod.UID != restarts.UID || last == nil || last.ExitCode != 1 {
		t.Errorf("got last termination %+v, want its exit with 1", last)
	}
	w.awaitAvailable(t, "sleepers", 10)
	w.sameAsBefore(t, before)
	w.Kubectl(t, "delete", "pod", "restarts", "-n", w.namespace)
}

// sameAsBefore checks that a deployment's pods are those of before, and that none
// was restarted.
func (w *worker) sameAsBefore(t *testing.T, before map[types.UID]string) {
	t.Helper()
	var list corev1.PodList
	if err := w.Client.List(t.Context(), &list, client.InNamespace(w.namespace), client.MatchingLabels{"app": "sleepers"}); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != len(before) {
		t.Errorf("got %d pods, want the %d of before", len(list.Items), len(before))
	}
	for _, p := range list.Items {
		if _, ok := before[p.UID]; !ok {
			t.Errorf("pod %s was not there before", p.Name)
		}
		if n := p.Status.ContainerStatuses[0].RestartCount; n != 0 {
			t.Errorf("pod %s was restarted %d times", p.Name, n)
		}
	}
}
