package volume_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/tetratelabs/wazero/experimental/sys"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/provider/volume"
)

// api is a Source that holds objects in maps.
type api struct {
	configMaps, secrets map[string]map[string]string
	tokens              int
}

func (a *api) ConfigMap(_ context.Context, _, name string) (*corev1.ConfigMap, error) {
	if data, ok := a.configMaps[name]; ok {
		return &corev1.ConfigMap{Data: data}, nil
	}
	return nil, apierrors.NewNotFound(corev1.Resource("configmaps"), name)
}

func (a *api) Secret(_ context.Context, _, name string) (*corev1.Secret, error) {
	data, ok := a.secrets[name]
	if !ok {
		return nil, apierrors.NewNotFound(corev1.Resource("secrets"), name)
	}
	secret := &corev1.Secret{Data: map[string][]byte{}}
	for k, v := range data {
		secret.Data[k] = []byte(v)
	}
	return secret, nil
}

func (a *api) Token(_ context.Context, _ *corev1.Pod, p *corev1.ServiceAccountTokenProjection) (string, time.Time, error) {
	a.tokens++
	return fmt.Sprintf("token %d for %s", a.tokens, p.Audience), time.Time{}, nil
}

func newSet(t *testing.T, source *api, volumes ...corev1.Volume) (*volume.Set, error) {
	t.Helper()
	byName := map[string]corev1.Volume{}
	for _, v := range volumes {
		byName[v.Name] = v
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "sort", Labels: map[string]string{"b": "2", "a": "1"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{"memory": resource.MustParse("64Mi")}}}}},
	}
	return volume.New(t.Context(), volume.Config{
		Dir: t.TempDir(), EmptyDirSize: 64 << 10, Source: source,
		Pod: func() *corev1.Pod { return pod }, Facts: func() podspec.Facts { return podspec.Facts{} },
	}, byName)
}

// mount returns the one mount of a volume.
func mount(t *testing.T, s *volume.Set, m corev1.VolumeMount) volume.Mount {
	t.Helper()
	mounts, err := s.Mounts(&corev1.Container{VolumeMounts: []corev1.VolumeMount{m}}, strings.ToUpper)
	if err != nil {
		t.Fatal(err)
	}
	return mounts[0]
}

// read returns a file's content as a guest gets it.
func read(t *testing.T, from sys.FS, name string) (string, sys.Errno) {
	t.Helper()
	f, errno := from.OpenFile(name, sys.O_RDONLY, 0)
	if errno != 0 {
		return "", errno
	}
	defer f.Close()
	b := make([]byte, 1<<10)
	n, errno := f.Read(b)
	return string(b[:n]), errno
}

func configMap(name, of string, items ...corev1.KeyToPath) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: of}, Items: items}}}
}

func TestContent(t *testing.T) {
	source := &api{
		configMaps: map[string]map[string]string{"settings": {"color": "red", "size": "7"}},
		secrets:    map[string]map[string]string{"keys": {"password": "s3cret"}},
	}
	yes := true
	projected := corev1.Volume{Name: "all", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}, Items: []corev1.KeyToPath{{Key: "color", Path: "look/color"}}}},
		{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "keys"}}},
		{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Optional: &yes}},
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "us", Path: "token"}},
		{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
			{Path: "memory", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "main", Resource: "limits.memory"}},
		}}},
	}}}}
	s, err := newSet(t, source, projected, configMap("settings", "settings"))
	if err != nil {
		t.Fatal(err)
	}
	all := mount(t, s, corev1.VolumeMount{Name: "all", MountPath: "/all/"})
	if all.Path != "/all" || !all.ReadOnly {
		t.Errorf("got a mount at %s, read-only: %v", all.Path, all.ReadOnly)
	}
	got := map[string]string{}
	for _, name := range []string{"look/color", "password", "token", "labels", "memory"} {
		got[name], _ = read(t, all.FS, name)
	}
	want := map[string]string{"look/color": "red", "password": "s3cret", "token": "token 1 for us", "labels": "a=\"1\"\nb=\"2\"", "memory": "67108864"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	part := mount(t, s, corev1.VolumeMount{Name: "all", MountPath: "/look", SubPath: "look"})
	if text, errno := read(t, part.FS, "color"); text != "red" {
		t.Errorf("subPath: got %q, %v", text, errno)
	}
	one := mount(t, s, corev1.VolumeMount{Name: "settings", MountPath: "/etc/app.conf", SubPath: "color"})
	if text, errno := read(t, one.FS, one.File); one.Path != "/etc/app.conf" || text != "red" {
		t.Errorf("subPath of a file: got %q, %v at %s", text, errno, one.Path)
	}
}

func TestMissing(t *testing.T) {
	source := &api{configMaps: map[string]map[string]string{"settings": {}}}
	_, err := newSet(t, source, configMap("a", "none"), configMap("b", "settings", corev1.KeyToPath{Key: "color", Path: "color"}))
	for _, want := range []string{`volume "a": configmaps "none" not found`, `volume "b": references non-existent key: color`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to say %s", err, want)
		}
	}
	s, err := newSet(t, source, configMap("settings", "settings"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []corev1.VolumeMount{{Name: "none"}, {Name: "settings", SubPath: "../up"}, {Name: "settings", SubPathExpr: "/abs"}} {
		if _, err := s.Mounts(&corev1.Container{VolumeMounts: []corev1.VolumeMount{m}}, strings.ToUpper); err == nil {
			t.Errorf("mount %+v: got no error", m)
		}
	}
}

func TestRefresh(t *testing.T) {
	source := &api{configMaps: map[string]map[string]string{"settings": {"color": "red", "old": "x"}}}
	s, err := newSet(t, source, configMap("settings", "settings"))
	if err != nil {
		t.Fatal(err)
	}
	m := mount(t, s, corev1.VolumeMount{Name: "settings", MountPath: "/etc"})
	open, errno := m.FS.OpenFile("color", sys.O_RDONLY, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	source.configMaps["settings"] = map[string]string{"color": "blue", "new": "y"}
	if err := s.Refresh(t.Context(), source); err != nil {
		t.Fatal(err)
	}
	if text, _ := read(t, m.FS, "color"); text != "blue" {
		t.Errorf("got %q, want the new content", text)
	}
	if _, errno := read(t, m.FS, "old"); errno != sys.ENOENT {
		t.Errorf("got %v for a key that is gone, want ENOENT", errno)
	}
	b := make([]byte, 10)
	if n, _ := open.Read(b); string(b[:n]) != "red" {
		t.Errorf("got %q from a file that was open, want the old content", b[:n])
	}
	delete(source.configMaps, "settings")
	if err := s.Refresh(t.Context(), source); err == nil {
		t.Error("got no error for a ConfigMap that is gone")
	}
	if text, _ := read(t, m.FS, "color"); text != "blue" {
		t.Errorf("got %q after that, want the last content", text)
	}
}

// TestImplicitToken is the volume that every pod has and hardly one looks into.
func TestImplicitToken(t *testing.T) {
	source := &api{}
	s, err := newSet(t, source, corev1.Volume{Name: "kube-api-access-x", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	m := mount(t, s, corev1.VolumeMount{Name: "kube-api-access-x", MountPath: podspec.TokenPath})
	if source.tokens != 0 || s.Changes() {
		t.Errorf("got %d tokens before a guest looked, want 0", source.tokens)
	}
	for range 2 {
		if text, errno := read(t, m.FS, "token"); !strings.HasPrefix(text, "token 1") {
			t.Errorf("got %q, %v", text, errno)
		}
	}
	if !s.Changes() {
		t.Error("a token that was read is not refreshed")
	}
}

func TestEmptyDir(t *testing.T) {
	s, err := newSet(t, nil, corev1.Volume{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	if err != nil {
		t.Fatal(err)
	}
	m := mount(t, s, corev1.VolumeMount{Name: "scratch", MountPath: "/data"})
	if m.ReadOnly {
		t.Error("got it read-only")
	}
	write := func(name string, size int) sys.Errno {
		t.Helper()
		f, errno := m.FS.OpenFile(name, sys.O_CREAT|sys.O_RDWR, 0o600)
		if errno != 0 {
			return errno
		}
		defer f.Close()
		_, errno = f.Write(make([]byte, size))
		return errno
	}
	if errno := write("a", 40<<10); errno != 0 {
		t.Fatal(errno)
	}
	if errno := write("b", 40<<10); errno == 0 {
		t.Error("80 KiB went into a volume of 64")
	}
	f, errno := m.FS.OpenFile("a", sys.O_RDWR, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	if errno := f.Truncate(1 << 40); errno == 0 {
		t.Error("a terabyte went into a volume of 64 KiB")
	}
	if _, errno := f.Pwrite([]byte("x"), 1<<40); errno == 0 {
		t.Error("a write at a terabyte went into a volume of 64 KiB")
	}
	f.Close()
	var full sys.Errno
	for i := 0; i < 100 && full == 0; i++ {
		full = m.FS.Mkdir(fmt.Sprintf("dir%d", i), 0o700)
	}
	if full == 0 {
		t.Error("100 folders went into a volume of 64 KiB")
	}
	for _, target := range []string{"/etc/passwd", "../../up", "a/../../up"} {
		if errno := m.FS.Symlink(target, "link"); errno != sys.EPERM {
			t.Errorf("link to %s: got %v, want EPERM", target, errno)
		}
	}
}

// TestEmptyDirHasRoomAgain is a guest that removes what it has written.
func TestEmptyDirHasRoomAgain(t *testing.T) {
	limit := resource.MustParse("32Ki")
	s, err := newSet(t, nil, corev1.Volume{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}}})
	if err != nil {
		t.Fatal(err)
	}
	m := mount(t, s, corev1.VolumeMount{Name: "scratch", MountPath: "/data"})
	fill := func() sys.Errno {
		f, errno := m.FS.OpenFile("a", sys.O_CREAT|sys.O_RDWR, 0o600)
		if errno != 0 {
			return errno
		}
		defer f.Close()
		_, errno = f.Write(make([]byte, 20<<10))
		return errno
	}
	if errno := fill(); errno != 0 {
		t.Fatal(errno)
	}
	if errno := m.FS.Unlink("a"); errno != 0 {
		t.Fatal(errno)
	}
	if errno := fill(); errno != 0 {
		t.Errorf("got %v after the file was removed, want room again", errno)
	}
}

func TestSubPathOfEmptyDirStaysInside(t *testing.T) {
	dir := t.TempDir()
	s, err := volume.New(t.Context(), volume.Config{Dir: dir, EmptyDirSize: 1 << 20}, map[string]corev1.Volume{
		"scratch": {Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	mount(t, s, corev1.VolumeMount{Name: "scratch", MountPath: "/a", SubPath: "deep/er"})
	if _, err := os.Stat(filepath.Join(dir, "scratch/deep/er")); err != nil {
		t.Error(err)
	}
	// As if a guest had got a link to the outside into its volume.
	if err := os.Symlink(t.TempDir(), filepath.Join(dir, "scratch/out")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Mounts(&corev1.Container{VolumeMounts: []corev1.VolumeMount{{Name: "scratch", SubPath: "out/side"}}}, nil); err == nil {
		t.Error("got no error for a subPath by a link to the outside")
	}
}

func TestTree(t *testing.T) {
	tree := volume.NewTree(nil)
	tree.Set(map[string][]byte{"a": []byte("1"), "dir/b": []byte("22"), "dir/sub/c": nil, "../out": nil, "/abs": nil})
	if err := fstest.TestFS(tree, "a", "dir/b", "dir/sub/c"); err != nil {
		t.Error(err)
	}
	if _, err := fs.Stat(tree, "out"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v for a path that leads out, want it left out", err)
	}
}

// TestMemory is about an emptyDir in memory: its limits, and a part of it.
func TestMemory(t *testing.T) {
	limit := resource.MustParse("64Ki")
	emptyDir := func(name string, limit *resource.Quantity) corev1.Volume {
		return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: limit}}}
	}
	s, err := newSet(t, &api{}, emptyDir("limited", &limit), emptyDir("free", nil))
	if err != nil {
		t.Fatal(err)
	}
	fill := func(m volume.Mount) (written int) {
		f, errno := m.FS.OpenFile("fill", sys.O_CREAT|sys.O_WRONLY, 0o600)
		for b := make([]byte, 1<<10); errno == 0 && written < 1<<20; {
			var n int
			n, errno = f.Write(b)
			written += n
		}
		return written
	}
	limited := mount(t, s, corev1.VolumeMount{Name: "limited", MountPath: "/m"})
	if got := fill(limited); got < 32<<10 || got > 64<<10 || limited.Memory == nil {
		t.Errorf("%d bytes went into a volume of 64 KiB", got)
	}
	if got := fill(mount(t, s, corev1.VolumeMount{Name: "free", MountPath: "/f"})); got != 1<<20 {
		t.Errorf("%d bytes went into a volume without a limit", got)
	}

	part := mount(t, s, corev1.VolumeMount{Name: "free", MountPath: "/part", SubPath: "a/b"})
	f, errno := part.FS.OpenFile("file", sys.O_CREAT|sys.O_WRONLY, 0o600)
	if errno != 0 {
		t.Fatal(errno)
	}
	f.Write([]byte("hello"))
	whole := mount(t, s, corev1.VolumeMount{Name: "free", MountPath: "/f"})
	if text, errno := read(t, whole.FS, "a/b/file"); text != "hello" {
		t.Errorf("got %q, %v through the whole volume", text, errno)
	}
	if _, errno := part.FS.Stat("fill"); errno != sys.ENOENT {
		t.Errorf("got %v for a file outside the part, want ENOENT", errno)
	}
	if errno := part.FS.Rename("file", "other"); errno != 0 {
		t.Error(errno)
	}
	if text, errno := read(t, part.FS, "other"); text != "hello" {
		t.Errorf("got %q, %v after a rename", text, errno)
	}
}
