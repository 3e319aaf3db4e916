package podlife_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/wisp-serving/wisp/provider/podlife"
)

var t0 = time.Unix(1_000_000, 0)

// life is a container after a series of exits, each a minute after its start.
func life(c podlife.Container, codes ...int32) podlife.Container {
	now := t0
	for _, code := range codes {
		c = c.Begin("run", now)
		now = now.Add(time.Minute)
		reason := podlife.ReasonError
		if code == 0 {
			reason = podlife.ReasonCompleted
		}
		c = c.End(podlife.Exit{Code: code, Reason: reason}, "", now)
	}
	return c
}

func TestContainer(t *testing.T) {
	c := podlife.Container{State: podlife.Waiting, Reason: podlife.ReasonCreating}
	if c.Restarts() != 0 {
		t.Errorf("got %d restarts before the first run, want 0", c.Restarts())
	}
	c = c.Begin("one", t0)
	c.Ready, c.Started = true, true
	if c.State != podlife.Running || c.Reason != "" || c.Restarts() != 0 {
		t.Errorf("got %+v after a start", c)
	}
	c = c.End(podlife.Exit{Code: 3, Reason: podlife.ReasonError}, "unused", t0.Add(time.Second))
	if c.State != podlife.Ended || c.Ready || c.Started || c.Run.ID != "one" || c.Run.Exit.Code != 3 || !c.Run.Started.Equal(t0) {
		t.Errorf("got %+v after an exit", c)
	}
	c = c.Wait(podlife.ReasonCrashLoop, "back-off")
	if c.Run != (podlife.Run{}) || c.Last == nil || c.Last.ID != "one" || c.Reason != podlife.ReasonCrashLoop {
		t.Errorf("got %+v in back-off, want the run as the last one", c)
	}
	c = c.Begin("two", t0.Add(time.Minute))
	if c.Restarts() != 1 || c.Last.ID != "one" || c.Run.ID != "two" {
		t.Errorf("got %+v after a restart", c)
	}
}

func TestEndWithoutAStartCountsAsARun(t *testing.T) {
	c := podlife.Container{State: podlife.Waiting}
	for i := range int32(3) {
		c = c.End(podlife.Exit{Code: podlife.CodeStartError}, "id", t0).Wait("", "")
		if c.Restarts() != i {
			t.Errorf("got %d restarts after %d failed starts, want %d", c.Restarts(), i+1, i)
		}
	}
}

func TestRecover(t *testing.T) {
	running := podlife.Container{}.Begin("one", t0)
	got := running.Recover(t0.Add(time.Hour))
	if got.State != podlife.Ended || got.Run.Exit.Code != podlife.CodeKilled || got.Run.Exit.Reason != podlife.ReasonStatusUnknown {
		t.Errorf("got %+v for one that ran, want it ended by the restart", got)
	}
	if done := life(podlife.Container{}, 0); done.Recover(t0.Add(time.Hour)) != done {
		t.Error("one that had ended did not stay as it was")
	}
}

func TestAgain(t *testing.T) {
	const always, onFailure, never = corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever
	tests := []struct {
		name      string
		container podlife.Container
		policy    corev1.RestartPolicy
		code      int32
		want      bool
	}{
		{"Always, success", podlife.Container{}, always, 0, true},
		{"Always, failure", podlife.Container{}, always, 1, true},
		{"OnFailure, success", podlife.Container{}, onFailure, 0, false},
		{"OnFailure, failure", podlife.Container{}, onFailure, 1, true},
		{"Never, success", podlife.Container{}, never, 0, false},
		{"Never, failure", podlife.Container{}, never, 1, false},
		{"init, Always, success", podlife.Container{Init: true}, always, 0, false},
		{"init, Always, failure", podlife.Container{Init: true}, always, 1, true},
		{"init, Never, failure", podlife.Container{Init: true}, never, 1, false},
		{"sidecar, Never, success", podlife.Container{Init: true, Sidecar: true}, never, 0, true},
		{"sidecar, OnFailure, failure", podlife.Container{Init: true, Sidecar: true}, onFailure, 1, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := life(test.container, test.code).Again(test.policy); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestBackOff(t *testing.T) {
	var b podlife.BackOff
	finished := t0
	for i, want := range []time.Duration{0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 5 * time.Minute, 5 * time.Minute} {
		var got time.Duration
		if got, b = b.Next(finished); got != want {
			t.Fatalf("exit %d: got a delay of %s, want %s", i+1, got, want)
		}
		finished = finished.Add(want + time.Second) // each run lasts a second
	}
	if got, _ := b.Next(b.Updated.Add(10 * time.Minute)); got != 5*time.Minute {
		t.Errorf("got %s after a run of just ten minutes, want the back-off to hold", got)
	}
	got, b := b.Next(b.Updated.Add(10*time.Minute + time.Second))
	if got != 0 {
		t.Errorf("got %s after a run of more than ten minutes, want a restart at once", got)
	}
	if got, _ = b.Next(b.Updated.Add(time.Second)); got != 10*time.Second {
		t.Errorf("got %s for the exit after that, want 10s", got)
	}
}

func TestPhase(t *testing.T) {
	const always, onFailure, never = corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever
	waiting := podlife.Container{State: podlife.Waiting}
	running := podlife.Container{}.Begin("", t0)
	ok, failed := life(podlife.Container{}, 0), life(podlife.Container{}, 1)
	crashing := failed.Wait(podlife.ReasonCrashLoop, "")
	unstartable := podlife.Container{}.End(podlife.Exit{Code: podlife.CodeStartError, Reason: podlife.ReasonStartError}, "", t0).Wait(podlife.ReasonCreateError, "")
	init := podlife.Container{Init: true, State: podlife.Waiting}
	sidecar := podlife.Container{Init: true, Sidecar: true, State: podlife.Waiting}
	tests := []struct {
		name       string
		containers []podlife.Container
		policy     corev1.RestartPolicy
		over       bool
		want       corev1.PodPhase
	}{
		{"new", []podlife.Container{waiting}, always, false, corev1.PodPending},
		{"one of two runs", []podlife.Container{running, waiting}, always, false, corev1.PodPending},
		{"runs", []podlife.Container{running, running}, always, false, corev1.PodRunning},
		{"one has ended, one runs", []podlife.Container{ok, running}, never, false, corev1.PodRunning},
		{"crash loop", []podlife.Container{crashing}, always, false, corev1.PodRunning},
		{"crash loop under OnFailure", []podlife.Container{crashing}, onFailure, false, corev1.PodRunning},
		{"restarts after success", []podlife.Container{ok}, always, false, corev1.PodRunning},
		{"restarts with another image, under Never", []podlife.Container{failed.Wait(podlife.ReasonCreating, "")}, never, false, corev1.PodRunning},
		{"deleted before it has restarted", []podlife.Container{failed.Wait(podlife.ReasonCreating, "")}, never, true, corev1.PodFailed},
		{"cannot start", []podlife.Container{unstartable}, always, false, corev1.PodPending},
		{"all succeeded", []podlife.Container{ok, ok}, onFailure, false, corev1.PodSucceeded},
		{"one failed, under Never", []podlife.Container{ok, failed}, never, false, corev1.PodFailed},
		{"one failed, under OnFailure", []podlife.Container{ok, failed}, onFailure, false, corev1.PodRunning},
		{"deleted after success", []podlife.Container{ok}, always, true, corev1.PodSucceeded},
		{"deleted and killed", []podlife.Container{failed}, always, true, corev1.PodFailed},
		{"deleted and still running", []podlife.Container{failed, running}, always, true, corev1.PodRunning},
		{"deleted before it ran", []podlife.Container{waiting}, always, true, corev1.PodFailed},
		{"init waits", []podlife.Container{init, waiting}, never, false, corev1.PodPending},
		{"init runs", []podlife.Container{init.Begin("", t0), waiting}, never, false, corev1.PodPending},
		{"init failed, under Never", []podlife.Container{life(init, 1), waiting}, never, false, corev1.PodFailed},
		{"init failed, under Always", []podlife.Container{life(init, 1), waiting}, always, false, corev1.PodPending},
		{"init succeeded", []podlife.Container{life(init, 0), running}, always, false, corev1.PodRunning},
		{"deleted while init runs", []podlife.Container{init.Begin("", t0), waiting}, always, true, corev1.PodPending},
		{"sidecar waits", []podlife.Container{sidecar, waiting}, never, false, corev1.PodPending},
		{"sidecar outlives the others", []podlife.Container{sidecar.Begin("", t0), ok}, never, false, corev1.PodSucceeded},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := podlife.Phase(test.containers, test.policy, test.over); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}
