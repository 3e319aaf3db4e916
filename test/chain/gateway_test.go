package chain

import (
	"context"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"knative.dev/networking/pkg/apis/networking/v1alpha1"
	knativeactivator "knative.dev/serving/pkg/activator"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/envoytest"
	"github.com/wisp-serving/wisp/xds/build"
	"github.com/wisp-serving/wisp/xds/server"
	"github.com/wisp-serving/wisp/xds/snapshot"
	"github.com/wisp-serving/wisp/xds/translate"
)

// gateway puts an Envoy before functions, until the test ends, and returns its
// address: there, name + ".example.com" is the function of that name, which is also
// its revision's. What Envoy
// has is what a gateway makes of Knative's KIngresses and sends it by delta ADS;
// only the objects come from here instead of an API server.
func gateway(t testing.TB, functions map[string]*function) (addr string) {
	t.Helper()
	dir := envoytest.Dir(t)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg := config.DefaultGateway()
	cfg.XDSSocket = filepath.Join(dir, "xds.sock")
	cfg.Envoy.HTTPAddress, cfg.Envoy.AdminAddress, cfg.Envoy.StatsAddress = freeAddr(t), freeAddr(t), ""

	snap, err := published(t, cfg.Envoy.HTTPAddress, functions).Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	ads := server.New(server.Config{Socket: cfg.XDSSocket}, unobserved{}, zap.NewNop().Sugar())
	if err := ads.Publish(t.Context(), snap); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := ads.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	envoytest.Start(t, cfg)
	for name, f := range functions {
		f.awaitBehind(t, cfg.Envoy.HTTPAddress, name)
	}
	if n := ads.Rejections(); n > 0 {
		t.Fatalf("Envoy has rejected %d responses", n)
	}
	return cfg.Envoy.HTTPAddress
}

// awaitBehind waits until the gateway at addr knows the function.
func (f *function) awaitBehind(t testing.TB, addr, name string) {
	t.Helper()
	for until := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		r := f.request(t, http.MethodOptions, "/", nil)
		through(r, addr, name)
		status, text, err := send(r)
		if err == nil && status != http.StatusNotFound && status != http.StatusServiceUnavailable {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("%s isn't behind Envoy: %d %q, %v", name, status, text, err)
		}
	}
}

// through makes r a request to the function of that name behind a gateway.
func through(r *http.Request, addr, name string) {
	r.URL.Host, r.Host = addr, name+".example.com"
	r.Header.Del(knativeactivator.RevisionHeaderNamespace)
	r.Header.Del(knativeactivator.RevisionHeaderName)
}

// unobserved is a server.Observer.
type unobserved struct{}

func (unobserved) Sent(string, int)          {}
func (unobserved) Rejected(server.Rejection) {}

// published is a gateway's configuration.
func published(t testing.TB, address string, functions map[string]*function) snapshot.State {
	t.Helper()
	out := snapshot.State{Secrets: snapshot.Set{}, Clusters: snapshot.Set{}, Endpoints: snapshot.Set{}}
	var vhosts [][]byte
	for _, name := range slices.Sorted(maps.Keys(functions)) {
		ing, refusal := translate.Translate(kingress(name), translate.World{
			Backend: func(types.NamespacedName) (translate.Backend, bool) {
				return translate.Backend{Revision: translate.HTTP1}, true
			},
		})
		if refusal != nil {
			t.Fatal(refusal.Message)
		}
		for _, vh := range ing.External {
			encoded, err := build.Encode(build.VirtualHost(vh, 0))
			if err != nil {
				t.Fatal(err)
			}
			vhosts = append(vhosts, encoded)
		}
		for _, c := range ing.Clusters() {
			cluster := resource(t, build.Cluster(c))
			endpoints := resource(t, build.Endpoints(cluster.Name, [][]translate.Endpoint{{endpoint(t, functions[name].addr)}}))
			out.Clusters[cluster.Name], out.Endpoints[endpoints.Name] = cluster, endpoints
		}
	}
	out.Routes = snapshot.SetOf(resource(t, build.Routes(translate.External, vhosts)))
	listener, err := build.Listener(translate.External, address, build.Filters(translate.External, false))
	if err != nil {
		t.Fatal(err)
	}
	out.Listeners = snapshot.SetOf(resource[*listenerv3.Listener](t, listener))
	return out
}

func resource[M proto.Message](t testing.TB, m M) snapshot.Resource {
	t.Helper()
	r, err := snapshot.NewResource(m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func endpoint(t testing.TB, addr string) translate.Endpoint {
	t.Helper()
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return translate.Endpoint{IP: host, Port: uint32(port), Weight: 1}
}

// kingress is what Knative's Route of a Service makes, for its external host and a
// revision of the same name.
func kingress(name string) *v1alpha1.Ingress {
	return &v1alpha1.Ingress{
		ObjectMeta: metav1.ObjectMeta{Namespace: revision.Namespace, Name: name},
		Spec: v1alpha1.IngressSpec{Rules: []v1alpha1.IngressRule{{
			Hosts:      []string{name + ".example.com"},
			Visibility: v1alpha1.IngressVisibilityExternalIP,
			HTTP: &v1alpha1.HTTPIngressRuleValue{Paths: []v1alpha1.HTTPIngressPath{{
				Splits: []v1alpha1.IngressBackendSplit{{
					IngressBackend: v1alpha1.IngressBackend{ServiceNamespace: revision.Namespace, ServiceName: name, ServicePort: intstr.FromInt32(80)},
					Percent:        100,
					AppendHeaders: map[string]string{
						knativeactivator.RevisionHeaderNamespace: revision.Namespace,
						knativeactivator.RevisionHeaderName:      name,
					},
				}},
			}}},
		}}},
	}
}
