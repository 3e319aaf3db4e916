package e2e

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/platform"
)

// worker is a platform, a namespace and the image of test/guests/worker.
type worker struct {
	*platform.Platform
	namespace, image string
}

func newWorker(t testing.TB, p *platform.Platform) *worker {
	t.Helper()
	w := &worker{Platform: p, namespace: p.Namespace(t), image: p.Registry + "/worker:v1"}
	p.Wisp(t, "push", p.Guest(t, "test/guests/worker/worker.c"), w.image)
	return w
}

func (w *worker) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: w.namespace, Name: name}
}

// spec is a pod whose one container, "main", does what args say.
func (w *worker) spec(policy corev1.RestartPolicy, args ...string) corev1.PodSpec {
	class := config.RuntimeClass
	return corev1.PodSpec{
		RuntimeClassName: &class, RestartPolicy: policy,
		Containers: []corev1.Container{{Name: "main", Image: w.image, Args: args}},
	}
}

func (w *worker) create(t testing.TB, obj client.Object) {
	t.Helper()
	if err := w.Client.Create(t.Context(), obj); err != nil {
		t.Fatal(err)
	}
}

// run creates a pod and waits until it has ended.
func (w *worker) run(t testing.TB, name string, spec corev1.PodSpec) *corev1.Pod {
	t.Helper()
	return w.runPod(t, &corev1.Pod{ObjectMeta: w.meta(name), Spec: spec})
}

func (w *worker) runPod(t testing.TB, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	w.create(t, pod)
	return w.await(t, pod.Name, "end", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
}

func (w *worker) await(t testing.TB, name, what string, ok func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	return platform.WaitFor(t, w.Platform, &corev1.Pod{ObjectMeta: w.meta(name)}, what, ok)
}

func (w *worker) logs(t testing.TB, args ...string) string {
	t.Helper()
	return w.Kubectl(t, append([]string{"logs", "-n", w.namespace}, args...)...)
}

// fails runs kubectl and returns what it says, which must be a refusal.
func (w *worker) fails(t testing.TB, args ...string) string {
	t.Helper()
	out, err := w.Command(t.Context(), "kubectl", append([]string{"-n", w.namespace}, args...)...).CombinedOutput()
	if err == nil {
		t.Errorf("kubectl %s: succeeded, want it refused: %s", strings.Join(args, " "), out)
	}
	return string(out)
}

func TestPods(t *testing.T) {
	w := newWorker(t, platform.Start(t, platform.Options{}))
	for name, test := range map[string]func(*testing.T, *worker){
		"ends":                   testEnds,
		"environment":            testEnvironment,
		"init containers":        testInit,
		"jobs":                   testJobs,
		"a cron job":             testCronJob,
		"a deployment":           testDeployment,
		"unsupported":            testUnsupported,
		"logs":                   testLogs,
		"followed logs":          testFollowedLogs,
		"volumes":                testVolumes,
		"deletion":               testDeletion,
		"draining namesake":      testDrainingNamesake,
		"eviction":               testEviction,
		"exec is refused":        testExec,
		"events are a kubelet's": testEvents,
		"out of memory":          testOutOfMemory,
		"another image":          testAnotherImage,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, w)
		})
	}
}

func testEnds(t *testing.T, w *worker) {
	for _, test := range []struct {
		name   string
		args   []string
		phase  corev1.PodPhase
		code   int32
		reason string
	}{
		{"success", []string{"print", "done"}, corev1.PodSucceeded, 0, "Completed"},
		{"failure", []string{"complain", "out of milk", "exit", "3"}, corev1.PodFailed, 3, "Error"},
		{"trap", []string{"trap"}, corev1.PodFailed, 134, "Error"},
		{"message", []string{"write", "/dev/termination-log", "milk", "exit", "1"}, corev1.PodFailed, 1, "Error"},
	} {
		spec := w.spec(corev1.RestartPolicyNever, test.args...)
		spec.Containers[0].TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
		pod := w.run(t, test.name, spec)
		ended := pod.Status.ContainerStatuses[0].State.Terminated
		if pod.Status.Phase != test.phase || ended == nil || ended.ExitCode != test.code || ended.Reason != test.reason {
			t.Errorf("%s: got %s, %+v, want %s, exit code %d, %s", test.name, pod.Status.Phase, ended, test.phase, test.code, test.reason)
			continue
		}
		switch test.name {
		case "failure":
			if ended.Message != "out of milk\n" {
				t.Errorf("got message %q, want the end of the log", ended.Message)
			}
		case "message":
			if ended.Message != "milk" {
				t.Errorf("got message %q, want what the guest wrote", ended.Message)
			}
		case "trap":
			if !strings.Contains(ended.Message, "unreachable") || !strings.Contains(w.logs(t, "trap"), "wasm stack trace") {
				t.Errorf("got message %q and log %q, want the trap and its stack", ended.Message, w.logs(t, "trap"))
			}
		}
	}

	deadline := int64(1)
	spec := w.spec(corev1.RestartPolicyNever, "sleep", "600")
	spec.ActiveDeadlineSeconds = &deadline
	if pod := w.run(t, "deadline", spec); pod.Status.Phase != corev1.PodFailed || pod.Status.Reason != "DeadlineExceeded" {
		t.Errorf("got %s, %q, want Failed, DeadlineExceeded", pod.Status.Phase, pod.Status.Reason)
	}

	w.create(t, &corev1.Pod{ObjectMeta: w.meta("crash"), Spec: w.spec(corev1.RestartPolicyAlways, "exit", "1")})
	w.await(t, "crash", "be in back-off", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Waiting != nil &&
			p.Status.ContainerStatuses[0].State.Waiting.Reason == "CrashLoopBackOff" && p.Status.ContainerStatuses[0].RestartCount >= 1
	})
}

func testEnvironment(t *testing.T, w *worker) {
	w.create(t, &corev1.ConfigMap{ObjectMeta: w.meta("settings"), Data: map[string]string{"color": "red", "size": "7"}})
	w.create(t, &corev1.Secret{ObjectMeta: w.meta("keys"), StringData: map[string]string{"token": "s3cret"}})
	w.create(t, &corev1.Service{ObjectMeta: w.meta("linked"), Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "web", Port: 80}}}})
	optional := true
	spec := w.spec(corev1.RestartPolicyNever, "args", "print", "$(GREETING)", "env")
	c := &spec.Containers[0]
	field := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	c.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
	c.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m")}
	c.EnvFrom = []corev1.EnvFromSource{
		{Prefix: "CFG_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}},
		{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Optional: &optional}},
		{Prefix: "KEY_", SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "keys"}}},
	}
	c.Env = []corev1.EnvVar{
		{Name: "COLOR", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}, Key: "color"}}},
		{Name: "TOKEN", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "keys"}, Key: "token"}}},
		{Name: "MISSING", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "keys"}, Key: "none", Optional: &optional}}},
		{Name: "ABSENT", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Key: "k", Optional: &optional}}},
		{Name: "GREETING", Value: "a $(COLOR) $$(COLOR)"},
		{Name: "POD", ValueFrom: field("metadata.name")},
		{Name: "SPACE", ValueFrom: field("metadata.namespace")},
		{Name: "UID", ValueFrom: field("metadata.uid")},
		{Name: "LABEL", ValueFrom: field("metadata.labels['tier']")},
		{Name: "NOTE", ValueFrom: field("metadata.annotations['example.com/note']")},
		{Name: "POD_IPS", ValueFrom: field("status.podIPs")},
		{Name: "NODE", ValueFrom: field("spec.nodeName")},
		{Name: "ACCOUNT", ValueFrom: field("spec.serviceAccountName")},
		{Name: "POD_IP", ValueFrom: field("status.podIP")},
		{Name: "HOST_IP", ValueFrom: field("status.hostIP")},
		{Name: "CPU", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "requests.cpu", Divisor: resource.MustParse("1m")}}},
		{Name: "MEMORY", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}}},
	}
	meta := w.meta("environment")
	meta.Labels, meta.Annotations = map[string]string{"tier": "back"}, map[string]string{"example.com/note": "mind the gap"}
	pod := w.runPod(t, &corev1.Pod{ObjectMeta: meta, Spec: spec})
	got := w.logs(t, "environment")
	for _, want := range []string{
		"a red $(COLOR)\n", "CFG_color=red\n", "CFG_size=7\n", "COLOR=red\n", "TOKEN=s3cret\n", "POD=environment\n",
		"NODE=" + pod.Spec.NodeName + "\n", "ACCOUNT=default\n", "POD_IP=" + pod.Status.PodIP + "\n", "HOST_IP=" + pod.Status.HostIP + "\n", "MEMORY=64\n", "CPU=250\n",
		"KEY_token=s3cret\n", "SPACE=" + w.namespace + "\n", "UID=" + string(pod.UID) + "\n", "LABEL=back\n", "NOTE=mind the gap\n", "POD_IPS=" + pod.Status.PodIP + "\n",
		"KUBERNETES_SERVICE_PORT=443\n", "LINKED_SERVICE_PORT_WEB=80\n", "LINKED_PORT_80_TCP_PROTO=tcp\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the guest has not seen %q", want)
		}
	}
	if strings.Contains(got, "MISSING") || strings.Contains(got, "ABSENT") {
		t.Error("the guest has seen an optional variable that isn't there")
	}
	if t.Failed() {
		t.Log(got)
	}

	// What is missing and not optional is waited for.
	spec = w.spec(corev1.RestartPolicyNever, "env")
	spec.Containers[0].Env = []corev1.EnvVar{{Name: "LATE", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "late"}, Key: "k"}}}}
	w.create(t, &corev1.Pod{ObjectMeta: w.meta("late"), Spec: spec})
	w.await(t, "late", "say what is missing", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Waiting != nil &&
			p.Status.ContainerStatuses[0].State.Waiting.Reason == "CreateContainerConfigError" &&
			strings.Contains(p.Status.ContainerStatuses[0].State.Waiting.Message, `configmaps "late" not found`)
	})
	w.create(t, &corev1.ConfigMap{ObjectMeta: w.meta("late"), Data: map[string]string{"k": "here"}})
	w.await(t, "late", "succeed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
}

func testInit(t *testing.T, w *worker) {
	always := corev1.ContainerRestartPolicyAlways
	spec := w.spec(corev1.RestartPolicyNever, "print", "main")
	spec.InitContainers = []corev1.Container{
		{Name: "first", Image: w.image, Args: []string{"print", "prepared"}},
		{Name: "beside", Image: w.image, Args: []string{"sleep", "600"}, RestartPolicy: &always},
	}
	pod := w.run(t, "init", spec)
	if pod.Status.Phase != corev1.PodSucceeded {
		t.Errorf("got %s, want Succeeded: the sidecar does not keep it", pod.Status.Phase)
	}
	if got := w.logs(t, "init", "-c", "first"); got != "prepared\n" {
		t.Errorf("got %q from the init container", got)
	}
}

func testJobs(t *testing.T, w *worker) {
	three, two, one := int32(3), int32(2), int32(1)
	w.create(t, &batchv1.Job{ObjectMeta: w.meta("works"), Spec: batchv1.JobSpec{
		Completions: &three, Parallelism: &two,
		Template: corev1.PodTemplateSpec{Spec: w.spec(corev1.RestartPolicyNever, "print", "done")},
	}})
	w.create(t, &batchv1.Job{ObjectMeta: w.meta("fails"), Spec: batchv1.JobSpec{
		BackoffLimit: &one,
		Template:     corev1.PodTemplateSpec{Spec: w.spec(corev1.RestartPolicyOnFailure, "exit", "9")},
	}})
	platform.WaitFor(t, w.Platform, &batchv1.Job{ObjectMeta: w.meta("works")}, "be complete", func(j *batchv1.Job) bool {
		return j.Status.Succeeded == three && hasCondition(j, batchv1.JobComplete)
	})
	platform.WaitFor(t, w.Platform, &batchv1.Job{ObjectMeta: w.meta("fails")}, "have failed", func(j *batchv1.Job) bool { return hasCondition(j, batchv1.JobFailed) })
}

func hasCondition(j *batchv1.Job, kind batchv1.JobConditionType) bool {
	for _, c := range j.Status.Conditions {
		if c.Type == kind && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

func testCronJob(t *testing.T, w *worker) {
	w.create(t, &batchv1.CronJob{ObjectMeta: w.meta("nightly"), Spec: batchv1.CronJobSpec{
		Schedule: "0 3 * * *",
		JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{
			Template: corev1.PodTemplateSpec{Spec: w.spec(corev1.RestartPolicyNever, "print", "swept")},
		}},
	}})
	w.Kubectl(t, "create", "job", "now", "--from=cronjob/nightly", "-n", w.namespace)
	platform.WaitFor(t, w.Platform, &batchv1.Job{ObjectMeta: w.meta("now")}, "be complete", func(j *batchv1.Job) bool { return hasCondition(j, batchv1.JobComplete) })
	if got := w.logs(t, "job/now"); got != "swept\n" {
		t.Errorf("got %q from the job", got)
	}
}

func (w *worker) deployment(name string, replicas int32, spec corev1.PodSpec) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{ObjectMeta: w.meta(name), Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
	}}
}

func testDeployment(t *testing.T, w *worker) {
	d := w.deployment("sleepers", 3, w.spec(corev1.RestartPolicyAlways, "sleep", "600"))
	w.create(t, d)
	available := func(n int32) { t.Helper(); w.awaitAvailable(t, "sleepers", n) }
	available(3)
	w.Kubectl(t, "scale", "deployment/sleepers", "--replicas=1", "-n", w.namespace)
	available(1)
	w.Kubectl(t, "set", "env", "deployment/sleepers", "ROLLED=out", "-n", w.namespace)
	available(1)
}

// testUnsupported counts the pods of a Deployment whose pods can't run: one, not
// a storm of replacements.
func testUnsupported(t *testing.T, w *worker) {
	spec := w.spec(corev1.RestartPolicyAlways)
	privileged := true
	spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &privileged}
	spec.Containers[0].TTY = true
	d := w.deployment("impossible", 1, spec)
	w.create(t, d)
	platform.WaitFor(t, w.Platform, &appsv1.Deployment{ObjectMeta: w.meta("impossible")}, "have made its pod", func(d *appsv1.Deployment) bool { return d.Status.Replicas == 1 })
	pods := func() []corev1.Pod {
		t.Helper()
		var list corev1.PodList
		if err := w.Client.List(t.Context(), &list, client.InNamespace(w.namespace), client.MatchingLabels{"app": "impossible"}); err != nil {
			t.Fatal(err)
		}
		return list.Items
	}
	first := pods()[0]
	pod := w.await(t, first.Name, "say what is in the way", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == "CreateContainerConfigError"
	})
	message := pod.Status.ContainerStatuses[0].State.Waiting.Message
	if !strings.Contains(message, "spec.containers[0].securityContext.privileged") || !strings.Contains(message, "spec.containers[0].tty") {
		t.Errorf("got message %q, want it to name both fields", message)
	}
	// Its controller has seen the pod's status when it has seen a change after it.
	w.Kubectl(t, "annotate", "deployment/impossible", "seen=yes", "-n", w.namespace)
	w.Kubectl(t, "scale", "deployment/impossible", "--replicas=2", "-n", w.namespace)
	platform.WaitFor(t, w.Platform, &appsv1.Deployment{ObjectMeta: w.meta("impossible")}, "have two pods", func(d *appsv1.Deployment) bool { return d.Status.Replicas == 2 })
	if all := pods(); len(all) != 2 {
		t.Errorf("got %d pods of a deployment of 2 that can't run", len(all))
	}
}

func testLogs(t *testing.T, w *worker) {
	w.create(t, &corev1.Pod{ObjectMeta: w.meta("talker"), Spec: w.spec(corev1.RestartPolicyAlways, "lines", "100", "complain", "no more", "exit", "1")})
	w.await(t, "talker", "have restarted", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].RestartCount >= 1
	})
	if got := w.logs(t, "talker"); !strings.HasPrefix(got, "line 0\nline 1\n") || !strings.HasSuffix(got, "line 99\nno more\n") || strings.Count(got, "\n") != 101 {
		t.Errorf("got %d lines, %.40q…", strings.Count(got, "\n"), got)
	}
	if got := w.logs(t, "talker", "--tail=2"); got != "line 99\nno more\n" {
		t.Errorf("--tail=2: got %q", got)
	}
	if got := w.logs(t, "talker", "--previous", "--tail=1"); got != "no more\n" {
		t.Errorf("--previous: got %q", got)
	}
	if got := w.logs(t, "talker", "--limit-bytes=8"); got != "line 0\nl" {
		t.Errorf("--limit-bytes: got %q", got)
	}
	if got := w.logs(t, "talker", "--since=1h", "--tail=1"); got != "no more\n" {
		t.Errorf("--since: got %q", got)
	}
	if got := w.logs(t, "talker", "--since-time="+time.Now().Add(time.Hour).UTC().Format(time.RFC3339)); got != "" {
		t.Errorf("--since-time in the future: got %q", got)
	}
	stamped := w.logs(t, "talker", "--timestamps", "--tail=1")
	stamp, _, _ := strings.Cut(stamped, " ")
	if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
		t.Errorf("--timestamps: got %q: %v", stamped, err)
	}
	if got := w.fails(t, "logs", "talker", "-c", "other"); !strings.Contains(got, "other") {
		t.Errorf("an unknown container: got %q", got)
	}
}

// testFollowedLogs follows a log from its first line to its container's end.
func testFollowedLogs(t *testing.T, w *worker) {
	w.create(t, &corev1.Pod{ObjectMeta: w.meta("slow"), Spec: w.spec(corev1.RestartPolicyNever, "print", "one", "sleep", "2", "print", "two")})
	w.await(t, "slow", "run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	follow := w.Command(t.Context(), "kubectl", "logs", "-f", "slow", "-n", w.namespace)
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	first, err := lines.ReadString('\n')
	if err != nil || first != "one\n" {
		t.Errorf("got %q, %v, want the first line while the container runs", first, err)
	}
	rest, err := io.ReadAll(lines)
	if err != nil || string(rest) != "two\n" {
		t.Errorf("got %q, %v after that, want the second line and the end", rest, err)
	}
	if err := follow.Wait(); err != nil {
		t.Error(err)
	}
}

func testVolumes(t *testing.T, w *worker) {
	w.create(t, &corev1.ConfigMap{ObjectMeta: w.meta("files"), Data: map[string]string{"app.conf": "color = red\n", "other": "x"}})
	w.create(t, &corev1.Secret{ObjectMeta: w.meta("password"), StringData: map[string]string{"password": "s3cret\n"}})
	spec := w.spec(corev1.RestartPolicyNever,
		"cat", "/etc/config/app.conf", "cat", "/etc/keys/password", "cat", "/etc/pod/name", "cat", "/etc/pod/token", "print", "",
		"cat", "/opt/one/renamed.conf", "write", "/scratch/out", "hello", "cat", "/scratch/out", "print", "",
		"cat", "/var/run/secrets/kubernetes.io/serviceaccount/namespace", "print", "", "cat", "/ram/out", "print", "")
	hour := int64(3600)
	spec.Volumes = []corev1.Volume{
		{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "files"}}}},
		{Name: "keys", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "password"}}},
		{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "ram", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
		{Name: "pod", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "name", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}},
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "elsewhere", ExpirationSeconds: &hour, Path: "token"}},
		}}}},
	}
	c := &spec.Containers[0]
	c.VolumeMounts = []corev1.VolumeMount{
		{Name: "config", MountPath: "/etc/config"},
		{Name: "keys", MountPath: "/etc/keys", ReadOnly: true},
		{Name: "pod", MountPath: "/etc/pod"},
		{Name: "config", MountPath: "/opt/one/renamed.conf", SubPath: "app.conf"},
		{Name: "scratch", MountPath: "/scratch"},
		{Name: "ram", MountPath: "/ram"},
	}
	// An init container sees the same emptyDirs.
	spec.InitContainers = []corev1.Container{{
		Name: "first", Image: w.image, Args: []string{"write", "/data/out", "from init", "write", "/ram/out", "from init too"},
		VolumeMounts: []corev1.VolumeMount{{Name: "scratch", MountPath: "/data"}, {Name: "ram", MountPath: "/ram"}},
	}}
	pod := w.run(t, "volumes", spec)
	got := w.logs(t, "volumes", "-c", "main")
	lines := strings.Split(got, "\n")
	if pod.Status.Phase != corev1.PodSucceeded || len(lines) < 7 {
		t.Fatalf("got %s, log %q", pod.Status.Phase, got)
	}
	token := strings.TrimPrefix(lines[2], "volumes") // the name ends without a line break
	for i, want := range map[int]string{0: "color = red", 1: "s3cret", 3: "color = red", 4: "hello", 5: w.namespace, 6: "from init too"} {
		if lines[i] != want {
			t.Errorf("line %d: got %q, want %q", i, lines[i], want)
		}
	}
	if strings.Count(token, ".") != 2 {
		t.Errorf("got token %q, want a JWT", token)
	}

	// A guest can't write to what comes from the API.
	spec = w.spec(corev1.RestartPolicyNever, "write", "/etc/config/app.conf", "mine")
	spec.Volumes = []corev1.Volume{{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "files"}}}}}
	spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "config", MountPath: "/etc/config"}}
	if pod := w.run(t, "writes", spec); pod.Status.Phase != corev1.PodFailed {
		t.Errorf("got %s for a guest that writes to a ConfigMap, want Failed", pod.Status.Phase)
	}

	// What is missing is waited for, and said.
	spec = w.spec(corev1.RestartPolicyNever, "cat", "/etc/late/k")
	spec.Volumes = []corev1.Volume{{Name: "late", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "late-volume"}}}}
	spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "late", MountPath: "/etc/late"}}
	w.create(t, &corev1.Pod{ObjectMeta: w.meta("late-volume"), Spec: spec})
	w.await(t, "late-volume", "be taken", func(p *corev1.Pod) bool { return p.Status.StartTime != nil })
	w.create(t, &corev1.Secret{ObjectMeta: w.meta("late-volume"), StringData: map[string]string{"k": "here"}})
	w.await(t, "late-volume", "succeed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
}

func testDeletion(t *testing.T, w *worker) {
	running := func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning }
	long := int64(300)
	for name, grace := range map[string]string{"at-once": "0", "with-grace": "300"} {
		spec := w.spec(corev1.RestartPolicyAlways, "sleep", "600")
		spec.TerminationGracePeriodSeconds = &long
		w.create(t, &corev1.Pod{ObjectMeta: w.meta(name), Spec: spec})
		first := w.await(t, name, "run", running)
		w.Kubectl(t, "delete", "pod", name, "--grace-period="+grace, "--force="+fmt.Sprint(grace == "0"), "--wait=false", "-n", w.namespace)
		platform.WaitGone(t, w.Platform, first)
		// The name is free for another.
		w.create(t, &corev1.Pod{ObjectMeta: w.meta(name), Spec: w.spec(corev1.RestartPolicyNever, "print", "second")})
		second := w.await(t, name, "succeed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
		if second.UID == first.UID {
			t.Errorf("%s: the pod was not replaced", name)
		}
		if got := w.logs(t, name); got != "second\n" {
			t.Errorf("%s: got log %q, want that of the second pod alone", name, got)
		}
	}
}

// testDrainingNamesake deletes a pod that drains, and creates another under its name
// while the node still ends the first.
func testDrainingNamesake(t *testing.T, w *worker) {
	spec := w.spec(corev1.RestartPolicyAlways, "sleep", "600")
	spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 20}}}
	w.create(t, &corev1.Pod{ObjectMeta: w.meta("namesake"), Spec: spec})
	first := w.await(t, "namesake", "run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	w.Kubectl(t, "delete", "pod", "namesake", "--wait=false", "-n", w.namespace)
	draining := w.await(t, "namesake", "drain", func(p *corev1.Pod) bool { return p.DeletionTimestamp != nil })
	if draining.Status.Phase != corev1.PodRunning {
		t.Errorf("got %s of a pod whose hook runs, want Running", draining.Status.Phase)
	}
	w.Kubectl(t, "delete", "pod", "namesake", "--grace-period=0", "--force", "-n", w.namespace)
	w.create(t, &corev1.Pod{ObjectMeta: w.meta("namesake"), Spec: w.spec(corev1.RestartPolicyNever, "print", "second")})
	second := w.await(t, "namesake", "succeed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	if got := w.logs(t, "namesake"); second.UID == first.UID || got != "second\n" {
		t.Errorf("got log %q, want that of the second pod", got)
	}
}

func testEviction(t *testing.T, w *worker) {
	w.create(t, &corev1.Pod{ObjectMeta: w.meta("evicted"), Spec: w.spec(corev1.RestartPolicyAlways, "sleep", "600")})
	pod := w.await(t, "evicted", "run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	eviction := &policyv1.Eviction{ObjectMeta: w.meta("evicted")}
	if err := w.Client.SubResource("eviction").Create(t.Context(), pod, eviction); err != nil {
		t.Fatal(err)
	}
	platform.WaitGone(t, w.Platform, pod)
}

func testExec(t *testing.T, w *worker) {
	w.create(t, &corev1.Pod{ObjectMeta: w.meta("closed"), Spec: w.spec(corev1.RestartPolicyAlways, "sleep", "600")})
	w.await(t, "closed", "run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	if got := w.fails(t, "exec", "closed", "--", "sh"); !strings.Contains(got, "a wasm container holds one module") {
		t.Errorf("got %q, want it to say why", got)
	}
}

func testEvents(t *testing.T, w *worker) {
	pod := w.run(t, "eventful", w.spec(corev1.RestartPolicyNever, "print", "hi"))
	w.awaitEvents(t, pod, "Pulled", "Created", "Started")
}

// A guest that its limit denies memory ends as a container that the kernel kills
// for it does.
func testOutOfMemory(t *testing.T, w *worker) {
	spec := w.spec(corev1.RestartPolicyNever, "allocate")
	spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}
	pod := w.run(t, "out-of-memory", spec)
	ended := pod.Status.ContainerStatuses[0].State.Terminated
	if ended == nil || ended.Reason != "OOMKilled" || ended.ExitCode != 137 || !strings.Contains(ended.Message, "67108864 bytes") {
		t.Errorf("got %+v, want OOMKilled with 137 and the limit", ended)
	}
	w.awaitEvents(t, pod, "OOMKilled")
}

func testAnotherImage(t *testing.T, w *worker) {
	w.create(t, &corev1.Pod{ObjectMeta: w.meta("patched"), Spec: w.spec(corev1.RestartPolicyNever, "sleep", "600")})
	w.await(t, "patched", "run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning })
	other := strings.Replace(w.image, ":v1", ":v2", 1)
	w.Wisp(t, "push", w.Guest(t, "test/guests/worker/worker.c"), other)
	w.Kubectl(t, "set", "image", "pod/patched", "main="+other, "-n", w.namespace)
	pod := w.await(t, "patched", "run with its other image", func(p *corev1.Pod) bool {
		c := p.Status.ContainerStatuses[0]
		return c.RestartCount == 1 && c.State.Running != nil && c.Image == other
	})
	if last := pod.Status.ContainerStatuses[0].LastTerminationState.Terminated; pod.Status.Phase != corev1.PodRunning || last == nil || last.ExitCode != 143 {
		t.Errorf("got %s, last termination %+v, want Running after an exit with 143", pod.Status.Phase, last)
	}
	w.awaitEvents(t, pod, "Killing")
}

// awaitEvents waits for events about a pod's container.
func (w *worker) awaitEvents(t *testing.T, pod *corev1.Pod, reasons ...string) {
	t.Helper()
	seen := map[string]bool{}
	missing := func() []string {
		return slices.DeleteFunc(slices.Clone(reasons), func(reason string) bool { return seen[reason] })
	}
	events, err := w.Client.Watch(t.Context(), &corev1.EventList{}, client.InNamespace(w.namespace))
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
	timeout := time.After(time.Minute)
	for len(missing()) > 0 {
		select {
		case e := <-events.ResultChan():
			event, ok := e.Object.(*corev1.Event)
			if ok && event.InvolvedObject.UID == pod.UID {
				seen[event.Reason] = true
				if event.Source.Component == "kubelet" && event.InvolvedObject.FieldPath != "spec.containers{main}" {
					t.Errorf("got event %s about %q, want it about the container", event.Reason, event.InvolvedObject.FieldPath)
				}
			}
		case <-timeout:
			t.Fatalf("no events %q", missing())
		}
	}
}
