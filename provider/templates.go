package provider

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/runtime/oci"
)

// template is a revision's pod template as it was last admitted to a node: after
// the cluster's admission has had its say, and known to start.
type template struct {
	spec podspec.Spec
	// pod is one that was admitted, less what was its own.
	pod *corev1.Pod
	// image is what it ran, by digest. All but the reference is empty where that
	// was on another node, or in an earlier process, until it is looked up here.
	image oci.Image
	// digest tells the Deployment's template that it was made from; empty if
	// nobody knew.
	digest string
	// at is when the pod was created: the latest counts.
	at time.Time
}

// revisionKey names a revision for certain. A name comes again with another
// UID, and a Pod's labels may claim the UID of a revision in another namespace.
type revisionKey struct {
	types.NamespacedName
	uid types.UID
}

func keyOf(spec podspec.Spec) revisionKey { return revisionKey{spec.Revision, spec.RevisionUID} }

// holder names the revision to Objects.
func (k revisionKey) holder() string { return k.String() + "/" + string(k.uid) }

// The bounds of what is kept: templates, and the bytes of one on disk. An object
// in etcd is at most 1.5 MiB.
const (
	maxTemplates    = 10_000
	maxTemplateSize = 2 << 20
)

// templates keeps the template of each revision, in memory and on disk, so that
// a node that was restarted starts what it ran before. It is safe for concurrent
// use.
type templates struct {
	dir     string
	node    string  // this node's name
	objects Objects // told what the templates need
	log     *zap.SugaredLogger

	mu  sync.Mutex
	all map[revisionKey]template
}

// savedTemplate is a template on disk.
type savedTemplate struct {
	Pod *corev1.Pod `json:"pod"`
	// Image is repository@digest.
	Image  string `json:"image"`
	Digest string `json:"digest,omitempty"`
}

// openTemplates reads those in dir, making it if it isn't there. What can't be
// read is dropped: its revision waits for its next Pod, once.
func openTemplates(dir, node string, objects Objects, log *zap.SugaredLogger) (*templates, error) {
	t := &templates{dir: dir, node: node, objects: objects, log: log, all: make(map[revisionKey]template)}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open templates: %w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open templates: %w", err)
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		it, err := t.read(path)
		if err != nil {
			log.Warnw("a template on disk is dropped", "file", path, "error", errors.Join(err, os.Remove(path)))
			continue
		}
		t.keep(it)
	}
	return t, nil
}

func (t *templates) read(path string) (template, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return template{}, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxTemplateSize {
		return template{}, fmt.Errorf("%s of %d bytes, must be a file of at most %d", info.Mode().Type(), info.Size(), maxTemplateSize)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return template{}, err
	}
	var r savedTemplate
	if err := json.Unmarshal(text, &r); err != nil {
		return template{}, err
	}
	if r.Pod == nil {
		return template{}, errors.New("no pod in it")
	}
	it, err := t.make(r.Pod, oci.Image{Reference: r.Image}, r.Digest)
	if err == nil && filepath.Base(path) != fileName(keyOf(it.spec)) {
		err = errors.New("it is another revision's")
	}
	return it, err
}

// make makes a template of a pod that has started, or fails if nothing can be
// started from it.
func (t *templates) make(pod *corev1.Pod, image oci.Image, digest string) (template, error) {
	pod = strip(pod)
	pod.Spec.NodeName = t.node
	spec, err := podspec.Parse(pod)
	if err != nil {
		return template{}, err
	}
	if !spec.IsRevision() || spec.RevisionUID == "" {
		return template{}, errors.New("the pod is no revision's")
	}
	if !strings.Contains(image.Reference, "@") {
		return template{}, fmt.Errorf("image = %q, must be a digest reference", image.Reference)
	}
	return template{spec: spec, pod: pod, image: image, digest: digest, at: pod.CreationTimestamp.Time}, nil
}

// strip returns what of a pod is its template's.
func strip(pod *corev1.Pod) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Labels: pod.Labels, Annotations: pod.Annotations,
			CreationTimestamp: pod.CreationTimestamp,
		},
		Spec: pod.Spec,
	}
}

// admit remembers a template, unless a later one is known.
func (t *templates) admit(it template) {
	key := keyOf(it.spec)
	t.mu.Lock()
	was, known := t.all[key]
	if known && was.at.After(it.at) {
		t.mu.Unlock()
		return
	}
	if !known && len(t.all) >= maxTemplates {
		t.evict()
	}
	if known && it.image.ModuleDigest == "" && was.image.Reference == it.image.Reference {
		it.image = was.image
	}
	t.keep(it)
	t.mu.Unlock()
	if known && was.spec.TemplateHash == it.spec.TemplateHash && was.digest == it.digest && was.image.Reference == it.image.Reference {
		return // the disk has it
	}
	if err := t.write(key, it); err != nil {
		t.log.Warnw("after a restart of the node, the revision waits for its pod", "key", key.String(), "error", err)
	}
}

// keep has it in place of what was known of its revision; mu is held.
func (t *templates) keep(it template) {
	key := keyOf(it.spec)
	t.all[key] = it
	var refs []podspec.Reference
	if it.spec.EarlyStart {
		refs = it.spec.References()
	}
	t.objects.Hold(key.holder(), key.Namespace, refs)
}

// evict drops the oldest; mu is held.
func (t *templates) evict() {
	var oldest revisionKey
	for key, it := range t.all {
		if first, ok := t.all[oldest]; !ok || it.at.Before(first.at) {
			oldest = key
		}
	}
	t.drop(oldest)
}

func (t *templates) get(key revisionKey) (template, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	it, ok := t.all[key]
	return it, ok
}

func (t *templates) forget(key revisionKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.all[key]; ok {
		t.drop(key)
	}
}

// prune forgets the revisions that don't exist.
func (t *templates) prune(exists func(revisionKey) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key := range t.all {
		if !exists(key) {
			t.drop(key)
		}
	}
}

// drop forgets a revision; mu is held.
func (t *templates) drop(key revisionKey) {
	delete(t.all, key)
	t.objects.Hold(key.holder(), key.Namespace, nil)
	if err := os.Remove(t.path(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.log.Warnw("the template of a revision stays on disk", "key", key.String(), "error", err)
	}
}

func (t *templates) write(key revisionKey, it template) error {
	text, err := json.Marshal(savedTemplate{Pod: it.pod, Image: it.image.Reference, Digest: it.digest})
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(t.dir, ".template-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) // unless it was renamed
	_, err = file.Write(text)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), t.path(key))
}

func (t *templates) path(key revisionKey) string { return filepath.Join(t.dir, fileName(key)) }

// fileName hashes the revision: a pod's labels, which name it, may hold anything.
func fileName(key revisionKey) string {
	sum := sha256.Sum256([]byte(key.String() + "\x00" + string(key.uid)))
	return hex.EncodeToString(sum[:]) + ".json"
}
