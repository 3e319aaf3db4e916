package podspec_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/provider/queueproxy"
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

// TestEarlyStart is about what a function's start ahead of its Pod can know.
func TestEarlyStart(t *testing.T) {
	volume := func(source corev1.VolumeSource) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "v", VolumeSource: source})
			c := &p.Spec.Containers[0]
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "v", MountPath: "/v"})
		}
	}
	projected := func(sources ...corev1.VolumeProjection) func(*corev1.Pod) {
		return volume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: sources}})
	}
	env := func(env ...corev1.EnvVar) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Containers[0].Env = env }
	}
	token := corev1.VolumeProjection{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}
	settings := corev1.VolumeProjection{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}
	tests := []struct {
		name  string
		edit  func(*corev1.Pod)
		early bool
		refs  []podspec.Reference
	}{
		{"what needs nothing but the implicit token", func(*corev1.Pod) {}, true, nil},
		{
			"keys, each object once", env(
				corev1.EnvVar{Name: "A", ValueFrom: secretKey("keys", "token", false)}, corev1.EnvVar{Name: "B", ValueFrom: configMapKey("settings", "color", true)},
				corev1.EnvVar{Name: "C", ValueFrom: secretKey("keys", "user", false)},
			), true,
			[]podspec.Reference{{Kind: podspec.ConfigMap, Name: "settings"}, {Kind: podspec.Secret, Name: "keys"}},
		},
		{
			"whole objects", func(p *corev1.Pod) {
				p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{fromSecret("keys", false), fromConfigMap("", "settings", false)}
			}, true,
			[]podspec.Reference{{Kind: podspec.ConfigMap, Name: "settings"}, {Kind: podspec.Secret, Name: "keys"}},
		},
		{"a Secret's volume", volume(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "keys"}}), true, []podspec.Reference{{Kind: podspec.Secret, Name: "keys"}}},
		{
			"a ConfigMap's volume", volume(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}), true,
			[]podspec.Reference{{Kind: podspec.ConfigMap, Name: "settings"}},
		},
		{"a volume of several", projected(settings, settings), true, []podspec.Reference{{Kind: podspec.ConfigMap, Name: "settings"}}},
		{
			"a Secret where the implicit token would be", func(p *corev1.Pod) {
				volume(corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "keys"}})(p)
				p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: podspec.TokenPath}}
			}, true,
			[]podspec.Reference{{Kind: podspec.Secret, Name: "keys"}},
		},
		{"a token that is asked for", projected(settings, token), false, []podspec.Reference{{Kind: podspec.ConfigMap, Name: "settings"}}},
		{"what a pod writes", volume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}), false, nil},
		{"a pod's fields in a volume", volume(corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{}}), false, nil},
		{"a pod's name", env(fieldEnv("metadata.name")...), false, nil},
		{"a pod's UID", env(fieldEnv("metadata.uid")...), false, nil},
		{"what the node tells all its pods", env(fieldEnv("status.hostIP")...), true, nil},
		{"a limit", env(corev1.EnvVar{Name: "A", ValueFrom: resourceField("limits.memory", "1")}), true, nil},
		{
			"a volume that is not mounted", func(p *corev1.Pod) {
				volume(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})(p)
				p.Spec.Containers[0].VolumeMounts = nil
			}, true, nil,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := podspec.Parse(knativePod(test.edit))
			if err != nil {
				t.Fatal(err)
			}
			if got.EarlyStart != test.early {
				t.Errorf("got early start %v, want %v", got.EarlyStart, test.early)
			}
			if diff := cmp.Diff(test.refs, got.References()); diff != "" {
				t.Errorf("references (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		name string
		edit func(*corev1.Pod)
		want func(*podspec.Spec)
	}{
		{"a revision's pod", func(*corev1.Pod) {}, func(*podspec.Spec) {}},
		{
			"waiting for the pod can be asked for", func(p *corev1.Pod) { p.Annotations["wisp.dev/early-start"] = "false" },
			func(s *podspec.Spec) { s.EarlyStart = false },
		},
		{
			"what is the pod's own waits for it", func(p *corev1.Pod) { p.Spec.Containers[0].Env = fieldEnv("metadata.uid") },
			func(s *podspec.Spec) { s.EarlyStart = false },
		},
		{"what all its pods share does not", func(p *corev1.Pod) { p.Spec.Containers[0].Env = fieldEnv("status.hostIP") }, func(*podspec.Spec) {}},
		{
			"requests may run on for the grace period", func(p *corev1.Pod) { seconds := int64(300); p.Spec.TerminationGracePeriodSeconds = &seconds },
			func(s *podspec.Spec) { s.Grace = 300 * time.Second },
		},
		{"the sidecar may come first", func(p *corev1.Pod) {
			p.Spec.Containers[0], p.Spec.Containers[1] = p.Spec.Containers[1], p.Spec.Containers[0]
		}, func(s *podspec.Spec) { s.Containers[0].Path = "spec.containers[1]" }},
		{
			"the sidecar has the user's probe", func(p *corev1.Pod) {
				p.Spec.Containers[1].Env = append(p.Spec.Containers[1].Env, corev1.EnvVar{Name: "SERVING_READINESS_PROBE", Value: `{"tcpSocket":{"port":8080,"host":"127.0.0.1"},"successThreshold":1}`})
			},
			func(s *podspec.Spec) {
				s.Proxy.Readiness = []*corev1.Probe{{SuccessThreshold: 1, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080), Host: "127.0.0.1"}}}}
			},
		},
		{
			"a plain pod", func(p *corev1.Pod) { p.Labels, p.Annotations, p.Spec.Containers = nil, nil, p.Spec.Containers[:1] },
			func(s *podspec.Spec) {
				s.Revision, s.RevisionUID, s.TemplateHash, s.ABI = types.NamespacedName{}, "", "", ""
				s.Concurrency, s.Proxy, s.EarlyStart = 0, queueproxy.Settings{}, false
			},
		},
		{
			"a plain pod's queue-proxy is a container like others", func(p *corev1.Pod) { p.Labels = nil },
			func(s *podspec.Spec) {
				s.Revision, s.RevisionUID, s.TemplateHash = types.NamespacedName{}, "", ""
				s.Concurrency, s.Proxy, s.EarlyStart = 0, queueproxy.Settings{}, false
				s.Containers = append(s.Containers, podspec.Container{Path: "spec.containers[1]"})
			},
		},
		{
			"init containers", func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{{Name: "first"}} },
			func(s *podspec.Spec) {
				s.Init, s.EarlyStart = []podspec.Container{{Path: "spec.initContainers[0]"}}, false
			},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			want := podspec.Spec{
				Revision:     types.NamespacedName{Namespace: "default", Name: "sort-00001"},
				RevisionUID:  "rev-uid",
				TemplateHash: "abc",
				Containers:   []podspec.Container{{Path: "spec.containers[0]"}},
				Volumes:      map[string]corev1.Volume{},
				Restart:      corev1.RestartPolicyAlways,
				ABI:          "argv",
				Concurrency:  7,
				Proxy:        queueproxy.Settings{Concurrency: 7},
				EarlyStart:   true,
				Grace:        30 * time.Second,
			}
			test.want(&want)
			got, err := podspec.Parse(knativePod(test.edit))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(podspec.Container{}, "Container")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func fieldEnv(path string) []corev1.EnvVar {
	return []corev1.EnvVar{{Name: "F", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}}
}

func TestParseNamesEveryUnsupportedField(t *testing.T) {
	yes, root := true, int64(0)
	user := func(edit func(*corev1.Container)) func(*corev1.Pod) {
		return func(p *corev1.Pod) { edit(&p.Spec.Containers[0]) }
	}
	exec := corev1.ProbeHandler{Exec: &corev1.ExecAction{}}
	tests := []struct {
		name string
		edit func(*corev1.Pod)
		want []string
	}{
		{"only a sidecar", func(p *corev1.Pod) { p.Spec.Containers = p.Spec.Containers[1:] }, []string{"no container beside queue-proxy"}},
		{
			"the host's namespaces", func(p *corev1.Pod) { p.Spec.HostNetwork, p.Spec.HostPID, p.Spec.HostIPC = true, true, true },
			[]string{"spec.hostNetwork", "spec.hostPID", "spec.hostIPC"},
		},
		{"devices", func(p *corev1.Pod) { p.Spec.ResourceClaims = make([]corev1.PodResourceClaim, 1) }, []string{"spec.resourceClaims"}},
		{"devices as resources", user(func(c *corev1.Container) {
			c.Resources.Limits = corev1.ResourceList{"cpu": resource.MustParse("1"), "nvidia.com/gpu": resource.MustParse("1")}
		}), []string{"spec.containers[0].resources: nvidia.com/gpu"}},
		{"another system", func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }, []string{"spec.os.name"}},
		{"processes that see one another", func(p *corev1.Pod) { p.Spec.ShareProcessNamespace = &yes }, []string{"spec.shareProcessNamespace"}},
		{"sysctls", func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &root, Sysctls: make([]corev1.Sysctl, 1)}
		}, []string{"spec.securityContext.runAsUser: 0", "spec.securityContext.sysctls"}},
		{"volumes of others", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{
				{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}},
				{Name: "claim", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{}}},
				{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			}
		}, []string{"spec.volumes[0].hostPath (host)", "spec.volumes[1].persistentVolumeClaim (claim)"}},
		{"env of an unknown kind", user(func(c *corev1.Container) {
			c.Env = append(fieldEnv("spec.hostname"), corev1.EnvVar{Name: "R", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.hugepages-2Mi"}}})
		}), []string{"env[0].valueFrom.fieldRef.fieldPath = spec.hostname (F)", "env[1].valueFrom.resourceFieldRef.resource = limits.hugepages-2Mi (R)"}},
		{"block devices and shared mounts", user(func(c *corev1.Container) {
			shared := corev1.MountPropagationBidirectional
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{MountPath: "/data", MountPropagation: &shared})
			c.VolumeDevices = make([]corev1.VolumeDevice, 1)
		}), []string{"spec.containers[0].volumeMounts[1].mountPropagation (/data)", "spec.containers[0].volumeDevices"}},
		{"exec probes", user(func(c *corev1.Container) {
			c.LivenessProbe, c.StartupProbe, c.ReadinessProbe = &corev1.Probe{ProbeHandler: exec}, &corev1.Probe{ProbeHandler: exec}, &corev1.Probe{ProbeHandler: exec}
		}), []string{".livenessProbe.exec", ".startupProbe.exec", ".readinessProbe.exec"}},
		{"exec hooks", func(p *corev1.Pod) {
			p.Labels = nil
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{}}}
		}, []string{"spec.containers[0].lifecycle.preStop.exec"}},
		{"privileges", user(func(c *corev1.Container) {
			c.SecurityContext.Privileged, c.SecurityContext.RunAsUser = &yes, &root
			c.SecurityContext.Capabilities = &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}, Drop: []corev1.Capability{"ALL"}}
		}), []string{".securityContext.privileged", ".securityContext.capabilities.add", ".securityContext.runAsUser: 0"}},
		{"terminals", user(func(c *corev1.Container) { c.TTY, c.Stdin = true, true }), []string{".tty", ".stdin"}},
		{"a sidecar that makes no sense", func(p *corev1.Pod) {
			p.Spec.Containers[1].Env = []corev1.EnvVar{{Name: "CONTAINER_CONCURRENCY", Value: "many"}, {Name: "SERVING_READINESS_PROBE", Value: "soon"}}
		}, []string{`CONTAINER_CONCURRENCY = "many"`, `SERVING_READINESS_PROBE = "soon"`}},
		{"in init containers too", func(p *corev1.Pod) { p.Spec.InitContainers = []corev1.Container{{TTY: true}} }, []string{"spec.initContainers[0].tty"}},
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

// TestParseAcceptsWhatWasmHasAnyway is what the restricted Pod Security Standard
// asks of every pod, and more.
func TestParseAcceptsWhatWasmHasAnyway(t *testing.T) {
	yes, no, user := true, false, int64(1000)
	_, err := podspec.Parse(knativePod(func(p *corev1.Pod) {
		p.Spec.SecurityContext = &corev1.PodSecurityContext{
			RunAsNonRoot: &yes, RunAsUser: &user, RunAsGroup: &user, FSGroup: &user,
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		}
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
			AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Privileged: &no, RunAsUser: &user,
			Capabilities:    &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault},
			SELinuxOptions:  &corev1.SELinuxOptions{Level: "s0"},
		}
	}))
	if err != nil {
		t.Error(err)
	}
}

func TestExpand(t *testing.T) {
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
			c := podspec.Container{Container: &corev1.Container{Env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: test.value}, {Name: "LATER", Value: "2"}}}}
			got, err := c.Resolve(t.Context(), &corev1.Pod{}, podspec.Facts{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got.Env[1] != "B="+test.want {
				t.Errorf("got %s, want B=%s", got.Env[1], test.want)
			}
		})
	}
}

// objects is a Source that holds them in maps.
type objects struct {
	configMaps map[string]map[string]string
	secrets    map[string]map[string][]byte
	reads      int
}

func (o *objects) ConfigMap(_ context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	o.reads++
	data, ok := o.configMaps[namespace+"/"+name]
	if !ok {
		return nil, apierrors.NewNotFound(corev1.Resource("configmaps"), name)
	}
	return &corev1.ConfigMap{Data: data}, nil
}

func (o *objects) Secret(_ context.Context, namespace, name string) (*corev1.Secret, error) {
	o.reads++
	data, ok := o.secrets[namespace+"/"+name]
	if !ok {
		return nil, apierrors.NewNotFound(corev1.Resource("secrets"), name)
	}
	return &corev1.Secret{Data: data}, nil
}

func configMapKey(name, key string, optional bool) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Key: key, Optional: &optional}}
}

func secretKey(name, key string, optional bool) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Key: key, Optional: &optional}}
}

func resourceField(name, divisor string) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: name, Divisor: resource.MustParse(divisor)}}
}

func fromConfigMap(prefix, name string, optional bool) corev1.EnvFromSource {
	return corev1.EnvFromSource{Prefix: prefix, ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Optional: &optional}}
}

func fromSecret(name string, optional bool) corev1.EnvFromSource {
	return corev1.EnvFromSource{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Optional: &optional}}
}

func TestResolve(t *testing.T) {
	source := &objects{
		configMaps: map[string]map[string]string{"default/settings": {"color": "red", "size": "7", "a=b": "never"}},
		secrets:    map[string]map[string][]byte{"default/keys": {"token": []byte("s3cret"), "color": []byte("blue")}},
	}
	pod := knativePod(func(p *corev1.Pod) {
		p.Annotations["note"] = "hi"
		p.Spec.NodeName, p.Spec.ServiceAccountName = "wisp-0", "robot"
	})
	facts := podspec.Facts{
		PodIPs: []string{"10.0.0.1", "fd00::1"}, HostIPs: []string{"127.0.0.1"},
		Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("1Gi")},
		Services:    servicesOf(service("default", "kubernetes", "10.96.0.1", corev1.ServicePort{Name: "https", Port: 443})),
	}
	kubernetes := []string{
		"KUBERNETES_PORT=tcp://10.96.0.1:443", "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443", "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
		"KUBERNETES_PORT_443_TCP_PORT=443", "KUBERNETES_PORT_443_TCP_PROTO=tcp",
		"KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT=443", "KUBERNETES_SERVICE_PORT_HTTPS=443",
	}
	field := func(path string) *corev1.EnvVarSource { return fieldEnv(path)[0].ValueFrom }
	tests := []struct {
		name string
		edit func(*corev1.Container)
		want []string // after the Services'
	}{
		{"none", func(*corev1.Container) {}, nil},
		{
			"keys", func(c *corev1.Container) {
				c.Env = []corev1.EnvVar{{Name: "C", ValueFrom: configMapKey("settings", "color", false)}, {Name: "S", ValueFrom: secretKey("keys", "token", false)}, {Name: "BOTH", Value: "$(C)-$(S)"}}
			},
			[]string{"C=red", "S=s3cret", "BOTH=red-s3cret"},
		},
		{
			"optional keys that aren't there are left out", func(c *corev1.Container) {
				c.Env = []corev1.EnvVar{
					{Name: "A", ValueFrom: configMapKey("settings", "none", true)},
					{Name: "B", ValueFrom: configMapKey("none", "color", true)},
					{Name: "C", ValueFrom: secretKey("keys", "none", true)},
					{Name: "D", ValueFrom: secretKey("none", "token", true)},
					{Name: "E", Value: "here"},
				}
			},
			[]string{"E=here"},
		},
		{
			"whole objects, the later over the earlier, variables over both", func(c *corev1.Container) {
				c.EnvFrom = []corev1.EnvFromSource{fromConfigMap("", "settings", false), fromSecret("keys", false), fromConfigMap("X_", "settings", false), fromConfigMap("", "none", true)}
				c.Env = []corev1.EnvVar{{Name: "size", Value: "8"}, {Name: "REF", Value: "$(color)$(X_color)$(KUBERNETES_SERVICE_HOST)"}}
			},
			[]string{"color=blue", "size=8", "token=s3cret", "X_color=red", "X_size=7", "REF=bluered10.96.0.1"},
		},
		{
			"fields", func(c *corev1.Container) {
				for _, path := range []string{
					"metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels['pod-template-hash']", "metadata.annotations['note']",
					"spec.nodeName", "spec.serviceAccountName", "status.podIP", "status.podIPs", "status.hostIP", "status.hostIPs",
				} {
					c.Env = append(c.Env, corev1.EnvVar{Name: "F_" + path, ValueFrom: field(path)})
				}
			},
			[]string{
				"F_metadata.name=sort-00001-deployment-abc", "F_metadata.namespace=default", "F_metadata.uid=pod-uid", "F_metadata.labels['pod-template-hash']=abc", "F_metadata.annotations['note']=hi",
				"F_spec.nodeName=wisp-0", "F_spec.serviceAccountName=robot", "F_status.podIP=10.0.0.1", "F_status.podIPs=10.0.0.1,fd00::1", "F_status.hostIP=127.0.0.1", "F_status.hostIPs=127.0.0.1",
			},
		},
		{
			"resources, rounded up, a limit that isn't set is the node's", func(c *corev1.Container) {
				c.Resources = corev1.ResourceRequirements{
					Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("100Mi")},
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m")},
				}
				c.Env = []corev1.EnvVar{
					{Name: "A", ValueFrom: resourceField("limits.memory", "1Mi")},
					{Name: "B", ValueFrom: resourceField("limits.memory", "1Gi")},
					{Name: "C", ValueFrom: resourceField("limits.memory", "0")},
					{Name: "D", ValueFrom: resourceField("requests.cpu", "0")},
					{Name: "E", ValueFrom: resourceField("requests.cpu", "1m")},
					{Name: "F", ValueFrom: resourceField("limits.cpu", "1")},
					{Name: "G", ValueFrom: resourceField("requests.memory", "1")},
				}
			},
			[]string{"A=100", "B=1", "C=104857600", "D=2", "E=1500", "F=4", "G=0"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := podspec.Container{Container: &corev1.Container{}}
			test.edit(c.Container)
			got, err := c.Resolve(t.Context(), pod, facts, source)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(slices.Concat(kubernetes, test.want), got.Env); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func service(namespace, name, ip string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: ports}}
}

func servicesOf(all ...*corev1.Service) func(namespace string) []*corev1.Service {
	return func(namespace string) (in []*corev1.Service) {
		for _, s := range all {
			if s.Namespace == namespace {
				in = append(in, s)
			}
		}
		return in
	}
}

func TestServiceVariables(t *testing.T) {
	port := func(number int32) corev1.ServicePort { return corev1.ServicePort{Port: number} }
	facts := podspec.Facts{Services: servicesOf(
		service("default", "kubernetes", "10.96.0.1", port(443)),
		service("default", "other", "10.96.0.2", port(80)),
		service("shop", "web-shop", "10.96.0.3", corev1.ServicePort{Name: "dns-udp", Port: 53, Protocol: corev1.ProtocolUDP}, corev1.ServicePort{Name: "web", Port: 80}),
		service("shop", "headless", corev1.ClusterIPNone, port(80)),
		service("shop", "v6", "fd00::1", port(80)),
	)}
	hosts := func(links *bool) (names []string, all map[string]string) {
		c := podspec.Container{Container: &corev1.Container{}}
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}, Spec: corev1.PodSpec{EnableServiceLinks: links}}
		got, err := c.Resolve(t.Context(), pod, facts, &objects{})
		if err != nil {
			t.Fatal(err)
		}
		all = map[string]string{}
		for _, entry := range got.Env {
			name, value, _ := strings.Cut(entry, "=")
			all[name] = value
			if strings.HasSuffix(name, "_SERVICE_HOST") {
				names = append(names, name)
			}
		}
		return names, all
	}
	no := false
	if got, _ := hosts(&no); !slices.Equal(got, []string{"KUBERNETES_SERVICE_HOST"}) {
		t.Errorf("without links: got %q, want the API server's alone", got)
	}
	got, all := hosts(nil)
	if !slices.Equal(got, []string{"KUBERNETES_SERVICE_HOST", "V6_SERVICE_HOST", "WEB_SHOP_SERVICE_HOST"}) {
		t.Errorf("got %q, want the API server's and those of the namespace with an address", got)
	}
	for name, want := range map[string]string{
		"WEB_SHOP_SERVICE_PORT": "53", "WEB_SHOP_SERVICE_PORT_DNS_UDP": "53", "WEB_SHOP_SERVICE_PORT_WEB": "80",
		"WEB_SHOP_PORT": "udp://10.96.0.3:53", "WEB_SHOP_PORT_53_UDP_PROTO": "udp", "WEB_SHOP_PORT_80_TCP": "tcp://10.96.0.3:80",
		"V6_PORT_80_TCP": "tcp://[fd00::1]:80",
	} {
		if all[name] != want {
			t.Errorf("%s: got %q, want %q", name, all[name], want)
		}
	}
}

func TestResolveReadsAnObjectOnce(t *testing.T) {
	source := &objects{configMaps: map[string]map[string]string{"default/settings": {"color": "red", "a=b": "never"}}}
	c := podspec.Container{Container: &corev1.Container{
		EnvFrom: []corev1.EnvFromSource{fromConfigMap("", "settings", false)},
		Env:     []corev1.EnvVar{{Name: "C", ValueFrom: configMapKey("settings", "color", false)}},
		Command: []string{"sort.wasm", "$(C)"}, Args: []string{"$(color)"},
	}}
	got, err := c.Resolve(t.Context(), knativePod(), podspec.Facts{}, source)
	if err != nil {
		t.Fatal(err)
	}
	if source.reads != 1 {
		t.Errorf("got %d reads of one object, want 1", source.reads)
	}
	if diff := cmp.Diff([]string{"a=b"}, got.Skipped); diff != "" {
		t.Errorf("keys that are no names (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([][]string{{"sort.wasm", "red"}, {"red"}}, [][]string{got.Command, got.Args}); diff != "" {
		t.Errorf("command and args (-want +got):\n%s", diff)
	}
}

func TestResolveSaysWhatIsMissing(t *testing.T) {
	source := &objects{configMaps: map[string]map[string]string{"default/settings": {}}, secrets: map[string]map[string][]byte{"default/keys": {}}}
	tests := []struct {
		name string
		edit func(*corev1.Container)
		want string
	}{
		{"an object", func(c *corev1.Container) {
			c.Env = []corev1.EnvVar{{Name: "A", ValueFrom: configMapKey("gone", "k", false)}}
		}, `env[0] (A): configmaps "gone" not found`},
		{"a key", func(c *corev1.Container) {
			c.Env = []corev1.EnvVar{{Name: "A", ValueFrom: configMapKey("settings", "k", false)}}
		}, "couldn't find key k in ConfigMap default/settings"},
		{"a Secret's key", func(c *corev1.Container) {
			c.Env = []corev1.EnvVar{{Name: "A", ValueFrom: secretKey("keys", "k", false)}}
		}, "couldn't find key k in Secret default/keys"},
		{"a whole object", func(c *corev1.Container) { c.EnvFrom = []corev1.EnvFromSource{fromSecret("gone", false)} }, `envFrom[0]: secrets "gone" not found`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := podspec.Container{Container: &corev1.Container{}, Path: "spec.containers[0]"}
			test.edit(c.Container)
			_, err := c.Resolve(t.Context(), knativePod(), podspec.Facts{}, source)
			if err == nil || !strings.Contains(err.Error(), "spec.containers[0]."+strings.TrimPrefix(test.want, "spec.containers[0].")) && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}
