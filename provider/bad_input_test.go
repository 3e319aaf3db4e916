package provider

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	registrytypes "github.com/google/go-containerregistry/pkg/v1/types"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/provider/podlife"
	"github.com/wisp-serving/wisp/runtime/oci"
)

const (
	giant     = 1 << 30 // bytes of a layer
	longLine  = 10 << 20
	arguments = 100_000
	// heapSlack is how much more the heap may hold afterwards: what the node keeps of
	// a module on purpose, and what the fake API server keeps of Events.
	heapSlack = 1 << 20
	// maxServed is how many bytes of an endless blob may be on their way, in buffers
	// of the kernel too, when the node hangs up.
	maxServed = 32 << 20
)

// badInput is a pod with something wrong with it.
type badInput struct {
	image string
	edit  func(*corev1.Pod)
	// fault is what the registry does to its blobs: answers instead of it.
	fault func(http.ResponseWriter, *http.Request)
	// phase and reason are how the pod ends up, and message is part of its
	// container's.
	phase           corev1.PodPhase
	reason, message string
	// also checks more, while the pod is there.
	also func(*testing.T, *stand, *corev1.Pod)
}

// TestBadInput is about pods that can't work or won't behave: each says why, its
// neighbour answers meanwhile, and when it is deleted all that it took is given
// back.
func TestBadInput(t *testing.T) {
	s := newStopped(t, func(c *config.Node) {
		c.Guest.ModuleSize = resource.MustParse("64Mi")
		c.Logs = config.Logs{FileSize: resource.MustParse("1Mi"), Files: 2, Rate: resource.MustParse("32Mi")}
	})
	s.compiler = []string{os.Args[0], compileChild}
	s.start(t)
	s.create(t, s.pod("neighbour", "neighbour", s.push(t, "neighbour", emptyCommand)))
	s.awaitReady(t, "neighbour")
	s.expect(t, "add neighbour")

	cases := badInputs(t, s)
	// What only the first pod of its kind costs for good isn't any one's.
	s.run(t, "first", badInput{image: s.push(t, "first", emptyCommand), phase: corev1.PodSucceeded, reason: podlife.ReasonCompleted})
	for _, it := range cases {
		t.Run(it.name, func(t *testing.T) {
			before := s.held(t)
			s.run(t, strings.ReplaceAll(it.name, " ", "-"), it.badInput)
			s.awaitGivenBack(t, before)
		})
	}
}

type namedBadInput struct {
	name string
	badInput
}

func badInputs(t *testing.T, s *stand) []namedBadInput {
	artifact := s.pushArtifact(t, "artifact")
	var served atomic.Int64
	zeros := func(length string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			served.Store(0)
			if length != "" {
				w.Header().Set("Content-Length", length)
			}
			for block := make([]byte, 64<<10); r.Context().Err() == nil && served.Load() < giant; {
				n, err := w.Write(block)
				served.Add(int64(n))
				if err != nil {
					return
				}
			}
		}
	}
	hardlyServed := func(t *testing.T, _ *stand, _ *corev1.Pod) {
		if n := served.Load(); n > maxServed {
			t.Errorf("%d bytes of the layer were taken", n)
		}
	}
	notServed := func(t *testing.T, _ *stand, _ *corev1.Pod) {
		if n := served.Swap(0); n > 0 {
			t.Errorf("%d bytes were taken of a layer that is said to be too large", n)
		}
	}
	deadline := int64(2)
	return []namedBadInput{
		{"broken module", badInput{
			image: s.pushRaw(t, "broken", bytes.Replace(emptyCommand, []byte("\x0a\x04\x01\x02\x00\x0b"), []byte("\x0a\x04\x01\x02\x00\xff"), 1)),
			phase: corev1.PodFailed, reason: podlife.ReasonStartError, message: "decode module at offset 0x32: function doesn't end",
		}},
		{"cut module", badInput{
			image: s.pushRaw(t, "cut", emptyCommand[:len(emptyCommand)-3]),
			phase: corev1.PodFailed, reason: podlife.ReasonStartError, message: "unexpected end: 4 bytes wanted, 1 left",
		}},
		{"component", badInput{
			image: s.pushRaw(t, "component", []byte("\x00asm\x0d\x00\x01\x00")),
			phase: corev1.PodFailed, reason: podlife.ReasonStartError, message: "a WASI p2 component",
		}},
		{"unknown imports", badInput{
			image: s.push(t, "imports", importsUnknown),
			phase: corev1.PodFailed, reason: podlife.ReasonStartError, message: "nowhere.fn",
		}},
		{"no entrypoint", badInput{
			image: s.pushWithoutEntrypoint(t, "aimless"),
			phase: corev1.PodFailed, reason: podlife.ReasonStartError, message: "neither ENTRYPOINT nor CMD",
		}},
		{"missing entrypoint", badInput{
			image: s.push(t, "other", emptyCommand), edit: func(p *corev1.Pod) { p.Spec.Containers[0].Command = []string{"/absent.wasm"} },
			phase: corev1.PodFailed, reason: podlife.ReasonStartError, message: `command "/absent.wasm" not found in image`,
		}},
		{"truncated blob", badInput{
			image: artifact,
			fault: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", fmt.Sprint(len(emptyCommand)))
				_, _ = w.Write(emptyCommand[:len(emptyCommand)/2]) // then the server hangs up
			},
			phase: corev1.PodPending, reason: podlife.ReasonPullBackOff, message: "unexpected EOF",
		}},
		{"wrong digest", badInput{
			image: artifact,
			fault: func(w http.ResponseWriter, _ *http.Request) {
				forged := bytes.Clone(emptyCommand)
				forged[len(forged)-1]++
				_, _ = w.Write(forged)
			},
			phase: corev1.PodPending, reason: podlife.ReasonPullBackOff, message: "error verifying sha256 checksum",
		}},
		{"layer of a gigabyte", badInput{
			image: s.pushManifest(t, "giant", giant), fault: zeros(""),
			phase: corev1.PodFailed, reason: podlife.ReasonStartError, message: "guest.moduleSize = 67108864", also: notServed,
		}},
		{"layer longer than its manifest says", badInput{
			image: s.pushManifest(t, "liar", 1000), fault: zeros(""),
			phase: corev1.PodPending, reason: podlife.ReasonPullBackOff, message: "sha256", also: hardlyServed,
		}},
		{"layer said to be longer than its manifest says", badInput{
			image: s.pushManifest(t, "contradictory", 1000), fault: zeros(fmt.Sprint(giant)),
			phase: corev1.PodPending, reason: podlife.ReasonPullBackOff, message: "1073741824", also: hardlyServed,
		}},
		{"endless output", badInput{
			image: s.push(t, "chatter", new(program).forever(func(p *program) { p.complain("and on\n") }).module()),
			edit:  func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = &deadline },
			phase: corev1.PodFailed, reason: podlife.ReasonError, also: logIsBounded,
		}},
		{"line of 10 MB", badInput{
			image: s.push(t, "line", new(program).printLine(longLine).exit(0).module()),
			phase: corev1.PodSucceeded, reason: podlife.ReasonCompleted, also: logIsBounded,
		}},
		{"100,000 arguments", badInput{
			image: s.push(t, "arguments", new(program).exitUnless(arguments+1).module()),
			edit:  func(p *corev1.Pod) { p.Spec.Containers[0].Args = strings.Split(strings.Repeat("x", arguments), "") },
			phase: corev1.PodSucceeded, reason: podlife.ReasonCompleted, also: manyArgumentsAreRefused,
		}},
	}
}

// logIsBounded checks what a container's log takes on disk: the files that are
// kept, and the one that is written.
func logIsBounded(t *testing.T, s *stand, pod *corev1.Pod) {
	t.Helper()
	limits := s.cfg.Node.Logs
	if size := diskUsed(t, filepath.Join(s.folder(pod.UID), "logs")); size == 0 || size > int64(limits.Files+1)*limits.FileSize.Value() {
		t.Errorf("its log takes %d bytes, want some but at most %d files of %s", size, limits.Files, limits.FileSize.String())
	}
}

// manyArgumentsAreRefused checks that a request can't bring what a pod may.
func manyArgumentsAreRefused(t *testing.T, s *stand, _ *corev1.Pod) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"args": strings.Split(strings.Repeat("x", arguments), "")})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	s.router.Pod(types.NamespacedName{}, "neighbour").ServeHTTP(w, r)
	if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "args has more than") {
		t.Errorf("got %d %q for a request with as many arguments, want 400 and why", w.Code, w.Body)
	}
}

// run lets a bad pod live and deletes it.
func (s *stand) run(t *testing.T, name string, it badInput) {
	t.Helper()
	if fault := it.fault; fault != nil {
		answer := func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			fault(w, r)
			return true
		}
		s.fault.Store(&answer)
		defer s.fault.Store(nil)
	}
	pod := s.pod(name, types.UID(name), it.image, plain(corev1.RestartPolicyNever))
	if it.edit != nil {
		it.edit(pod)
	}
	s.create(t, pod)
	var seen *corev1.Pod
	s.await(t, name, it.reason, func(p *corev1.Pod) bool {
		if p == nil || len(p.Status.ContainerStatuses) == 0 {
			return false
		}
		if code := s.router.call(t); code != http.StatusOK {
			t.Errorf("its neighbour answers %d", code)
		}
		seen = p
		reason, _ := stateOf(p)
		return p.Status.Phase == it.phase && reason == it.reason
	})
	if _, message := stateOf(seen); !strings.Contains(message, it.message) {
		t.Errorf("got message %q, want it to name %q", message, it.message)
	}
	if it.also != nil {
		it.also(t, s, seen)
	}
	if code := s.router.call(t); code != http.StatusOK {
		t.Errorf("its neighbour answers %d afterwards", code)
	}
	if n := s.get(t, "neighbour").Status.ContainerStatuses[0].RestartCount; n != 0 {
		t.Errorf("its neighbour was restarted %d times", n)
	}
	s.markDeleted(t, pod)
	s.awaitGone(t, name)
}

// stateOf returns what the first container's state says.
func stateOf(p *corev1.Pod) (reason, message string) {
	switch state := p.Status.ContainerStatuses[0].State; {
	case state.Waiting != nil:
		return state.Waiting.Reason, state.Waiting.Message
	case state.Terminated != nil:
		return state.Terminated.Reason, state.Terminated.Message
	}
	return "", ""
}

// held is what the process holds.
type held struct {
	goroutines goleak.Option // those that there are
	files      int
	heap       uint64
}

func (s *stand) held(t *testing.T) held {
	t.Helper()
	s.poll(t, func() error { return nil })
	used := heap() // first: the collector closes files that nobody has
	return held{goleak.IgnoreCurrent(), openFiles(t), used}
}

// settled ends what is kept for the next time, connections to the registry and
// what the fake API server remembers to have been asked, and says what of it is
// still there.
func (s *stand) settled() error {
	s.registryServer.CloseClientConnections()
	s.client.ClearActions()
	stacks := make([]byte, 1<<20)
	stacks = stacks[:goruntime.Stack(stacks, true)]
	for _, one := range []string{"net/http.(*persistConn).", "net/http.(*conn).serve"} {
		if bytes.Contains(stacks, []byte(one)) {
			return fmt.Errorf("there is a goroutine of %s", one)
		}
	}
	return nil
}

// awaitGivenBack waits until the process holds no more than before, and the node
// nothing of its only other pod.
func (s *stand) awaitGivenBack(t *testing.T, before held) {
	t.Helper()
	s.poll(t, func() error {
		if files := openFiles(t); files > before.files {
			return fmt.Errorf("%d files are open, %d were", files, before.files)
		}
		return goleak.Find(before.goroutines)
	})
	// Only then: the collector closes files that nobody has.
	s.poll(t, func() error {
		if now := heap(); now > before.heap+heapSlack {
			return fmt.Errorf("the heap holds %d bytes, %d before", now, before.heap)
		}
		return nil
	})
	for _, dir := range []string{"images/tmp", "compiled/tmp"} {
		if size := diskUsed(t, filepath.Join(s.dir, dir)); size > 0 {
			t.Errorf("%d bytes are left in %s", size, dir)
		}
	}
	pods, err := os.ReadDir(filepath.Join(s.dir, "pods"))
	if err != nil || len(pods) > 1 || len(pods) == 1 && pods[0].Name() != "neighbour" {
		t.Errorf("the node keeps %v (%v), want the neighbour's alone", pods, err)
	}
}

// poll waits until nothing is amiss, once what is kept for the next time has gone.
func (s *stand) poll(t *testing.T, amiss func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := s.settled()
		if err == nil {
			err = amiss()
		}
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		goruntime.Gosched()
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

// heap returns the bytes in use on Go's heap.
func heap() uint64 {
	goruntime.GC()
	goruntime.GC() // what the first has finalized
	var m goruntime.MemStats
	goruntime.ReadMemStats(&m)
	return m.HeapAlloc
}

// diskUsed returns the size of all files below dir, which need not be there.
func diskUsed(t *testing.T, dir string) int64 {
	t.Helper()
	var size int64
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return size
}

// pushArtifact pushes a good artifact, whose only blob to be pulled is its module.
func (s *stand) pushArtifact(t *testing.T, name string) string {
	t.Helper()
	ref, err := oci.Push(t.Context(), oci.PushConfig{Reference: s.registry + "/" + name + ":v1", Module: emptyCommand, FileName: name + ".wasm", Artifact: true})
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// pushRaw pushes an artifact of what no tool would.
func (s *stand) pushRaw(t *testing.T, repository string, module []byte) string {
	t.Helper()
	image, err := mutate.AppendLayers(empty.Image, static.NewLayer(module, "application/wasm"))
	if err != nil {
		t.Fatal(err)
	}
	return s.write(t, repository, image)
}

// pushWithoutEntrypoint pushes an image that doesn't say what to run.
func (s *stand) pushWithoutEntrypoint(t *testing.T, repository string) string {
	t.Helper()
	image, err := oci.Build(oci.PushConfig{Reference: s.registry + "/" + repository + ":v1", Module: emptyCommand, FileName: "fn.wasm"})
	if err != nil {
		t.Fatal(err)
	}
	if image, err = mutate.Config(image, v1.Config{}); err != nil {
		t.Fatal(err)
	}
	return s.write(t, repository, image)
}

func (s *stand) write(t *testing.T, repository string, image v1.Image) string {
	t.Helper()
	ref, err := name.NewTag(s.registry + "/" + repository + ":v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

// pushManifest pushes the manifest of an artifact whose module of that size no
// registry has.
func (s *stand) pushManifest(t *testing.T, repository string, size int64) string {
	t.Helper()
	config := []byte("{}")
	digest := func(of string) v1.Hash {
		return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sha256.Sum256([]byte(of)))}
	}
	manifest, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: registrytypes.OCIManifestSchema1,
		Config: v1.Descriptor{MediaType: "application/vnd.wasm.config.v0+json", Size: int64(len(config)), Digest: digest(string(config))},
		Layers: []v1.Descriptor{{MediaType: "application/wasm", Size: size, Digest: digest(repository)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.registryServer.URL+"/v2/"+repository+"/manifests/v1", bytes.NewReader(manifest))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", string(registrytypes.OCIManifestSchema1))
	answer, err := s.registryServer.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusCreated {
		t.Fatalf("push a manifest: %s", answer.Status)
	}
	return s.registry + "/" + repository + ":v1"
}
