package provider

import (
	"strings"
	"testing"

	"github.com/tetratelabs/wazero/experimental/sys"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The directories that a plain pod's guest finds open, by descriptor.
const (
	rootDir = 3 + iota
	tmpDir
	scratchDir
	devDir // made for the termination message alone
)

func TestTerminationMessage(t *testing.T) {
	s := newStand(t)
	const usual, file, fallback = "/dev/termination-log", corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError
	does := func() *program { return new(program) }
	const log = "termination-log"
	tests := []struct {
		name    string
		path    string
		policy  corev1.TerminationMessagePolicy
		guest   *program
		message string
	}{
		{"nothing", usual, file, does().complain("no milk\n").exit(3), ""},
		{"file", usual, file, does().append(devDir, log, "no ").append(devDir, log, "milk").exit(3), "no milk"},
		{"success", usual, fallback, does().append(devDir, log, "milk").complain("no milk\n").exit(0), "milk"},
		{"in-tmp", "/tmp/said", file, does().append(tmpDir, "said", "milk").append(tmpDir, "other", "no milk").exit(1), "milk"},
		{"in-a-volume", "/scratch/said", file, does().append(scratchDir, "said", "milk").append(scratchDir, "other", "no milk").exit(1), "milk"},
		{"in-the-root", "/said", file, does().append(rootDir, "said", "milk").exit(1), "milk"},
		{"file-before-log", usual, fallback, does().append(devDir, log, "milk").complain("no milk\n").exit(3), "milk"},
		{"log", usual, fallback, does().complain("out of milk\n").exit(3), "out of milk\n"},
		{"no-log-of-success", usual, fallback, does().complain("no milk\n").exit(0), ""},
		{"no-path", "", file, does().append(devDir, log, "milk").exit(1), ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			image := s.push(t, test.name, test.guest.module())
			s.create(t, s.pod(test.name, types.UID(test.name), image, plain(corev1.RestartPolicyNever), func(p *corev1.Pod) {
				c := &p.Spec.Containers[0]
				c.TerminationMessagePath, c.TerminationMessagePolicy = test.path, test.policy
				p.Spec.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
				c.VolumeMounts = []corev1.VolumeMount{{Name: "scratch", MountPath: "/scratch"}}
			}))
			s.await(t, test.name, "ended", func(p *corev1.Pod) bool {
				return p != nil && (p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed)
			})
			ended := s.get(t, test.name).Status.ContainerStatuses[0].State.Terminated
			if ended == nil || ended.Message != test.message {
				t.Errorf("got %+v, want message %q", ended, test.message)
			}
		})
	}
}

// TestMessageIsBounded is about a guest that writes more than anybody reads.
func TestMessageIsBounded(t *testing.T) {
	m, err := newMessage()
	if err != nil {
		t.Fatal(err)
	}
	f, errno := m.fs.OpenFile(messageName, sys.O_WRONLY|sys.O_APPEND, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	written := 0
	for errno == 0 {
		var n int
		n, errno = f.Write([]byte(strings.Repeat("x", 999) + "\n"))
		written += n
	}
	if written < maxMessage || written > maxMessageFile {
		t.Errorf("%d bytes were taken, want at most %d", written, maxMessageFile)
	}
	if got := m.text(); len(got) != maxMessage || !strings.HasSuffix(got, "x\n") {
		t.Errorf("got %d bytes of the message, want the last %d", len(got), maxMessage)
	}
}
