package copies

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/wisp-serving/wisp/provider/podspec"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is an API server and copies that read it.
type world struct {
	*Copies
	client *fake.Clientset
	// allowed says, by namespace, what the API server answers.
	allowed sync.Map
	asked   atomic.Int32
	// watches are those that were opened.
	watches chan watch.Interface
	stop    context.CancelFunc
	done    chan error
}

// newWorld must be called inside a synctest bubble: the clock is the bubble's.
func newWorld(t *testing.T, objects ...runtime.Object) *world {
	t.Helper()
	w := &world{client: fake.NewClientset(objects...), watches: make(chan watch.Interface, 100)}
	w.allowed.Store("open", true)
	w.client.PrependReactor("create", "selfsubjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SelfSubjectAccessReview).DeepCopy()
		_, review.Status.Allowed = w.allowed.Load(review.Spec.ResourceAttributes.Namespace)
		w.asked.Add(1)
		return true, review, nil
	})
	w.client.PrependWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
		action := a.(clienttesting.WatchAction)
		opened, err := w.client.Tracker().Watch(action.GetResource(), action.GetNamespace())
		if err == nil {
			w.watches <- opened
		}
		return true, opened, err
	})
	var err error
	if w.Copies, err = New(Config{Client: w.client, Log: zap.NewNop().Sugar()}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	w.stop, w.done = stop, make(chan error, 1)
	go func() { w.done <- w.Run(ctx) }()
	t.Cleanup(w.end)
	synctest.Wait()
	return w
}

// end stops the copies and waits for their goroutines.
func (w *world) end() {
	w.stop()
	<-w.done
	w.done <- nil
}

// hold holds one Secret and waits until it is known what becomes of it.
func (w *world) hold(holder string) {
	w.Hold(holder, "open", []podspec.Reference{{Kind: podspec.Secret, Name: "keys"}})
	synctest.Wait()
}

// token returns the Secret's content, or why it can't be told.
func (w *world) token(namespace string) (string, error) {
	secret, err := w.Secret(context.Background(), namespace, "keys")
	if err != nil {
		return "", err
	}
	return string(secret.Data["token"]), nil
}

func (w *world) expect(t *testing.T, namespace, want string) {
	t.Helper()
	if got, err := w.token(namespace); err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func (w *world) expectNone(t *testing.T, namespace string) {
	t.Helper()
	if got, err := w.token(namespace); err == nil || !strings.Contains(err.Error(), "no current copy of Secret "+namespace+"/keys") {
		t.Errorf("got %q, %v, want no current copy", got, err)
	}
}

func (w *world) expectSize(t *testing.T, objects, bytes int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.kept) != objects || w.bytes != bytes {
		t.Errorf("got %d objects and %d bytes, want %d and %d", len(w.kept), w.bytes, objects, bytes)
	}
}

func (w *world) update(t *testing.T, token string) {
	t.Helper()
	if _, err := w.client.CoreV1().Secrets("open").Update(t.Context(), keys("open", token), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

func keys(namespace, token string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "keys", Annotations: map[string]string{"large": "annotation"}},
		Data:       map[string][]byte{"token": []byte(token)},
	}
}

// inWorld runs a test in a bubble.
func inWorld(t *testing.T, name string, test func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

func TestCopies(t *testing.T) {
	inWorld(t, "follow their object", func(t *testing.T) {
		w := newWorld(t, keys("open", "one"))
		w.hold("a")
		w.expect(t, "open", "one")
		w.update(t, "two")
		w.expect(t, "open", "two")
		if err := w.client.CoreV1().Secrets("open").Delete(t.Context(), "keys", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, err := w.token("open"); !apierrors.IsNotFound(err) {
			t.Errorf("got %v of one that was deleted, want not found: an optional one may be missing", err)
		}
	})
	inWorld(t, "are of ConfigMaps too", func(t *testing.T) {
		w := newWorld(t, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "open", Name: "settings"}, Data: map[string]string{"color": "red"}})
		w.Hold("a", "open", []podspec.Reference{{Kind: podspec.ConfigMap, Name: "settings"}, {Kind: podspec.ConfigMap, Name: "none"}})
		synctest.Wait()
		got, err := w.ConfigMap(t.Context(), "open", "settings")
		if err != nil || got.Data["color"] != "red" {
			t.Errorf("got %v, %v, want the ConfigMap", got, err)
		}
		if _, err := w.ConfigMap(t.Context(), "open", "none"); !apierrors.IsNotFound(err) {
			t.Errorf("got %v, want not found", err)
		}
	})
	inWorld(t, "hold what is started with, and nothing else", func(t *testing.T) {
		w := newWorld(t, keys("open", "one"))
		w.hold("a")
		got, err := w.Secret(t.Context(), "open", "keys")
		if err != nil || got.Annotations != nil {
			t.Errorf("got %v, %v, want it without annotations", got, err)
		}
	})
	inWorld(t, "are there as long as somebody holds them", func(t *testing.T) {
		w := newWorld(t, keys("open", "one"))
		w.hold("a")
		w.hold("b")
		w.hold("b") // again, as of a later template
		w.Hold("a", "open", nil)
		w.expect(t, "open", "one")
		w.Hold("b", "open", nil)
		synctest.Wait()
		w.expectNone(t, "open")
		w.expectSize(t, 0, 0)
		if len(w.holders) != 0 {
			t.Errorf("got holders %v, want none", w.holders)
		}
	})
	inWorld(t, "that are held before Run come with it", func(t *testing.T) {
		c, err := New(Config{Client: newWorld(t, keys("open", "one")).client, Log: zap.NewNop().Sugar()})
		if err != nil {
			t.Fatal(err)
		}
		w := &world{Copies: c}
		w.hold("a")
		w.expectNone(t, "open")
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		synctest.Wait()
		w.expect(t, "open", "one")
		stop()
		<-done
		w.expectNone(t, "open")
		w.hold("b") // after the end nothing is begun
	})
}

func TestPermission(t *testing.T) {
	inWorld(t, "is asked for once a minute and namespace, and nothing is read without", func(t *testing.T) {
		w := newWorld(t, keys("closed", "one"))
		for _, holder := range []string{"a", "b", "c"} {
			w.Hold(holder, "closed", []podspec.Reference{{Kind: podspec.Secret, Name: "keys"}, {Kind: podspec.Secret, Name: holder}})
		}
		synctest.Wait()
		w.expectNone(t, "closed")
		if n := w.asked.Load(); n != 1 {
			t.Errorf("asked %d times for four objects, want 1", n)
		}
		time.Sleep(10 * askAgain)
		if n := w.asked.Load(); n > 11 {
			t.Errorf("asked %d times in ten minutes, want at most once a minute", n)
		}
		for _, action := range w.client.Actions() {
			if action.GetVerb() == "list" || action.GetVerb() == "watch" {
				t.Errorf("got a %s of %s, want none", action.GetVerb(), action.GetResource().Resource)
			}
		}
		w.allowed.Store("closed", true)
		time.Sleep(2 * askAgain)
		w.expect(t, "closed", "one")
	})
	inWorld(t, "that is taken away ends the copy with its watch", func(t *testing.T) {
		w := newWorld(t, keys("open", "one"))
		w.hold("a")
		w.client.PrependReactor("list", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(corev1.Resource("secrets"), "", nil)
		})
		w.allowed.Delete("open")
		(<-w.watches).Stop()
		synctest.Wait()
		w.expectNone(t, "open")
		time.Sleep(3 * askAgain)
		w.expectNone(t, "open")
	})
}

func TestInterruptedWatch(t *testing.T) {
	inWorld(t, "is begun again", func(t *testing.T) {
		w := newWorld(t, keys("open", "one"))
		w.hold("a")
		time.Sleep(watchFor)
		(<-w.watches).Stop()
		synctest.Wait()
		w.expect(t, "open", "one")
		w.update(t, "two")
		w.expect(t, "open", "two")
	})
	inWorld(t, "leaves nothing that may be outdated", func(t *testing.T) {
		w := newWorld(t, keys("open", "one"))
		w.hold("a")
		var back atomic.Bool
		w.client.PrependReactor("list", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			return !back.Load(), nil, apierrors.NewServiceUnavailable("away")
		})
		(<-w.watches).Stop()
		synctest.Wait()
		w.expectNone(t, "open")
		w.expectSize(t, 1, 0)
		back.Store(true)
		time.Sleep(retryWithin)
		synctest.Wait()
		w.expect(t, "open", "one")
	})
	inWorld(t, "at once is no reason to hurry", func(t *testing.T) {
		w := newWorld(t, keys("open", "one"))
		w.client.PrependWatchReactor("secrets", func(clienttesting.Action) (bool, watch.Interface, error) {
			ended := watch.NewFake()
			ended.Stop()
			return true, ended, nil
		})
		w.hold("a")
		time.Sleep(time.Minute)
		lists := 0
		for _, action := range w.client.Actions() {
			if action.GetVerb() == "list" {
				lists++
			}
		}
		if lists > 61 {
			t.Errorf("got %d lists in a minute, want at most one a second", lists)
		}
	})
}

func TestBounds(t *testing.T) {
	inWorld(t, "of bytes", func(t *testing.T) {
		w := newWorld(t, keys("open", strings.Repeat("x", 1<<20)))
		const others = maxBytes - 1<<19
		w.bytes = others
		w.hold("a")
		w.expectNone(t, "open")
		w.expectSize(t, 1, others)
		w.update(t, "short")
		time.Sleep(retryWithin)
		synctest.Wait()
		w.expect(t, "open", "short")
	})
	inWorld(t, "of objects", func(t *testing.T) {
		w := newWorld(t, keys("open", "one"))
		for len(w.kept) < maxObjects {
			w.kept[object{name: strings.Repeat("x", len(w.kept))}] = &kept{}
		}
		w.hold("a")
		w.expectNone(t, "open")
		w.Hold("a", "open", nil)
	})
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "Client and Log") {
		t.Errorf("got %v, want the missing fields", err)
	}
}
