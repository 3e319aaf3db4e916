package runtime_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.uber.org/zap"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/runtime"
	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
	"github.com/wisp-serving/wisp/runtime/measure"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/sandbox"
)

// counted are the metrics as "name key=value …" and their counts, or their values.
type counted map[string]int64

func collect(t *testing.T, reader sdkmetric.Reader) counted {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	got := counted{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					got[m.Name+" "+p.Attributes.Encoded(attribute.DefaultEncoder())] = int64(p.Count)
				}
			case metricdata.Gauge[int64]:
				for _, p := range data.DataPoints {
					got[m.Name+" "+p.Attributes.Encoded(attribute.DefaultEncoder())] = p.Value
				}
			}
		}
	}
	return got
}

// TestMetrics runs guests that end in each way and one that doesn't end.
func TestMetrics(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	r, err := runtime.New(runtime.Config{
		DataDir: t.TempDir(), ImageStore: 1 << 30, Guest: config.DefaultNode().Guest, Log: zap.NewNop().Sugar(),
		Meters: sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)),
	})
	if err != nil {
		t.Fatal(err)
	}
	puppet, err := wasmtest.Puppet()
	if err != nil {
		t.Fatal(err)
	}
	host := newRegistry(t)
	start := func(name string, module []byte, memory int64, place measure.Place) *sandbox.Sandbox {
		t.Helper()
		ref := host + "/" + name + ":v1"
		if _, err := oci.Push(t.Context(), oci.PushConfig{Reference: ref, Module: module, FileName: "fn.wasm"}); err != nil {
			t.Fatal(err)
		}
		img, err := r.Pull(t.Context(), oci.Request{Reference: ref})
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.Start(t.Context(), sandbox.Spec{ID: name, Module: img.ModuleDigest, ABI: "argv", Memory: memory, Place: place})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	rev := measure.Place{Namespace: "default", Revision: "puppet-00001"}
	a := start("puppet", puppet, 64<<20, rev)
	b := start("puppet", puppet, 64<<20, rev) // another pod of it
	trap := start("trap", wasmtest.Command(wasmtest.Trap), 64<<20, measure.Place{Namespace: "default"})
	post(a, `{"args":["out","hello"]}`)
	post(b, `{}`)
	post(a, `{"args":["exit","3"]}`)
	post(a, `{"args":["fill","/tmp/x"]}`) // the pod's memory, and it exits by itself
	post(trap, `{}`)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	a.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodPost, "/", strings.NewReader(`{"args":["loop"]}`)))
	gone, leave := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(gone, http.MethodPost, "/", strings.NewReader(`{"args":["sleep"]}`)))
	}()
	for b.Usage().Instances == 0 {
		time.Sleep(time.Millisecond) // the guest gives no sign
	}
	present := collect(t, reader)
	if got := present["wisp.instances k8s.namespace.name=default,kn.revision.name=puppet-00001"]; got != 1 {
		t.Errorf("%d instances run, want 1 of both pods", got)
	}
	if got := present["wisp.memory k8s.namespace.name=default,kn.revision.name=puppet-00001"]; got < 1<<20 {
		t.Errorf("they hold %d bytes, want what a Go program takes", got)
	}
	leave()
	<-ended

	got := collect(t, reader)
	want := counted{
		"wisp.compile.duration result=ok":                                                    2, // one for each module
		"wisp.admission.duration k8s.namespace.name=default,kn.revision.name=puppet-00001":   6,
		"wisp.admission.duration k8s.namespace.name=default":                                 1,
		"wisp.instantiate.duration k8s.namespace.name=default,kn.revision.name=puppet-00001": 6,
		"wisp.instantiate.duration k8s.namespace.name=default":                               1,
		"wisp.instances k8s.namespace.name=default,kn.revision.name=puppet-00001":            0,
		"wisp.instances k8s.namespace.name=default":                                          0,
		"wisp.memory k8s.namespace.name=default,kn.revision.name=puppet-00001":               0,
		"wisp.memory k8s.namespace.name=default":                                             0,
	}
	for outcome, n := range map[string]int64{"ok": 3, "exit": 1, "timeout": 1, "ended": 1} {
		want["wisp.run.duration k8s.namespace.name=default,kn.revision.name=puppet-00001,outcome="+outcome] = n
	}
	want["wisp.run.duration k8s.namespace.name=default,outcome=trap"] = 1
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for name := range collect(t, reader) {
		if strings.HasPrefix(name, "wisp.instances") {
			t.Errorf("%s is told of after the end", name)
		}
	}
}
