package provider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	goruntime "runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	corelisters "k8s.io/client-go/listers/core/v1"
	ktesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/provider/queueproxy"
	"github.com/wisp-serving/wisp/runtime"
	"github.com/wisp-serving/wisp/runtime/compile"
	"github.com/wisp-serving/wisp/runtime/oci"
)

// compileChild as the first argument makes this binary the node's compiler.
const compileChild = "compile-child"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == compileChild {
		os.Exit(compile.ChildMain(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	}
	// OpenCensus, behind virtual-kubelet's tracing, starts one goroutine when
	// it is linked in and has no way to end it.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// Modules in the binary format (WebAssembly core specification, chapter 5).
var (
	// emptyCommand is a WASI command that does nothing.
	emptyCommand = []byte("\x00asm\x01\x00\x00\x00" +
		"\x01\x04\x01\x60\x00\x00" + // one type: () -> ()
		"\x03\x02\x01\x00" + // one function of it
		"\x05\x03\x01\x00\x01" + // one memory of a page
		"\x07\x13\x02\x06memory\x02\x00\x06_start\x00\x00" +
		"\x0a\x04\x01\x02\x00\x0b")
	// importsUnknown needs nowhere.fn.
	importsUnknown = []byte("\x00asm\x01\x00\x00\x00" +
		"\x01\x04\x01\x60\x00\x00" +
		"\x02\x0e\x01\x07nowhere\x02fn\x00\x00" +
		"\x03\x02\x01\x00" +
		"\x05\x03\x01\x00\x01" +
		"\x07\x13\x02\x06memory\x02\x00\x06_start\x00\x01" +
		"\x0a\x04\x01\x02\x00\x0b")
)

// podMetrics are a pod's, which say nothing but that they are.
func podMetrics() (*queueproxy.Metrics, http.Handler, error) {
	m, err := queueproxy.NewMetrics(noop.NewMeterProvider())
	return m, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics") }), err
}

// router records what the provider tells the request path.
type router struct {
	mu      sync.Mutex
	targets map[types.UID]http.Handler
	changes chan string
	drained chan struct{} // of all targets
}

func (r *router) Add(_ types.NamespacedName, id types.UID, _ int, h http.Handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.targets[id] = h
	r.changes <- "add " + string(id)
}

func (r *router) AddEarly(revision types.NamespacedName, id types.UID, concurrency int, h http.Handler) {
	r.Add(revision, id, concurrency, h)
}

func (r *router) Adopted(_ types.NamespacedName, id types.UID) { r.changes <- "adopted " + string(id) }

func (r *router) Remove(_ types.NamespacedName, id types.UID) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.targets, id)
	r.changes <- "remove " + string(id)
	return r.drained
}

func (r *router) Pod(_ types.NamespacedName, id types.UID) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		r.mu.Lock()
		h := r.targets[id]
		r.mu.Unlock()
		h.ServeHTTP(w, request)
	})
}

func (r *router) NewServer(h http.Handler) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{Handler: h, Protocols: protocols, ReadHeaderTimeout: time.Minute}
}

// call sends a request to the only target.
func (r *router) call(t *testing.T) int {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.targets) != 1 {
		t.Fatalf("got %d targets, want 1", len(r.targets))
	}
	for _, h := range r.targets {
		return call(t, h)
	}
	return 0
}

func call(t *testing.T, h http.Handler) int {
	t.Helper()
	w := httptest.NewRecorder()
	request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader("{}"))
	request.Header.Set("Content-Type", "application/json")
	h.ServeHTTP(w, request)
	return w.Code
}

// stand is a provider that runs on a fake API server, with a real runtime and a
// real registry.
type stand struct {
	*Provider
	client   *fake.Clientset
	router   *router
	registry string
	outlook  *outlook
	objects  *copied
	dir      string // the node's
	settings func(*config.Node)
	compiler []string // in this process if it is nil
	stop     func()

	registryServer *httptest.Server
	// fault, unless nil, may answer instead of the registry.
	fault atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

func newStand(t *testing.T) *stand {
	t.Helper()
	return newStandWith(t, func(*config.Node) {})
}

// newStandWith is newStand with other settings.
func newStandWith(t *testing.T, settings func(*config.Node)) *stand {
	t.Helper()
	s := newStopped(t, settings)
	s.start(t)
	return s
}

// newStopped is newStandWith before its start.
func newStopped(t *testing.T, settings func(*config.Node)) *stand {
	t.Helper()
	s := &stand{client: fake.NewClientset(), outlook: &outlook{}, objects: &copied{}, dir: t.TempDir(), settings: settings}
	good := registry.New(registry.Logger(zap.NewStdLog(zap.NewNop())))
	s.registryServer = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault := s.fault.Load(); fault == nil || !(*fault)(w, r) {
			good.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.registryServer.Close)
	s.registry = strings.TrimPrefix(s.registryServer.URL, "http://")
	s.client.PrependReactor("delete", "pods", s.checkPreconditions)
	s.client.PrependReactor("update", "pods", s.update)
	return s
}

// checkPreconditions does what the API server does and the fake one doesn't: a
// delete that names a UID spares a pod of another.
func (s *stand) checkPreconditions(action ktesting.Action) (bool, k8sruntime.Object, error) {
	a := action.(ktesting.DeleteActionImpl)
	if a.DeleteOptions.Preconditions == nil || a.DeleteOptions.Preconditions.UID == nil {
		return false, nil, nil
	}
	current, err := s.client.Tracker().Get(a.GetResource(), a.GetNamespace(), a.GetName())
	if err != nil || current.(*corev1.Pod).UID == *a.DeleteOptions.Preconditions.UID {
		return false, nil, nil
	}
	return true, nil, apierrors.NewConflict(a.GetResource().GroupResource(), a.GetName(), errors.New("another UID"))
}

// update does likewise for updates: none changes a pod's UID, one of the status
// changes nothing else, and one of the pod leaves its status as it is.
func (s *stand) update(action ktesting.Action) (bool, k8sruntime.Object, error) {
	a := action.(ktesting.UpdateActionImpl)
	updated := a.GetObject().(*corev1.Pod).DeepCopy()
	obj, err := s.client.Tracker().Get(a.GetResource(), a.GetNamespace(), updated.Name)
	if err != nil {
		return true, nil, err
	}
	current := obj.(*corev1.Pod).DeepCopy()
	if current.UID != updated.UID {
		return true, nil, apierrors.NewConflict(a.GetResource().GroupResource(), updated.Name, errors.New("another UID"))
	}
	if a.GetSubresource() == "status" {
		current.Status = updated.Status
		updated = current
	} else {
		updated.Status = current.Status
	}
	return true, updated, s.client.Tracker().Update(a.GetResource(), updated, a.GetNamespace())
}

// start starts a provider, as a node's process would.
func (s *stand) start(t *testing.T) {
	t.Helper()
	log := zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)).Sugar()
	cfg := config.DefaultNode()
	cfg.DataDir = s.dir
	cfg.Kubelet.Port = 0
	cfg.EarlyStartLease.Duration = time.Hour
	s.settings(&cfg)
	rt, err := runtime.New(runtime.Config{DataDir: cfg.DataDir, ImageStore: 1 << 30, Guest: cfg.Guest, Compiler: s.compiler, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	s.router = &router{targets: map[types.UID]http.Handler{}, changes: make(chan string, 100), drained: make(chan struct{})}
	close(s.router.drained)
	s.Provider, err = New(Config{Node: cfg, Client: s.client, Runtime: rt, Router: s.router, Outlook: s.outlook, Objects: s.objects, PodMetrics: podMetrics, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := rt.Close(context.Background()); err != nil {
			t.Errorf("close runtime: %v", err)
		}
	})
	t.Cleanup(s.stop)
	<-s.Ready()
}

// push puts a module into the registry and returns its reference.
func (s *stand) push(t *testing.T, name string, module []byte) string {
	t.Helper()
	ref, err := oci.Push(t.Context(), oci.PushConfig{Reference: s.registry + "/" + name + ":v1", Module: module, FileName: name + ".wasm"})
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func (s *stand) pod(name string, uid types.UID, image string, edits ...func(*corev1.Pod)) *corev1.Pod {
	grace := int64(300)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, UID: uid,
			Labels: map[string]string{
				"serving.knative.dev/revision":    "sort-00001",
				"serving.knative.dev/revisionUID": "rev",
				"pod-template-hash":               "hash",
			},
			Annotations: map[string]string{config.ABIAnnotation: "argv"},
		},
		Spec: corev1.PodSpec{
			NodeName:                      s.cfg.Node.Name,
			TerminationGracePeriodSeconds: &grace,
			Containers:                    []corev1.Container{{Name: "user-container", Image: image}, {Name: "queue-proxy"}},
		},
	}
	for _, edit := range edits {
		edit(pod)
	}
	return pod
}

func (s *stand) create(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	if _, err := s.client.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// markDeleted does what the API server does for a delete with a grace period.
func (s *stand) markDeleted(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	pods := s.client.CoreV1().Pods(pod.Namespace)
	current, err := pods.Get(t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	now := metav1.Now()
	current.DeletionTimestamp, current.DeletionGracePeriodSeconds = &now, pod.Spec.TerminationGracePeriodSeconds
	if _, err := pods.Update(t.Context(), current, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// await watches until the pod of that name satisfies ok; nil stands for none.
func (s *stand) await(t *testing.T, name string, what string, ok func(*corev1.Pod) bool) {
	t.Helper()
	pods := s.client.CoreV1().Pods("default")
	w, err := pods.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		w.Stop()
		for range w.ResultChan() { // the fake API server would keep what nobody takes
		}
	}()
	for {
		current, err := pods.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			current = nil
		}
		if ok(current) {
			return
		}
		select {
		case <-w.ResultChan():
		case <-time.After(30 * time.Second):
			t.Fatalf("pod %s is not %s; it is %+v", name, what, current)
		}
	}
}

func (s *stand) awaitReady(t *testing.T, name string) {
	t.Helper()
	s.await(t, name, "ready", isReady)
}

func (s *stand) awaitGone(t *testing.T, name string) {
	t.Helper()
	s.await(t, name, "gone", func(p *corev1.Pod) bool { return p == nil })
}

func isReady(p *corev1.Pod) bool {
	if p == nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (s *stand) expect(t *testing.T, want string) {
	t.Helper()
	if got := <-s.router.changes; got != want {
		t.Fatalf("got %q told to the router, want %q", got, want)
	}
}

func TestPodLife(t *testing.T) {
	s := newStand(t)
	pod := s.pod("sort", "uid-1", s.push(t, "sort", emptyCommand))
	s.create(t, pod)
	s.awaitReady(t, "sort")
	s.expect(t, "add uid-1")
	if code := s.router.call(t); code != http.StatusOK {
		t.Errorf("got %d from the function, want 200", code)
	}
	s.markDeleted(t, pod)
	// The grace period is 300 s: the pod goes when it is quiet, not then.
	s.awaitGone(t, "sort")
	s.expect(t, "remove uid-1")
}

// TestPodEndsAfterTheRequestsItWasGiven shows that a request that had the pod's
// slot when the pod was deleted, and reaches the function only then, is answered.
func TestPodEndsAfterTheRequestsItWasGiven(t *testing.T) {
	s := newStand(t)
	pod := s.pod("sort", "uid-1", s.push(t, "sort", emptyCommand))
	s.create(t, pod)
	s.awaitReady(t, "sort")
	s.expect(t, "add uid-1")
	function := s.router.targets["uid-1"]
	s.router.drained = make(chan struct{})
	s.markDeleted(t, pod)
	s.expect(t, "remove uid-1")
	// Twice, so that a function that is about to close has done so.
	for range 2 {
		if code := call(t, function); code != http.StatusOK {
			t.Errorf("got %d, want 200 from the function that still has a request", code)
		}
	}
	close(s.router.drained)
	s.awaitGone(t, "sort")
}

// TestPodWhoseDeletionWasMissedEnds is what a watch tells after a gap in which a
// pod was deleted.
func TestPodWhoseDeletionWasMissedEnds(t *testing.T) {
	s := newStand(t)
	pod := s.pod("sort", "uid-1", s.push(t, "sort", emptyCommand))
	s.create(t, pod)
	s.awaitReady(t, "sort")
	s.expect(t, "add uid-1")
	s.missed(cache.DeletedFinalStateUnknown{Key: "default/sort", Obj: pod})
	s.expect(t, "remove uid-1")
}

// TestStatus is about what else there is under a pod's name in the API.
func TestStatus(t *testing.T) {
	var published []*corev1.Pod
	inAPI := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	p := &Provider{
		cfg:    Config{Log: zaptest.NewLogger(t).Sugar()},
		lister: corelisters.NewPodLister(inAPI),
		notify: func(api *corev1.Pod) { published = append(published, api) },
	}
	named := func(uid types.UID) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "sort", UID: uid}}
	}
	it := newPod(p, named("uid-1"), func(error) {})
	put := func(uid types.UID) {
		api := named(uid)
		api.Status.Conditions = []corev1.PodCondition{{Type: "example.com/gate", Status: corev1.ConditionTrue}}
		if err := inAPI.Add(api); err != nil {
			t.Fatal(err)
		}
	}

	put("uid-1")
	p.publish(it)
	if len(published) != 1 || published[0].Status.Conditions[0].Type != "example.com/gate" {
		t.Fatalf("got %d published, want one status with the condition that another has set", len(published))
	}
	// The name is taken while virtual-kubelet is told.
	p.byName = map[types.NamespacedName]*pod{it.name: newPod(p, named("uid-2"), func(error) {})}
	notify := p.notify
	p.notify = func(api *corev1.Pod) {
		put("uid-2")
		notify(api)
	}
	p.publish(it)
	if last := published[len(published)-1]; last.UID != "uid-2" {
		t.Errorf("got the status of %s told last, want that of uid-2, which has the name", last.UID)
	}
	published = published[:1]
	p.publish(it)
	if len(published) != 1 {
		t.Errorf("got %s published for a pod whose name another has taken", published[1].Status.Phase)
	}
}

func TestPodThatCannotRunWaitsAndSaysWhy(t *testing.T) {
	s := newStand(t)
	waiting := func(p *corev1.Pod) *corev1.ContainerStateWaiting {
		if p == nil || len(p.Status.ContainerStatuses) == 0 || p.Status.Phase != corev1.PodPending {
			return nil
		}
		return p.Status.ContainerStatuses[0].State.Waiting
	}
	tests := []struct {
		name, reason, message string
		neverStarts           bool
		image                 string
		edit                  func(*corev1.Pod)
	}{
		{
			name: "unsupported", reason: "CreateContainerConfigError", message: "spec.hostNetwork", image: s.push(t, "a", emptyCommand),
			edit: func(p *corev1.Pod) { p.Spec.HostNetwork = true },
		},
		{name: "name", reason: "InvalidImageName", message: "UPPER", neverStarts: true, image: "UPPER/case"},
		{
			name: "never", reason: "ErrImageNeverPull", message: "imagePullPolicy is Never", image: s.registry + "/unpulled:v1",
			edit: func(p *corev1.Pod) { p.Spec.Containers[0].ImagePullPolicy = corev1.PullNever },
		},
		{name: "missing", reason: "ImagePullBackOff", message: "missing", image: s.registry + "/missing:v1"},
		{name: "imports", reason: "CreateContainerError", message: "nowhere", neverStarts: true, image: s.push(t, "b", importsUnknown)},
		{
			name: "abi", reason: "CreateContainerError", message: "telepathy", neverStarts: true, image: s.push(t, "c", emptyCommand),
			edit: func(p *corev1.Pod) { p.Annotations[config.ABIAnnotation] = "telepathy" },
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			pod := s.pod(test.name, types.UID(test.name), test.image)
			if test.edit != nil {
				test.edit(pod)
			}
			s.create(t, pod)
			s.await(t, test.name, test.reason, func(p *corev1.Pod) bool {
				w := waiting(p)
				if w == nil || w.Reason != test.reason {
					return false
				}
				if !strings.Contains(w.Message, test.message) {
					t.Errorf("got message %q, want it to name %s", w.Message, test.message)
				}
				last := p.Status.ContainerStatuses[0].LastTerminationState.Terminated
				if (last != nil && last.ExitCode == 128) != test.neverStarts {
					t.Errorf("got last termination %+v, want a start error: %v", last, test.neverStarts)
				}
				return true
			})
			if err := s.client.CoreV1().Pods("default").Delete(t.Context(), test.name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		})
	}
	if len(s.router.changes) != 0 {
		t.Errorf("the router was told %q of pods that never ran", <-s.router.changes)
	}
}

// TestSlowPodsKeepNoOtherWaiting has more pods wait for a registry than there are
// workers to take pods.
func TestSlowPodsKeepNoOtherWaiting(t *testing.T) {
	s := newStand(t)
	image := s.push(t, "sort", emptyCommand)
	hangs := func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/slow/") {
			return false
		}
		<-r.Context().Done()
		return true
	}
	s.fault.Store(&hangs)
	for i := range 2 * goruntime.NumCPU() {
		name := fmt.Sprintf("slow-%d", i)
		s.create(t, s.pod(name, types.UID(name), s.registry+"/slow/image:v1"))
	}
	s.create(t, s.pod("sort", "uid-1", image))
	s.awaitReady(t, "sort")
}

// TestNodeWatchesNoSecrets shows that what a node reads of others' objects is what
// its pods refer to, one by one.
func TestNodeWatchesNoSecrets(t *testing.T) {
	s := newStand(t)
	if _, err := s.client.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "keys"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.create(t, s.pod("sort", "uid-1", s.push(t, "sort", emptyCommand), func(p *corev1.Pod) {
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "keys"}}}}
	}))
	s.awaitReady(t, "sort")
	read := false
	for _, action := range s.client.Actions() {
		kind := action.GetResource().Resource
		if kind != "secrets" && kind != "configmaps" {
			continue
		}
		read = read || action.GetVerb() == "get"
		if verb := action.GetVerb(); verb == "list" || verb == "watch" {
			t.Errorf("the node would %s all %s", verb, kind)
		}
	}
	if !read {
		t.Error("the node has not read the Secret that its pod refers to")
	}
}

// TestReadinessThatWasTakenAwayComesBack is what the cluster's controllers do to the
// pods of a node that they haven't heard of for a while, and what the node does
// when it is back.
func TestReadinessThatWasTakenAwayComesBack(t *testing.T) {
	s := newStand(t)
	s.create(t, s.pod("sort", "uid-1", s.push(t, "sort", emptyCommand)))
	s.awaitReady(t, "sort")
	pod := s.get(t, "sort")
	for i, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			pod.Status.Conditions[i].Status = corev1.ConditionFalse
		}
	}
	if _, err := s.client.CoreV1().Pods("default").UpdateStatus(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.awaitReady(t, "sort")
}

// TestRecreatedPodDoesNotWaitForTheOldOne is a StatefulSet's way: the same name
// comes again, with another UID, while requests of the old pod still run.
func TestRecreatedPodDoesNotWaitForTheOldOne(t *testing.T) {
	s := newStand(t)
	image := s.push(t, "sort", emptyCommand)
	s.create(t, s.pod("sort", "old", image))
	s.awaitReady(t, "sort")
	s.expect(t, "add old")

	if err := s.client.CoreV1().Pods("default").Delete(t.Context(), "sort", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.create(t, s.pod("sort", "new", image))
	s.await(t, "sort", "ready as the new one", func(p *corev1.Pod) bool { return p != nil && p.UID == "new" && isReady(p) })
	got := map[string]bool{<-s.router.changes: true, <-s.router.changes: true}
	if !got["remove old"] || !got["add new"] {
		t.Errorf("got %v told to the router, want the old removed and the new added", got)
	}
}

// TestStoppedNodeKeepsItsPods shows that a node's end is not its pods' end: the
// next start runs them again.
func TestStoppedNodeKeepsItsPods(t *testing.T) {
	s := newStand(t)
	s.create(t, s.pod("sort", "uid-1", s.push(t, "sort", emptyCommand)))
	s.awaitReady(t, "sort")
	s.stop()
	s.await(t, "sort", "still there", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodRunning })

	s.start(t)
	s.expect(t, "add uid-1")
}

func specOf(t *testing.T, pod *corev1.Pod) podspec.Spec {
	t.Helper()
	spec, err := podspec.Parse(pod)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}
