package xds

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/wisp-serving/wisp/test/envoytest"
)

// BenchmarkEndpointChange measures from a pod that is there to Envoy's
// acknowledgement of it, among many services, one change at a time.
func BenchmarkEndpointChange(b *testing.B) {
	for _, services := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) { benchmarkEndpointChange(b, services) })
	}
}

func benchmarkEndpointChange(b *testing.B, services int) {
	bed := newBed(b, "127.89.0")
	bed.addNode("node-a")
	bed.addNode("node-b")
	for i := range services {
		name := fmt.Sprintf("svc-%d", i)
		bed.addRevision(name, translateHTTP1)
		bed.addIngress(name, rule("External", name+".example.com", path(to(name))), rule("Local", name+".default", path(to(name))))
	}
	bed.startGateway()
	envoytest.Start(b, bed.cfg)
	bed.waitReady(fmt.Sprintf("svc-%d", services-1))
	bed.waitEndpoints()

	without := only("svc-0", bed.endpoints())
	bed.addPod("svc-0", "node-a")
	bed.waitEndpoints()
	with := only("svc-0", bed.endpoints())
	bed.removePod("svc-0", "node-a")
	bed.waitEndpoints()

	var took []time.Duration
	sent := bed.metric("kn.wasm.gateway.sent type=ClusterLoadAssignment")
	b.ResetTimer()
	for i := range b.N {
		want := with
		if i%2 == 1 {
			want = without
		}
		start := time.Now()
		if i%2 == 0 {
			bed.addPod("svc-0", "node-a")
		} else {
			bed.removePod("svc-0", "node-a")
		}
		for bed.srv.Envoys(resourcev3.EndpointType, want).Acked != 1 {
			time.Sleep(50 * time.Microsecond)
		}
		took = append(took, time.Since(start))
	}
	b.StopTimer()
	report(b, took)
	b.ReportMetric(float64(bed.metric("kn.wasm.gateway.sent type=ClusterLoadAssignment")-sent)/float64(b.N), "sent-B/op")
}

// BenchmarkReady measures from a KIngress that is there to its Ready, among many
// services, one at a time.
func BenchmarkReady(b *testing.B) {
	for _, services := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("services=%d", services), func(b *testing.B) { benchmarkReady(b, services) })
	}
}

func benchmarkReady(b *testing.B, services int) {
	bed := newBed(b, "127.106.0")
	bed.addNode("node-a")
	bed.addRevision("sort-1", translateHTTP1)
	for i := range services {
		name := fmt.Sprintf("svc-%d", i)
		bed.addRevision(name, translateHTTP1)
		bed.addIngress(name, rule("External", name+".example.com", path(to(name))))
	}
	bed.startGateway()
	envoytest.Start(b, bed.cfg)
	bed.waitReady(fmt.Sprintf("svc-%d", services-1))

	var took []time.Duration
	b.ResetTimer()
	for i := range b.N {
		name := fmt.Sprintf("new-%d", i)
		start := time.Now()
		bed.addIngress(name, rule("External", name+".example.com", path(to("sort-1"))))
		bed.waitReady(name)
		took = append(took, time.Since(start))
	}
	b.StopTimer()
	report(b, took)
}

func report(b *testing.B, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// only returns the versions of one revision's cluster.
func only(revision string, versions map[string]string) map[string]string {
	out := map[string]string{}
	for name, version := range versions {
		if strings.HasPrefix(name, namespace+"/"+revision+"/") {
			out[name] = version
		}
	}
	return out
}
