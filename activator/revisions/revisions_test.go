package revisions

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"knative.dev/serving/pkg/client/clientset/versioned/fake"

	"github.com/wisp-serving/wisp/activator"
	"github.com/wisp-serving/wisp/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func revision(name string, uid types.UID, concurrency, timeout *int64) *servingv1.Revision {
	r := &servingv1.Revision{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: uid}}
	r.Spec.ContainerConcurrency = concurrency
	r.Spec.TimeoutSeconds = timeout
	return r
}

func TestRevisions(t *testing.T) {
	one, ten := int64(1), int64(10)
	late := revision("late", "u3", nil, nil)
	late.Annotations = map[string]string{config.PodAfterAnnotation: "5s"}
	odd := revision("odd", "u4", nil, nil)
	odd.Annotations = map[string]string{config.PodAfterAnnotation: "soon"}
	client := fake.NewSimpleClientset(revision("full", "u1", &one, &ten), revision("bare", "u2", nil, nil), late, odd)
	deleted := make(chan types.UID, 1)
	r, err := New(client, func(_ types.NamespacedName, uid types.UID) { deleted <- uid })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	if err := r.Synced(ctx); err != nil {
		t.Fatal(err)
	}

	key := func(name string) types.NamespacedName {
		return types.NamespacedName{Namespace: "default", Name: name}
	}
	for _, want := range []activator.Revision{
		{NamespacedName: key("full"), UID: "u1", Concurrency: 1, Timeout: 10 * time.Second},
		{NamespacedName: key("bare"), UID: "u2", Concurrency: 0, Timeout: 300 * time.Second},
		{NamespacedName: key("late"), UID: "u3", Timeout: 300 * time.Second, PodAfter: 5 * time.Second},
		{NamespacedName: key("odd"), UID: "u4", Timeout: 300 * time.Second},
	} {
		got, ok := r.Get(want.NamespacedName)
		if diff := cmp.Diff(want, got); !ok || diff != "" {
			t.Errorf("Get(%s): %v, (-want +got):\n%s", want, ok, diff)
		}
	}
	if _, ok := r.Get(key("none")); ok {
		t.Error("Get of an unknown revision: got one")
	}

	if err := client.ServingV1().Revisions("default").Delete(ctx, "full", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if uid := <-deleted; uid != "u1" {
		t.Errorf("deleted was told %s, want u1", uid)
	}
	if _, ok := r.Get(key("full")); ok {
		t.Error("Get of a deleted revision: got one")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestSyncedFailsWhenTheContextEnds(t *testing.T) {
	r, err := New(fake.NewSimpleClientset(), func(types.NamespacedName, types.UID) {})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Synced(ctx); err == nil {
		t.Error("Synced without a list: got no error")
	}
}
