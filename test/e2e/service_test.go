package e2e

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/platform"
)

// createSort pushes the sample and makes a Service of it in a namespace of its
// own, with the shortest window that Knative allows, to be at zero soon. It
// returns it ready.
func createSort(t testing.TB, p *platform.Platform) *servingv1.Service {
	t.Helper()
	p.Wisp(t, "push", p.SortModule, p.Registry+"/sort:v1")
	namespace := p.Namespace(t)
	p.Kn(t, "service", "create", "sort", "-n", namespace, "--image", p.Registry+"/sort:v1",
		"--annotation", config.ABIAnnotation+"=argv", "--annotation", "autoscaling.knative.dev/window=6s")
	service := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "sort"}}
	return platform.WaitFor(t, p, service, "be ready", func(s *servingv1.Service) bool { return s.IsReady() })
}

// expect calls the service and fails the test unless the answer has the status
// and contains want.
func expect(t testing.TB, p *platform.Platform, service *servingv1.Service, body string, status int, want string) {
	t.Helper()
	gotStatus, got := call(t, p, service.Status.URL.Host, body)
	if gotStatus != status || !strings.Contains(got, want) {
		t.Errorf("got %d %q, want %d with %q", gotStatus, got, status, want)
	}
}

// call POSTs a JSON body to a host through Envoy's external listener.
func call(t testing.TB, p *platform.Platform, host, body string) (int, string) {
	t.Helper()
	return callPath(t, p, http.MethodPost, host, "/", body)
}

// callPath sends a request with a method to a path of a host, with its query,
// through Envoy's external listener.
func callPath(t testing.TB, p *platform.Platform, method, host, path, body string) (int, string) {
	t.Helper()
	u, err := url.Parse(p.Gateway + path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, u.String(), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Host = host + ":" + u.Port() // as curl sends it for a URL with a port
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

func ready(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func awaitReadyPod(t testing.TB, p *platform.Platform, service *servingv1.Service) *corev1.Pod {
	t.Helper()
	return awaitPods(t, p, service, "one ready pod", func(pods []*corev1.Pod) bool { return len(pods) == 1 && ready(pods[0]) })[0]
}

func awaitZero(t testing.TB, p *platform.Platform, service *servingv1.Service) {
	t.Helper()
	awaitPods(t, p, service, "no pod", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
}

// awaitPods watches the service's pods until ok holds for all of them together.
func awaitPods(t testing.TB, p *platform.Platform, service *servingv1.Service, what string, ok func([]*corev1.Pod) bool) []*corev1.Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	selector := client.ListOptions{
		Namespace:     service.Namespace,
		LabelSelector: labels.SelectorFromSet(labels.Set{serving.ServiceLabelKey: service.Name}),
	}
	pods := map[string]*corev1.Pod{}
	all := func() []*corev1.Pod {
		list := make([]*corev1.Pod, 0, len(pods))
		for _, pod := range pods {
			list = append(list, pod)
		}
		return list
	}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, raw metav1.ListOptions) (runtime.Object, error) {
			o, list := selector, &corev1.PodList{}
			o.Raw = &raw
			return list, p.Client.List(ctx, list, &o)
		},
		WatchFuncWithContext: func(ctx context.Context, raw metav1.ListOptions) (watch.Interface, error) {
			o := selector
			o.Raw = &raw
			return p.Client.Watch(ctx, &corev1.PodList{}, &o)
		},
	}
	_, err := watchtools.UntilWithSync(ctx, lw, &corev1.Pod{},
		func(store cache.Store) (bool, error) {
			for _, obj := range store.List() {
				pod := obj.(*corev1.Pod)
				pods[pod.Name] = pod
			}
			return ok(all()), nil
		},
		func(e watch.Event) (bool, error) {
			pod := e.Object.(*corev1.Pod)
			if e.Type == watch.Deleted {
				delete(pods, pod.Name)
			} else {
				pods[pod.Name] = pod
			}
			return ok(all()), nil
		})
	if err != nil {
		t.Fatalf("wait for %s of service %s: %v; there are %d", what, service.Name, err, len(pods))
	}
	return all()
}
