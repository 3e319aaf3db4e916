package e2e

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/platform"
)

// createService makes a Service of a module in namespace and returns it ready. The
// module is called by the argv ABI, unless flags name another.
func createService(t testing.TB, p *platform.Platform, namespace, name, module string, flags ...string) *servingv1.Service {
	t.Helper()
	image := fmt.Sprintf("%s/%s:v1", p.Registry, name)
	p.Wisp(t, "push", module, image)
	args := append([]string{"service", "create", name, "-n", namespace, "--image", image}, flags...)
	if !slices.ContainsFunc(flags, func(f string) bool { return strings.HasPrefix(f, config.ABIAnnotation) }) {
		args = append(args, "--annotation", config.ABIAnnotation+"=argv")
	}
	if !slices.Contains(flags, "--scale-window") { // else Knative's shortest
		args = append(args, "--scale-window", "6s")
	}
	p.Kn(t, args...)
	service := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	return platform.WaitFor(t, p, service, "be ready", func(s *servingv1.Service) bool { return s.IsReady() })
}

// caller calls services through Envoy, or a revision at a node, from any number
// of goroutines. It reports what went wrong instead of failing a test.
type caller struct {
	client  *http.Client
	gateway *url.URL
}

func newCaller(t testing.TB, p *platform.Platform) *caller {
	t.Helper()
	u, err := url.Parse(p.Gateway)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 1000, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &caller{client: &http.Client{Transport: transport, Timeout: 2 * time.Minute}, gateway: u}
}

// answer is one call's outcome: a status, or an error.
type answer struct {
	status int
	body   string
	err    error
	took   time.Duration
}

func (a answer) ok() bool { return a.err == nil && a.status == http.StatusOK }

func (a answer) String() string {
	if a.err != nil {
		return a.err.Error()
	}
	return fmt.Sprintf("%d %s", a.status, strings.TrimSpace(a.body[:min(len(a.body), 200)]))
}

func (c *caller) call(service *servingv1.Service, body string) answer {
	return c.callPath(service, "", body)
}

func (c *caller) callPath(service *servingv1.Service, path, body string) answer {
	r, err := http.NewRequest(http.MethodPost, c.gateway.String()+path, strings.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	r.Host = service.Status.URL.Host + ":" + c.gateway.Port()
	return c.do(r)
}

func (c *caller) do(r *http.Request) answer {
	r.Header.Set("Content-Type", "application/json")
	began := time.Now()
	resp, err := c.client.Do(r)
	if err != nil {
		return answer{err: err, took: time.Since(began)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, body: string(body), err: err, took: time.Since(began)}
}

// burst sends n calls at once and returns the answers.
func (c *caller) burst(service *servingv1.Service, n int, body string) []answer {
	return atOnce(n, func() answer { return c.call(service, body) })
}

// atOnce makes n calls at once and returns the answers.
func atOnce(n int, call func() answer) []answer {
	answers := make([]answer, n)
	var all sync.WaitGroup
	for i := range answers {
		all.Go(func() { answers[i] = call() })
	}
	all.Wait()
	return answers
}

// traffic calls from several clients, one call after the other, until stopped.
type traffic struct {
	end     context.CancelFunc
	clients sync.WaitGroup
	more    chan struct{} // has room for one: there is another answer

	mu      sync.Mutex
	answers []answer
}

// startTraffic begins to call a service; a client pauses between its calls for
// what pause returns.
func (c *caller) startTraffic(service *servingv1.Service, clients int, body string, pause func() time.Duration) *traffic {
	ctx, end := context.WithCancel(context.Background())
	tr := &traffic{end: end, more: make(chan struct{}, 1)}
	for range clients {
		tr.clients.Go(func() {
			for ctx.Err() == nil {
				a := c.call(service, body)
				tr.mu.Lock()
				tr.answers = append(tr.answers, a)
				tr.mu.Unlock()
				select {
				case tr.more <- struct{}{}:
				default:
				}
				select {
				case <-time.After(pause()):
				case <-ctx.Done():
				}
			}
		})
	}
	return tr
}

func every(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// await waits for n answers more than there are.
func (tr *traffic) await(t testing.TB, n int) {
	t.Helper()
	answers := func() int {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		return len(tr.answers)
	}
	deadline := time.After(2 * time.Minute)
	for want := answers() + n; answers() < want; {
		select {
		case <-tr.more:
		case <-deadline:
			t.Fatalf("got %d answers, want %d", answers(), want)
		}
	}
}

// eventually waits until ok holds, for what nothing tells of.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// stop ends the traffic and returns all answers.
func (tr *traffic) stop() []answer {
	tr.end()
	tr.clients.Wait()
	return tr.answers
}

// failures counts the answers that aren't 200, by what they are.
func failures(answers []answer) (n int, kinds string) {
	counts := map[string]int{}
	for _, a := range answers {
		if !a.ok() {
			n++
			counts[a.String()]++
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		kinds += fmt.Sprintf("\n  %d × %s", counts[kind], kind)
	}
	return n, kinds
}

// expectAll fails the test unless every answer is 200.
func expectAll(t testing.TB, what string, answers []answer) {
	t.Helper()
	n, kinds := failures(answers)
	t.Logf("%s: %d of %d calls failed%s", what, n, len(answers), kinds)
	if n > 0 || len(answers) == 0 {
		t.Errorf("%s: %d of %d calls failed, want none", what, n, len(answers))
	}
}
