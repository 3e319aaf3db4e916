package podspec

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// unsupported collects what stands in a pod's way.
//
// What wasm has anyway is passed over: a guest can't gain privileges, make
// system calls, see other processes or write to its image, so seccomp, AppArmor,
// SELinux, dropped capabilities, runAsNonRoot, readOnlyRootFilesystem, a user
// other than root, groups and defaultMode say nothing new.
type unsupported []string

func (u *unsupported) add(format string, args ...any) { *u = append(*u, fmt.Sprintf(format, args...)) }

func (u *unsupported) addIf(bad bool, format string, args ...any) {
	if bad {
		u.add(format, args...)
	}
}

// errors adds each of the errors that are joined in err.
func (u *unsupported) errors(err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			u.add("%s", e)
		}
	} else if err != nil {
		u.add("%s", err)
	}
}

func (u *unsupported) pod(spec *corev1.PodSpec) {
	u.addIf(spec.HostNetwork, "spec.hostNetwork")
	u.addIf(spec.HostPID, "spec.hostPID")
	u.addIf(spec.HostIPC, "spec.hostIPC")
	u.addIf(isTrue(spec.ShareProcessNamespace), "spec.shareProcessNamespace")
	u.addIf(len(spec.ResourceClaims) > 0, "spec.resourceClaims")
	u.addIf(spec.OS != nil && spec.OS.Name != corev1.Linux, "spec.os.name")
	if s := spec.SecurityContext; s != nil {
		u.addIf(isRoot(s.RunAsUser), "spec.securityContext.runAsUser: 0")
		u.addIf(len(s.Sysctls) > 0, "spec.securityContext.sysctls")
		u.addIf(s.WindowsOptions != nil, "spec.securityContext.windowsOptions")
	}
	for i := range spec.Volumes {
		u.volume(fmt.Sprintf("spec.volumes[%d]", i), &spec.Volumes[i])
	}
}

// volume names the kind of one that is none of those the node can fill.
func (u *unsupported) volume(path string, v *corev1.Volume) {
	switch {
	case v.EmptyDir != nil:
		u.addIf(v.EmptyDir.Medium != corev1.StorageMediumDefault && v.EmptyDir.Medium != corev1.StorageMediumMemory, "%s.emptyDir.medium = %s (%s)", path, v.EmptyDir.Medium, v.Name)
	case v.Projected != nil:
		for i, s := range v.Projected.Sources {
			u.addIf(s.ClusterTrustBundle != nil, "%s.projected.sources[%d].clusterTrustBundle (%s)", path, i, v.Name)
			u.addIf(s.PodCertificate != nil, "%s.projected.sources[%d].podCertificate (%s)", path, i, v.Name)
		}
	case v.ConfigMap != nil, v.Secret != nil, v.DownwardAPI != nil:
	default:
		u.add("%s.%s (%s)", path, kindOf(&v.VolumeSource), v.Name)
	}
}

// kindOf returns the name of the one field that is set, as in the API.
func kindOf(source *corev1.VolumeSource) string {
	value := reflect.ValueOf(source).Elem()
	for i := range value.NumField() {
		if !value.Field(i).IsZero() {
			name, _, _ := strings.Cut(value.Type().Field(i).Tag.Get("json"), ",")
			return name
		}
	}
	return "unknown"
}

func (u *unsupported) container(c Container, revision bool) {
	u.addIf(c.TTY, "%s.tty", c.Path)
	u.addIf(c.Stdin, "%s.stdin", c.Path)
	u.addIf(len(c.VolumeDevices) > 0, "%s.volumeDevices", c.Path)
	u.addIf(len(c.RestartPolicyRules) > 0, "%s.restartPolicyRules", c.Path)
	u.addIf(c.RestartPolicy != nil && !c.Sidecar(), "%s.restartPolicy", c.Path)
	for i, e := range c.Env {
		u.env(fmt.Sprintf("%s.env[%d]", c.Path, i), e)
	}
	for i, m := range c.VolumeMounts {
		propagates := m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone
		u.addIf(propagates, "%s.volumeMounts[%d].mountPropagation (%s)", c.Path, i, m.MountPath)
	}
	for _, name := range resources(c.Container) {
		u.add("%s.resources: %s", c.Path, name)
	}
	u.probe(c.Path+".livenessProbe", c.LivenessProbe)
	u.probe(c.Path+".startupProbe", c.StartupProbe)
	u.probe(c.Path+".readinessProbe", c.ReadinessProbe)
	if !revision { // Knative's own preStop hook waits for the sidecar to drain, which the node does.
		u.lifecycle(c.Path+".lifecycle", c.Lifecycle)
	}
	u.securityContext(c.Path+".securityContext", c.SecurityContext)
}

func (u *unsupported) env(path string, e corev1.EnvVar) {
	from := e.ValueFrom
	if from == nil {
		return
	}
	switch {
	case from.FieldRef != nil:
		u.addIf(!knownField(from.FieldRef.FieldPath), "%s.valueFrom.fieldRef.fieldPath = %s (%s)", path, from.FieldRef.FieldPath, e.Name)
	case from.ResourceFieldRef != nil:
		u.addIf(!knownResource(from.ResourceFieldRef.Resource), "%s.valueFrom.resourceFieldRef.resource = %s (%s)", path, from.ResourceFieldRef.Resource, e.Name)
	case from.ConfigMapKeyRef != nil, from.SecretKeyRef != nil:
	default:
		u.add("%s.valueFrom (%s)", path, e.Name)
	}
}

// resources returns what the container asks for that a wasm node hasn't got:
// devices and huge pages.
func resources(c *corev1.Container) []string {
	var names []string
	for _, list := range []corev1.ResourceList{c.Resources.Limits, c.Resources.Requests} {
		for name := range list {
			switch name {
			case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
			default:
				names = append(names, string(name))
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (u *unsupported) probe(path string, p *corev1.Probe) {
	u.addIf(p != nil && p.Exec != nil, "%s.exec", path)
}

func (u *unsupported) lifecycle(path string, l *corev1.Lifecycle) {
	if l == nil {
		return
	}
	u.hook(path+".postStart", l.PostStart)
	u.hook(path+".preStop", l.PreStop)
	u.addIf(l.StopSignal != nil, "%s.stopSignal", path)
}

func (u *unsupported) hook(path string, h *corev1.LifecycleHandler) {
	if h == nil {
		return
	}
	u.addIf(h.Exec != nil, "%s.exec", path)
	u.addIf(h.TCPSocket != nil, "%s.tcpSocket", path)
	u.addIf(h.HTTPGet != nil && h.HTTPGet.Host != "", "%s.httpGet.host", path)
}

func (u *unsupported) securityContext(path string, s *corev1.SecurityContext) {
	if s == nil {
		return
	}
	u.addIf(isTrue(s.Privileged), "%s.privileged", path)
	u.addIf(s.Capabilities != nil && len(s.Capabilities.Add) > 0, "%s.capabilities.add", path)
	u.addIf(isRoot(s.RunAsUser), "%s.runAsUser: 0", path)
	u.addIf(s.ProcMount != nil && *s.ProcMount != corev1.DefaultProcMount, "%s.procMount", path)
	u.addIf(s.WindowsOptions != nil, "%s.windowsOptions", path)
}

func isTrue(b *bool) bool { return b != nil && *b }

func isRoot(user *int64) bool { return user != nil && *user == 0 }
