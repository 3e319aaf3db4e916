package runtime_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/runtime"
	"github.com/wisp-serving/wisp/runtime/compile"
	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/sandbox"
)

// compileChild is how this binary is told to be the compiler.
const compileChild = "compile-child"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == compileChild {
		os.Exit(compile.ChildMain(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	}
	goleak.VerifyTestMain(m)
}

// newCompilingRuntime returns a runtime that compiles in child processes, as a
// node's does.
func newCompilingRuntime(t testing.TB, limit time.Duration) *runtime.Runtime {
	t.Helper()
	guest := config.DefaultNode().Guest
	guest.CompileTime.Duration = limit
	return open(t, runtime.Config{
		DataDir: t.TempDir(), ImageStore: 1 << 30, Guest: guest, Log: zap.NewNop().Sugar(),
		Compiler: []string{os.Args[0], compileChild},
	})
}

// again returns a function's body without locals: code, n times.
func again(n int, code ...byte) []byte {
	return append(append([]byte{0}, bytes.Repeat(code, n)...), 0x0b)
}

// compileBombs are modules that take a compiler long, or much.
func compileBombs() map[string][]byte {
	// All of 20,000 values live until the end of a function.
	live := append([]byte{0}, bytes.Repeat([]byte{0x41, 1}, 20_000)...)
	live = append(append(live, bytes.Repeat([]byte{0x1a}, 20_000)...), 0x0b)
	labels := append([]byte{0x02, 0x40, 0x41, 0, 0x0e}, binary.AppendUvarint(nil, 60_000)...)
	labels = append(append(labels, make([]byte, 60_001)...), 0x0b)
	locals := append(append([]byte{1}, binary.AppendUvarint(nil, 50_000)...), 0x7f)
	for i := range 2_000 {
		locals = append(append(locals, 0x20), binary.AppendUvarint(nil, uint64(i))...)
		locals = append(append(locals, 0x21), binary.AppendUvarint(nil, uint64(49_999-i))...)
	}
	return map[string][]byte{
		"one huge function": wasmtest.Functions(1, again(1_500_000, 0x41, 1, 0x1a)),
		"many functions":    wasmtest.Functions(200_000, again(1, 0x01)),
		"tables of labels":  wasmtest.Functions(1, again(100, labels...)),
		"locals":            wasmtest.Functions(20, append(locals, 0x0b)),
		"nested blocks":     wasmtest.Functions(1, append(append([]byte{0}, bytes.Repeat([]byte{0x02, 0x40}, 60_000)...), bytes.Repeat([]byte{0x0b}, 60_001)...)),
		"living values":     wasmtest.Functions(20, live),
	}
}

// A module that is slow to compile is refused, or compiled, within its limits:
// neighbours are answered meanwhile, and nothing is left of it.
func TestCompileBombs(t *testing.T) {
	r, host := newCompilingRuntime(t, time.Second), newRegistry(t)
	neighbour := deploy(t, r, host, "neighbour", wasmtest.Command(wasmtest.Nothing))
	bombs := compileBombs()
	for _, name := range slices.Sorted(maps.Keys(bombs)) {
		t.Run(name, func(t *testing.T) {
			spec := push(t, r, host, name, bombs[name])
			before := openFiles(t)
			ended := make(chan error, 1)
			go func() {
				s, err := r.Start(t.Context(), spec)
				if err == nil {
					err = s.Close(context.WithoutCancel(t.Context()))
				}
				ended <- err
			}()
			// A neighbour that asked without a pause would leave the compiler nothing.
			for answers := 0; ; answers++ {
				time.Sleep(time.Millisecond)
				if w := post(neighbour, `{}`); w.Code != http.StatusOK {
					t.Fatalf("the neighbour got %d %q", w.Code, w.Body)
				}
				select {
				case err := <-ended:
					if err != nil && !errors.Is(err, runtime.ErrUnusable) {
						t.Errorf("got %v, want no error or ErrUnusable", err)
					}
					t.Logf("after %d answers of the neighbour's: %v", answers, err)
					if after := openFiles(t); after > before {
						t.Errorf("%d files are open, %d were", after, before)
					}
					return
				default:
				}
			}
		})
	}
}

// BenchmarkBesideCompilation is what a neighbour sees while another pod's module
// of 70 MB compiles.
func BenchmarkBesideCompilation(b *testing.B) {
	r, host := newCompilingRuntime(b, 10*time.Minute), newRegistry(b)
	defer runtime.SetUpProcess()()
	neighbour := deploy(b, r, host, "neighbour", wasmtest.Command(wasmtest.Nothing))
	srv := httptest.NewServer(neighbour)
	defer srv.Close()
	c := client{b, srv.URL}
	// Functions of 700 bytes that compute: more code than any toolchain's runtime.
	body := again(100, 0x41, 1, 0x41, 2, 0x6a, 0x1a, 0x01)
	spec := push(b, r, host, "large", wasmtest.Functions(70<<20/len(body), body))
	for b.Loop() {
		before := c.p99()
		ctx, cancel := context.WithCancel(b.Context())
		ended := make(chan error, 1)
		go func() {
			s, err := r.Start(ctx, spec)
			if err == nil {
				err = s.Close(context.WithoutCancel(ctx))
			}
			ended <- err
		}()
		during := c.p99()
		select {
		case err := <-ended:
			b.Fatalf("the compilation has ended before the measurement: %v", err)
		default:
		}
		cancel()
		<-ended
		b.ReportMetric(float64(before.Microseconds()), "p99-before-µs")
		b.ReportMetric(float64(during.Microseconds()), "p99-during-µs")
		b.ReportMetric(float64(during)/float64(before), "ratio")
	}
}

// push puts a module into the store, and returns what starts it.
func push(t testing.TB, r *runtime.Runtime, host, name string, module []byte) sandbox.Spec {
	t.Helper()
	ref := host + "/" + strings.ReplaceAll(name, " ", "-") + ":v1"
	if _, err := oci.Push(t.Context(), oci.PushConfig{Reference: ref, Module: module, FileName: "fn.wasm"}); err != nil {
		t.Fatal(err)
	}
	img, err := r.Pull(t.Context(), oci.Request{Reference: ref})
	if err != nil {
		t.Fatal(err)
	}
	return sandbox.Spec{
		ID: name, Module: img.ModuleDigest, Argv0: "fn.wasm", ABI: "argv", Proven: true,
		Memory: 64 << 20, CPURequest: 100, Stderr: io.Discard,
	}
}
