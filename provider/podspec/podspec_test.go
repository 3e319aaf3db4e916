package podspec_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/wisp-serving/wisp/provider/podspec"
)

// knativePod is a pod as Knative's controller and the API server's admission
// make it.
func knativePod(edits ...func(*corev1.Pod)) *corev1.Pod {
	yes, no := true, false
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "sort-00001-deployment-abc", UID: "pod-uid",
			Labels: map[string]string{
				"serving.knative.dev/revision":    "sort-00001",
				"serving.knative.dev/revisionUID": "rev-uid",
				"pod-template-hash":               "abc",
			},
			Annotations: map[string]string{"wisp.dev/abi": "argv"},
		},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name:  "user-container",
				Image: "localhost:5000/sort@sha256:00",
				Env: []corev1.EnvVar{
					{Name: "PORT", Value: "8080"},
					{Name: "URL", Value: "http://x:$(PORT)/$$(PORT)/$(NONE)"},
				},
				VolumeMounts:    []corev1.VolumeMount{{Name: "kube-api-access-x", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}},
				Lifecycle:       &corev1.Lifecycle{},
				SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, RunAsNonRoot: &yes},
			}, {
				Name: "queue-proxy",
				Env:  []corev1.EnvVar{{Name: "CONTAINER_CONCURRENCY", Value: "7"}},
			}},
		},
	}
	for _, edit := range edits {
		edit(pod)
	}
	return pod
}

func TestParse(t *testing.T) {
	tests := []struct {
		name string
		edit func(*corev1.Pod)
		want func(*podspec.Spec)
	}{
		{"a revision's pod", func(*corev1.Pod) {}, func(*podspec.Spec) {}},
		{
			"args replace the image's", func(p *corev1.Pod) { p.Spec.Containers[0].Args = []string{"-r"} },
			func(s *podspec.Spec) { s.Args = []string{"-r"} },
		},
		{
			"args refer to variables", func(p *corev1.Pod) { p.Spec.Containers[0].Args = []string{"-p=$(PORT)", "$$(PORT)"} },
			func(s *podspec.Spec) { s.Args = []string{"-p=8080", "$(PORT)"} },
		},
		{
			"waiting for the pod can be asked for", func(p *corev1.Pod) { p.Annotations["wisp.dev/early-start"] = "false" },
			func(s *podspec.Spec) { s.EarlyStart = false },
		},
		{
			"requests may run on for the grace period", func(p *corev1.Pod) { seconds := int64(300); p.Spec.TerminationGracePeriodSeconds = &seconds },
			func(s *podspec.Spec) { s.Grace = 300 * time.Second },
		},
		{"the sidecar may come first", func(p *corev1.Pod) {
			p.Spec.Containers[0], p.Spec.Containers[1] = p.Spec.Containers[1], p.Spec.Containers[0]
		}, func(*podspec.Spec) {}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			want := podspec.Spec{
				Revision:     types.NamespacedName{Namespace: "default", Name: "sort-00001"},
				RevisionUID:  "rev-uid",
				TemplateHash: "abc",
				Container:    "user-container",
				Image:        "localhost:5000/sort@sha256:00",
				Env:          []string{"PORT=8080", "URL=http://x:8080/$(PORT)/$(NONE)"},
				ABI:          "argv",
				Concurrency:  7,
				EarlyStart:   true,
				Grace:        30 * time.Second,
			}
			test.want(&want)
			got, err := podspec.Parse(knativePod(test.edit))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseNamesEveryUnsupportedField(t *testing.T) {
	yes := true
	user := func(edit func(*corev1.Container)) func(*corev1.Pod) {
		return func(p *corev1.Pod) { edit(&p.Spec.Containers[0]) }
	}
	tests := []struct {
		name string
		edit func(*corev1.Pod)
		want []string
	}{
		{"no revision", func(p *corev1.Pod) { delete(p.Labels, "serving.knative.dev/revision") }, []string{"metadata.labels[serving.knative.dev/revision]"}},
		{"no sidecar", func(p *corev1.Pod) { p.Spec.Containers = p.Spec.Containers[:1] }, []string{"no queue-proxy"}},
		{"only a sidecar", func(p *corev1.Pod) { p.Spec.Containers = p.Spec.Containers[1:] }, []string{"no container beside queue-proxy"}},
		{"two containers", func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "second"})
		}, []string{"spec.containers[2]: a second container, second"}},
		{
			"the host's namespaces", func(p *corev1.Pod) { p.Spec.HostNetwork, p.Spec.HostPID, p.Spec.HostIPC = true, true, true },
			[]string{"spec.hostNetwork", "spec.hostPID", "spec.hostIPC"},
		},
		{"init containers", func(p *corev1.Pod) { p.Spec.InitContainers = make([]corev1.Container, 1) }, []string{"spec.initContainers"}},
		{"devices", func(p *corev1.Pod) { p.Spec.ResourceClaims = make([]corev1.PodResourceClaim, 1) }, []string{"spec.resourceClaims"}},
		{"command", user(func(c *corev1.Container) { c.Command = []string{"sh"} }), []string{"spec.containers[0].command"}},
		{"env from a secret", user(func(c *corev1.Container) {
			c.Env = append(c.Env, corev1.EnvVar{Name: "KEY", ValueFrom: &corev1.EnvVarSource{}})
			c.EnvFrom = make([]corev1.EnvFromSource, 1)
		}), []string{"spec.containers[0].env[2].valueFrom (KEY)", "spec.containers[0].envFrom"}},
		{"volumes", user(func(c *corev1.Container) {
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{MountPath: "/data"})
			c.VolumeDevices = make([]corev1.VolumeDevice, 1)
		}), []string{"spec.containers[0].volumeMounts[1] (/data)", "spec.containers[0].volumeDevices"}},
		{"probes", user(func(c *corev1.Container) {
			c.LivenessProbe, c.StartupProbe = &corev1.Probe{}, &corev1.Probe{}
			c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{}}}
		}), []string{".livenessProbe", ".startupProbe", ".readinessProbe.exec"}},
		{
			"privileges", user(func(c *corev1.Container) { c.SecurityContext.Privileged = &yes; c.TTY = true }),
			[]string{".securityContext.privileged", ".tty"},
		},
		{"a sidecar that makes no sense", func(p *corev1.Pod) { p.Spec.Containers[1].Env[0].Value = "many" }, []string{`CONTAINER_CONCURRENCY = "many"`}},
		{
			"several at once", func(p *corev1.Pod) { p.Spec.HostNetwork = true; p.Spec.Containers[0].TTY = true },
			[]string{"spec.hostNetwork", "spec.containers[0].tty"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := podspec.Parse(knativePod(test.edit))
			var unsupported *podspec.Unsupported
			if !errors.As(err, &unsupported) {
				t.Fatalf("got %v, want *Unsupported", err)
			}
			if len(unsupported.Fields) != len(test.want) {
				t.Errorf("got %d fields %q, want %d", len(unsupported.Fields), unsupported.Fields, len(test.want))
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to name %s", err, want)
				}
			}
		})
	}
}

func TestEnvironmentReferences(t *testing.T) {
	tests := []struct{ value, want string }{
		{"plain", "plain"},
		{"$(A)", "1"},
		{"$(A)$(A)", "11"},
		{"$$(A)", "$(A)"},
		{"$$$(A)", "$1"},
		{"$(LATER)", "$(LATER)"},
		{"$A", "$A"},
		{"$(A", "$(A"},
		{"$()", "$()"},
		{"costs 5$", "costs 5$"},
	}
	for _, test := range tests {
		t.Run(test.value, func(t *testing.T) {
			spec, err := podspec.Parse(knativePod(func(p *corev1.Pod) {
				p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: test.value}, {Name: "LATER", Value: "2"}}
			}))
			if err != nil {
				t.Fatal(err)
			}
			if got := spec.Env[1]; got != "B="+test.want {
				t.Errorf("got %s, want B=%s", got, test.want)
			}
		})
	}
}
