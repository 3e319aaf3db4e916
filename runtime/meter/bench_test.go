package meter_test

import (
	"context"
	"math"
	"os"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
	"github.com/wisp-serving/wisp/runtime/meter"
)

// ways are how a guest can be run, the first being what others are measured by.
var ways = []string{"plain", "metered", "closing"}

// benchRuntime makes a runtime for one of ways. Guests get rations of about 100
// µs.
func benchRuntime(b *testing.B, way string) wazero.Runtime {
	r := wazero.NewRuntimeWithConfig(b.Context(), wazero.NewRuntimeConfigCompiler().WithCloseOnContextDone(way == "closing"))
	b.Cleanup(func() { _ = r.Close(context.Background()) })
	wasi_snapshot_preview1.MustInstantiate(b.Context(), r)
	hostYield(b, r, 200_000)
	return r
}

func benchModule(b *testing.B, module []byte, way string) []byte {
	if way != "metered" {
		return module
	}
	rewritten, err := meter.Rewrite(module, meter.Options{})
	if err != nil {
		b.Fatal(err)
	}
	return rewritten
}

// BenchmarkMetered runs the same work plain, metered, and with
// WithCloseOnContextDone in place of the meter, in turns, and reports the
// shortest times' ratios. The C workloads are what $WISP_WORKLOADS_WASM names.
func BenchmarkMetered(b *testing.B) {
	logs, n := 0.0, 0
	report := func(b *testing.B, run [3]func()) {
		ratio := compareWays(b, run)
		logs += math.Log(ratio)
		n++
	}
	if path := os.Getenv("WISP_WORKLOADS_WASM"); path != "" {
		benchWorkloads(b, path, report)
	} else {
		b.Log("WISP_WORKLOADS_WASM is not set: the C workloads don't run")
	}
	documents, err := wasmtest.Documents()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("go", func(b *testing.B) {
		var run [3]func()
		for i, way := range ways {
			r := benchRuntime(b, way)
			compiled, err := r.CompileModule(b.Context(), benchModule(b, documents, way))
			if err != nil {
				b.Fatal(err)
			}
			run[i] = func() {
				m, err := r.InstantiateModule(b.Context(), compiled, wazero.NewModuleConfig().WithName(""))
				if err != nil {
					b.Fatal(err)
				}
				_ = m.Close(b.Context())
			}
		}
		report(b, run)
	})
	if n > 0 {
		b.Logf("metered, geometric mean of %d: %.3f of plain", n, math.Exp(logs/float64(n)))
	}
}

func benchWorkloads(b *testing.B, path string, report func(*testing.B, [3]func())) {
	module, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	var instances [3]api.Module
	for i, way := range ways {
		r := benchRuntime(b, way)
		if instances[i], err = r.InstantiateWithConfig(b.Context(), benchModule(b, module, way), wazero.NewModuleConfig().WithStartFunctions()); err != nil {
			b.Fatal(err)
		}
	}
	for _, work := range []struct {
		export string
		much   uint64
	}{
		{"loop", 3_000_000},
		{"matrix", 10},
		{"sieve", 1},
		{"fib", 24},
		{"mutual", 500},
		{"sort", 2},
		{"json", 2000},
		{"interpret", 50_000},
	} {
		b.Run(work.export, func(b *testing.B) {
			var run [3]func()
			for i, m := range instances {
				f := m.ExportedFunction(work.export)
				run[i] = func() {
					if _, err := f.Call(b.Context(), work.much); err != nil {
						b.Fatal(err)
					}
				}
			}
			report(b, run)
		})
	}
}

// compareWays runs ways in turns, and returns how long metered took of plain.
func compareWays(b *testing.B, run [3]func()) float64 {
	var shortest [3]time.Duration
	for b.Loop() {
		for i := range run {
			start := time.Now()
			run[i]()
			if took := time.Since(start); shortest[i] == 0 || took < shortest[i] {
				shortest[i] = took
			}
		}
	}
	ratio := func(i int) float64 { return float64(shortest[i]) / float64(shortest[0]) }
	b.ReportMetric(float64(shortest[0].Nanoseconds()), "ns/plain")
	b.ReportMetric(ratio(1), "metered/plain")
	b.ReportMetric(ratio(2), "closing/plain")
	return ratio(1)
}

// BenchmarkRewrite rewrites a Go program.
func BenchmarkRewrite(b *testing.B) {
	module, err := wasmtest.Documents()
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(module)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := meter.Rewrite(module, meter.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
