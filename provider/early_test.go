package provider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/tetratelabs/wazero/experimental/sys"
	"go.uber.org/zap/zaptest"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/sandbox"
	"github.com/wisp-serving/wisp/runtime/wasi"
)

// sortKey names the revision of the stand's pods.
var sortKey = types.NamespacedName{Namespace: "default", Name: "sort-00001"}

func TestEarlyStart(t *testing.T) {
	t.Run("not before the revision was admitted here", func(t *testing.T) {
		s := newStand(t)
		if err := s.StartEarly(t.Context(), sortKey, "rev"); err == nil {
			t.Error("got no error")
		}
	})
	t.Run("not where the revision asks to wait", func(t *testing.T) {
		s, _ := admitted(t, func(p *corev1.Pod) { p.Annotations[config.EarlyStartAnnotation] = "false" })
		if err := s.StartEarly(t.Context(), sortKey, "rev"); err == nil || !strings.Contains(err.Error(), "asks to wait") {
			t.Errorf("got %v, want to wait for the pod", err)
		}
	})
	t.Run("once per revision", func(t *testing.T) {
		s, _ := admitted(t)
		startEarly(t, s)
		if err := s.StartEarly(t.Context(), sortKey, "rev"); err == nil {
			t.Error("a second start: got no error")
		}
	})
	t.Run("the pod that comes adopts it", func(t *testing.T) {
		s, image := admitted(t)
		id := startEarly(t, s)
		pod := s.pod("second", "second", image)
		s.create(t, pod)
		s.awaitReady(t, "second")
		s.markDeleted(t, pod)
		s.awaitGone(t, "second")
		// Nothing else between: the function never left the router for the pod.
		s.expect(t, "adopted "+id)
		s.expect(t, "remove "+id)
	})
	t.Run("a pod of another template does not", func(t *testing.T) {
		s, image := admitted(t)
		startEarly(t, s)
		s.create(t, s.pod("second", "second", image, func(p *corev1.Pod) { p.Labels["pod-template-hash"] = "other" }))
		s.awaitReady(t, "second")
		s.expect(t, "add second")
	})
	t.Run("a function that was adopted keeps its place", func(t *testing.T) {
		s, image := admitted(t)
		id := startEarly(t, s)
		s.create(t, s.pod("second", "second", image))
		s.awaitReady(t, "second")
		s.expect(t, "adopted "+id)
		// As by a request that found no target just before.
		if err := s.StartEarly(t.Context(), sortKey, "rev"); err != nil {
			t.Fatal(err)
		}
		if got := <-s.router.changes; got == "add "+id {
			t.Errorf("got %q told to the router again: it would replace the pod's function", got)
		}
	})
	t.Run("a pod of another namespace neither adopts it nor says how it starts", func(t *testing.T) {
		s, _ := admitted(t)
		startEarly(t, s)
		foreign := s.pod("foreign", "foreign", s.push(t, "foreign", emptyCommand))
		foreign.Namespace = "elsewhere"
		if f := s.early.adopt(t.Context(), specOf(t, foreign), io.Discard, io.Discard); f != nil {
			t.Errorf("the foreign pod adopted %s", f.target)
		}
		s.early.admit(foreign, oci.Image{Reference: foreign.Spec.Containers[0].Image})
		if got, _ := s.early.templates.get(revisionKey{sortKey, "rev"}); got.spec.Revision != sortKey {
			t.Errorf("got the template of %s for %s", got.spec.Revision, sortKey)
		}
	})
	t.Run("it ends with its revision", func(t *testing.T) {
		s, _ := admitted(t)
		id := startEarly(t, s)
		s.ForgetRevision(sortKey, "rev")
		s.expect(t, "remove "+id)
		if err := s.StartEarly(t.Context(), sortKey, "rev"); err == nil {
			t.Error("a start of a deleted revision: got no error")
		}
	})
	t.Run("it ends with its lease", func(t *testing.T) {
		s, _ := admitted(t)
		s.early.lease = time.Millisecond
		if err := s.StartEarly(t.Context(), sortKey, "rev"); err != nil {
			t.Fatal(err)
		}
		id := strings.TrimPrefix(<-s.router.changes, "add ")
		s.expect(t, "remove "+id)
	})
	t.Run("it ends when Kubernetes refuses the pod, and none follows while that stands", func(t *testing.T) {
		s, _ := admitted(t)
		id := startEarly(t, s)
		s.outlook.refuse("exceeded quota")
		s.RefuseRevision(sortKey, "rev", "exceeded quota")
		s.expect(t, "remove "+id)
		if err := s.StartEarly(t.Context(), sortKey, "rev"); err == nil || !strings.Contains(err.Error(), "exceeded quota") {
			t.Errorf("got %v, want the refusal", err)
		}
		s.outlook.refuse("")
		startEarly(t, s)
	})
	t.Run("it ends when a pod takes requests on another node", func(t *testing.T) {
		s, image := admitted(t)
		id := startEarly(t, s)
		elsewhere := s.pod("second", "second", image)
		elsewhere.Spec.NodeName = "wisp-1"
		foreign := elsewhere.DeepCopy()
		foreign.Namespace = "elsewhere"
		s.LearnPod(foreign)
		if n := len(s.router.changes); n != 0 {
			t.Errorf("got %q for a pod of another namespace", <-s.router.changes)
		}
		s.LearnPod(elsewhere)
		s.expect(t, "remove "+id)
	})
	t.Run("a refusal is not about what a pod has adopted", func(t *testing.T) {
		s, image := admitted(t)
		id := startEarly(t, s)
		s.create(t, s.pod("second", "second", image))
		s.awaitReady(t, "second")
		s.expect(t, "adopted "+id)
		s.RefuseRevision(sortKey, "rev", "exceeded quota: a second pod")
		if code := s.router.call(t); code != http.StatusOK {
			t.Errorf("got %d from the pod's function, want 200", code)
		}
	})
	t.Run("a silent API server extends the lease", func(t *testing.T) {
		s, _ := admitted(t)
		s.outlook.silence(true)
		s.early.lease = time.Millisecond
		if err := s.StartEarly(t.Context(), sortKey, "rev"); err != nil {
			t.Fatal(err)
		}
		id := strings.TrimPrefix(<-s.router.changes, "add ")
		for range 3 {
			<-s.outlook.asked
		}
		if n := len(s.router.changes); n != 0 {
			t.Errorf("got %q while the API server is silent", <-s.router.changes)
		}
		s.outlook.silence(false)
		s.expect(t, "remove "+id)
	})
	t.Run("not from a template that the revision no longer has", func(t *testing.T) {
		s := newStand(t)
		s.outlook.digest("one")
		s.admitAndEnd(t)
		s.outlook.digest("two")
		if err := s.StartEarly(t.Context(), sortKey, "rev"); err == nil || !strings.Contains(err.Error(), "present template") {
			t.Errorf("got %v, want to wait for a pod of the present template", err)
		}
		s.outlook.digest("one")
		startEarly(t, s)
	})
	t.Run("after a restart of the node", func(t *testing.T) {
		s, _ := admitted(t)
		s.stop()
		s.start(t)
		startEarly(t, s)
	})
	t.Run("not after a restart, of a revision that was deleted meanwhile", func(t *testing.T) {
		s, _ := admitted(t)
		s.stop()
		s.start(t)
		s.KeepRevisions(func(key types.NamespacedName, uid types.UID) bool { return key != sortKey || uid != "rev" })
		if err := s.StartEarly(t.Context(), sortKey, "rev"); err == nil {
			t.Error("got no error")
		}
		if files, err := os.ReadDir(s.early.templates.dir); err != nil || len(files) != 0 {
			t.Errorf("got %v, %v left on disk, want nothing", files, err)
		}
	})
	t.Run("of a revision that has run on another node", func(t *testing.T) {
		s := newStand(t)
		image := s.push(t, "sort", emptyCommand)
		elsewhere := s.pod("first", "first", image)
		elsewhere.Spec.NodeName = "wisp-1"
		elsewhere.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "user-container", ImageID: image}}
		s.LearnPod(elsewhere)
		startEarly(t, s)
	})
	t.Run("it ends when its server does", func(t *testing.T) {
		s := newStand(t)
		image := s.push(t, "sort", emptyCommand) // which serves nothing, and ends
		elsewhere := s.pod("first", "first", image, func(p *corev1.Pod) { p.Annotations[config.ABIAnnotation] = "server" })
		elsewhere.Spec.NodeName = "wisp-1"
		elsewhere.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "user-container", ImageID: image}}
		s.LearnPod(elsewhere)
		if err := s.StartEarly(t.Context(), sortKey, "rev"); err != nil {
			t.Fatal(err)
		}
		id := strings.TrimPrefix(<-s.router.changes, "add ")
		s.expect(t, "remove "+id)
	})
	t.Run("with what it takes from ConfigMaps and Secrets, as they are now", func(t *testing.T) {
		s, image := admitted(t, needsObjects)
		s.objects.set("blue", "s3cret")
		specs := s.recordStarts()
		startEarly(t, s)
		spec := <-specs
		if !slices.Contains(spec.Env, "COLOR=blue") || !slices.Contains(spec.Env, "token=s3cret") {
			t.Errorf("got environment %q, want the ConfigMap's and the Secret's", spec.Env)
		}
		if got := content(t, spec.Mounts, "/keys", "token"); got != "s3cret" {
			t.Errorf("got %q in the volume, want s3cret", got)
		}
		// The pod that adopts it keeps its volume up to date.
		pod := s.pod("second", "second", image, needsObjects)
		s.objects.create(t, s.client, "red", "n3w")
		s.create(t, pod)
		s.awaitReady(t, "second")
		s.refreshOnce(t.Context())
		if got := content(t, spec.Mounts, "/keys", "token"); got != "n3w" {
			t.Errorf("after the Secret's change got %q in the volume, want n3w", got)
		}
	})
	t.Run("not with a ConfigMap or a Secret that may have changed", func(t *testing.T) {
		s, _ := admitted(t, needsObjects)
		s.objects.lose()
		if err := s.StartEarly(t.Context(), sortKey, "rev"); err == nil || !strings.Contains(err.Error(), "no current copy") {
			t.Errorf("got %v, want to wait for the pod", err)
		}
		s.objects.set("blue", "s3cret")
		startEarly(t, s)
	})
	t.Run("and nothing that no revision needs is held", func(t *testing.T) {
		s, _ := admitted(t, needsObjects)
		want := []podspec.Reference{{Kind: podspec.ConfigMap, Name: "settings"}, {Kind: podspec.Secret, Name: "keys"}}
		if diff := cmp.Diff(map[string][]podspec.Reference{"default/sort-00001/rev": want}, s.objects.all()); diff != "" {
			t.Errorf("held (-want +got):\n%s", diff)
		}
		s.stop()
		s.objects.holders = nil
		s.start(t)
		if diff := cmp.Diff(map[string][]podspec.Reference{"default/sort-00001/rev": want}, s.objects.all()); diff != "" {
			t.Errorf("held after a restart of the node (-want +got):\n%s", diff)
		}
		s.ForgetRevision(sortKey, "rev")
		if held := s.objects.all(); len(held) != 0 {
			t.Errorf("got %v held once the revision is gone, want nothing", held)
		}
	})
	t.Run("what it writes goes to the pod that adopts it", func(t *testing.T) {
		s, image := admitted(t)
		startEarly(t, s)
		ef := s.early.running(revisionKey{sortKey, "rev"})
		fmt.Fprintln(ef.function.logs.writer(stderr), "before")
		var out, errs strings.Builder
		f := s.early.adopt(t.Context(), specOf(t, s.pod("second", "second", image)), &out, &errs)
		fmt.Fprintln(f.logs.writer(stderr), "after")
		if out.String() != "" || errs.String() != "before\nafter\n" {
			t.Errorf("the pod's logs have %q and %q, want both lines of stderr", out.String(), errs.String())
		}
		s.early.finish(ef.template.spec, f)
	})
}

// needsObjects has a pod take its environment from the ConfigMap settings and the
// Secret keys, and mount that at /keys.
func needsObjects(p *corev1.Pod) {
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{
		Name: "keys", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "keys"}},
	})
	c := &p.Spec.Containers[0]
	c.EnvFrom = append(c.EnvFrom, corev1.EnvFromSource{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "keys"}}})
	c.Env = append(c.Env, corev1.EnvVar{Name: "COLOR", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}, Key: "color",
	}}})
	c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "keys", MountPath: "/keys"})
}

// content reads a file of a mount.
func content(t *testing.T, mounts []wasi.Mount, at, name string) string {
	t.Helper()
	i := slices.IndexFunc(mounts, func(m wasi.Mount) bool { return m.Path == at })
	if i < 0 {
		t.Fatalf("nothing is mounted at %s", at)
	}
	file, errno := mounts[i].FS.OpenFile(name, sys.O_RDONLY, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	defer file.Close()
	buf := make([]byte, 100)
	n, errno := file.Read(buf)
	if errno != 0 {
		t.Fatal(errno)
	}
	return string(buf[:n])
}

// recordStarts returns what is started ahead from now on.
func (s *stand) recordStarts() <-chan sandbox.Spec {
	specs := make(chan sandbox.Spec, 10)
	s.early.runtime = recording{s.early.runtime, specs}
	return specs
}

type recording struct {
	Runtime
	specs chan<- sandbox.Spec
}

func (r recording) Start(ctx context.Context, spec sandbox.Spec) (*sandbox.Sandbox, error) {
	r.specs <- spec
	return r.Runtime.Start(ctx, spec)
}

// copied is an Objects that has what it is told to: one ConfigMap and one Secret.
type copied struct {
	mu       sync.Mutex
	settings *corev1.ConfigMap // nil: no current copy
	keys     *corev1.Secret
	holders  map[string][]podspec.Reference
}

func (c *copied) set(color, token string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settings = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "settings"}, Data: map[string]string{"color": color}}
	c.keys = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "keys"}, Data: map[string][]byte{"token": []byte(token)}}
}

func (c *copied) lose() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settings, c.keys = nil, nil
}

// create puts the objects, with other contents, where kubelets read them.
func (c *copied) create(t *testing.T, client *fake.Clientset, color, token string) {
	t.Helper()
	c.set(color, token)
	for _, object := range []k8sruntime.Object{c.settings, c.keys} {
		if err := client.Tracker().Add(object); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	if _, err := client.CoreV1().Secrets("default").Update(t.Context(), c.keys, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (c *copied) ConfigMap(context.Context, string, string) (*corev1.ConfigMap, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.settings == nil {
		return nil, errors.New("no current copy")
	}
	return c.settings, nil
}

func (c *copied) Secret(context.Context, string, string) (*corev1.Secret, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keys == nil {
		return nil, errors.New("no current copy")
	}
	return c.keys, nil
}

func (c *copied) Hold(holder, _ string, refs []podspec.Reference) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holders == nil {
		c.holders = map[string][]podspec.Reference{}
	}
	c.holders[holder] = refs
	if len(refs) == 0 {
		delete(c.holders, holder)
	}
}

func (c *copied) all() map[string][]podspec.Reference {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.holders)
}

// admitted is a stand on which a pod of the revision has run and gone, and the
// pod's image.
func admitted(t *testing.T, edits ...func(*corev1.Pod)) (*stand, string) {
	t.Helper()
	s := newStand(t)
	return s, s.admitAndEnd(t, edits...)
}

func (s *stand) admitAndEnd(t *testing.T, edits ...func(*corev1.Pod)) string {
	t.Helper()
	s.objects.create(t, s.client, "blue", "s3cret") // which a pod may need
	image := s.push(t, "sort", emptyCommand)
	pod := s.pod("first", "first", image, edits...)
	s.create(t, pod)
	s.awaitReady(t, "first")
	s.markDeleted(t, pod)
	s.awaitGone(t, "first")
	s.expect(t, "add first")
	s.expect(t, "remove first")
	return image
}

// startEarly starts the revision's function and returns its id in the router.
func startEarly(t *testing.T, s *stand) string {
	t.Helper()
	if err := s.StartEarly(t.Context(), sortKey, "rev"); err != nil {
		t.Fatal(err)
	}
	id, ok := strings.CutPrefix(<-s.router.changes, "add ")
	if !ok {
		t.Fatal("the started function was not added to the router")
	}
	if code := s.router.call(t); code != http.StatusOK {
		t.Errorf("got %d from the function, want 200", code)
	}
	return id
}

// outlook is an Outlook that says what it is told to.
type outlook struct {
	mu               sync.Mutex
	refusal, current string
	silent           bool
	asked            chan struct{}
}

func (o *outlook) refuse(reason string) { o.set(func() { o.refusal = reason }) }
func (o *outlook) digest(d string)      { o.set(func() { o.current = d }) }

func (o *outlook) silence(silent bool) {
	o.set(func() {
		o.silent = silent
		if o.asked == nil {
			o.asked = make(chan struct{}, 1000)
		}
	})
}

func (o *outlook) set(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
}

func (o *outlook) Refusal(types.NamespacedName) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.refusal
}

func (o *outlook) TemplateDigest(types.NamespacedName) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.current
}

func (o *outlook) Silent(context.Context) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.silent {
		o.asked <- struct{}{}
	}
	return o.silent
}

func TestTemplatesOnDisk(t *testing.T) {
	log := zaptest.NewLogger(t).Sugar()
	open := func(t *testing.T, dir string) *templates {
		t.Helper()
		all, err := openTemplates(dir, "wisp-0", noObjects{}, log)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	put := func(t *testing.T, all *templates, revision string, created int64) template {
		t.Helper()
		pod := new(stand).podOf(revision)
		pod.CreationTimestamp = metav1.Unix(created, 0)
		it, err := all.make(pod, oci.Image{Reference: fmt.Sprintf("r/sort@sha256:%d", created), Module: oci.Module{ModuleDigest: "m"}}, "digest")
		if err != nil {
			t.Fatal(err)
		}
		all.admit(it)
		return it
	}
	t.Run("come back as they were", func(t *testing.T) {
		dir := t.TempDir()
		it := put(t, open(t, dir), "sort-00001", 7)
		got, ok := open(t, dir).get(keyOf(it.spec))
		if !ok || got.image.Reference != "r/sort@sha256:7" || got.digest != "digest" || got.spec.TemplateHash != "hash" || got.pod.Spec.NodeName != "wisp-0" {
			t.Errorf("got %+v, want what was put", got)
		}
		if got.pod.Name != "" || got.pod.UID != "" {
			t.Errorf("got name %q and UID %q, want nothing of the one pod's own", got.pod.Name, got.pod.UID)
		}
	})
	t.Run("the latest counts", func(t *testing.T) {
		all := open(t, t.TempDir())
		put(t, all, "sort-00001", 9)
		it := put(t, all, "sort-00001", 8)
		if got, _ := all.get(keyOf(it.spec)); got.at.Unix() != 9 {
			t.Errorf("got that of %v, want the later one", got.at)
		}
	})
	t.Run("the oldest goes first", func(t *testing.T) {
		all := open(t, t.TempDir())
		var first template
		for i := range maxTemplates + 1 {
			it := template{spec: podspec.Spec{Revision: types.NamespacedName{Name: fmt.Sprint(i)}}, at: time.Unix(int64(i), 0)}
			if i == 0 {
				first = it
			}
			if i < maxTemplates {
				all.all[keyOf(it.spec)] = it
			} else {
				all.admit(it)
			}
		}
		if _, ok := all.get(keyOf(first.spec)); ok || len(all.all) != maxTemplates {
			t.Errorf("got %d templates, want %d without the oldest", len(all.all), maxTemplates)
		}
	})
	damage := map[string]func(t *testing.T, path string){
		"no JSON": func(t *testing.T, path string) { write(t, path, "{") },
		"no pod":  func(t *testing.T, path string) { write(t, path, `{"image":"a@b"}`) },
		"a tag for a digest": func(t *testing.T, path string) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, strings.Replace(string(text), "@sha256:7", ":v1", 1))
		},
		"another's name": func(t *testing.T, path string) {
			if err := os.Rename(path, filepath.Join(filepath.Dir(path), "other.json")); err != nil {
				t.Fatal(err)
			}
		},
		"too large": func(t *testing.T, path string) {
			if err := os.Truncate(path, maxTemplateSize+1); err != nil {
				t.Fatal(err)
			}
		},
		"no file": func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, harm := range damage {
		t.Run("dropped: "+name, func(t *testing.T) {
			dir := t.TempDir()
			all := open(t, dir)
			harm(t, all.path(keyOf(put(t, all, "sort-00001", 7).spec)))
			if got := open(t, dir); len(got.all) != 0 {
				t.Errorf("got %d templates, want none", len(got.all))
			}
			if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
				t.Errorf("got %v, %v left, want it removed", files, err)
			}
		})
	}
}

func (s *stand) podOf(revision string) *corev1.Pod {
	s.Provider = &Provider{}
	pod := s.pod("first", "first", "r/sort@sha256:0")
	pod.Labels["serving.knative.dev/revision"] = revision
	return pod
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRelay(t *testing.T) {
	t.Run("holds back at most so much", func(t *testing.T) {
		var node, out, errs strings.Builder
		r := newRelay(&node)
		line := strings.Repeat("x", maxHeld/4)
		for range 5 {
			fmt.Fprint(r.writer(stdout), line)
		}
		r.to(&out, &errs)
		if out.Len() != maxHeld || node.Len() != len(line) {
			t.Errorf("%d bytes went to the pod and %d to the node, want %d and %d", out.Len(), node.Len(), maxHeld, len(line))
		}
	})
	t.Run("keeps the order of both streams", func(t *testing.T) {
		var all strings.Builder
		r := newRelay(io.Discard)
		for i := range 4 {
			fmt.Fprint(r.writer(i%2), i)
		}
		r.to(&all, &all)
		if all.String() != "0123" {
			t.Errorf("got %s, want 0123", all.String())
		}
	})
	t.Run("of no pod goes to the node", func(t *testing.T) {
		var node strings.Builder
		r := newRelay(&node)
		fmt.Fprint(r.writer(stderr), "last words")
		r.flush()
		if node.String() != "last words" {
			t.Errorf("got %q", node.String())
		}
		new(function).logs.flush() // of a function that never ran ahead
	})
}

// preparing is a Runtime that records what it prepares.
type preparing struct {
	Runtime
	prepared chan string
}

func (p preparing) Prepare(_ context.Context, ref string) error {
	p.prepared <- ref
	return errors.New("not today")
}

func TestAheadPreparesEachImageOnceAndOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := preparing{prepared: make(chan string)}
		a := newAhead(rt, zaptest.NewLogger(t).Sugar())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			a.run(ctx)
			close(ended)
		}()
		for _, ref := range []string{"a", "b", "a"} {
			a.add(ref)
		}
		synctest.Wait()
		if len(a.waiting) != 1 {
			t.Errorf("%d wait while one is prepared, want 1", len(a.waiting))
		}
		for _, want := range []string{"a", "b"} {
			if got := <-rt.prepared; got != want {
				t.Errorf("got %s prepared, want %s", got, want)
			}
		}
		a.add("a")
		synctest.Wait()
		select {
		case got := <-rt.prepared:
			t.Errorf("got %s prepared again", got)
		default:
		}
		for i := range 3 * maxAhead {
			a.add(fmt.Sprint(i))
		}
		synctest.Wait()
		if len(a.waiting) > maxAhead {
			t.Errorf("%d wait, want at most %d", len(a.waiting), maxAhead)
		}
		cancel()
		<-rt.prepared
		<-ended
	})
}

// slowRuntime fails each start when released.
type slowRuntime struct {
	Runtime
	release chan struct{}
}

func (r slowRuntime) Start(context.Context, sandbox.Spec) (*sandbox.Sandbox, error) {
	<-r.release
	return nil, errors.New("released")
}

func TestStopWaitsForTheStartsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := slowRuntime{release: make(chan struct{})}
		log := zaptest.NewLogger(t).Sugar()
		e := &earlyStarts{
			runtime: rt, lease: time.Hour, facts: func() podspec.Facts { return podspec.Facts{} }, outlook: blind{}, log: log,
			templates: &templates{log: log, all: map[revisionKey]template{}}, functions: map[revisionKey]*earlyFunction{},
		}
		spec := podspec.Spec{
			Revision: types.NamespacedName{Namespace: "default", Name: "sort-00001"}, RevisionUID: "rev", EarlyStart: true,
			Containers: []podspec.Container{{Container: &corev1.Container{Name: "user-container"}}},
		}
		e.templates.all[keyOf(spec)] = template{spec: spec, pod: &corev1.Pod{}, image: oci.Image{Module: oci.Module{ModuleDigest: "m"}}}
		go func() { _ = e.start(t.Context(), keyOf(spec)) }()
		synctest.Wait()
		stopped := make(chan struct{})
		go func() {
			e.stop()
			close(stopped)
		}()
		synctest.Wait()
		select {
		case <-stopped:
			t.Error("stop returned while a start was under way")
		default:
		}
		close(rt.release)
		<-stopped
	})
}
