package sandbox

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/test/load"
)

// BenchmarkHello is a request that gets "hello", through a real HTTP server
// without a proxy before it, by each way of running a guest and by a native Go
// handler, over 1, 16 and 64 connections.
func BenchmarkHello(b *testing.B) {
	for _, kind := range []struct {
		name  string
		start func(testing.TB) (front *httptest.Server, path string)
	}{
		{"native", func(tb testing.TB) (*httptest.Server, string) {
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello\n") }))
			tb.Cleanup(front.Close)
			return front, "/"
		}},
		{"server-go", func(tb testing.TB) (*httptest.Server, string) {
			_, front := serve(tb, Spec{})
			return front, "/hello"
		}},
		{"cgi-go", func(tb testing.TB) (*httptest.Server, string) {
			_, front := serveCGI(tb, Spec{Memory: 1 << 30})
			return front, "/deaf"
		}},
		{"cgi-c", serveHelloC},
	} {
		b.Run(kind.name, func(b *testing.B) {
			front, path := kind.start(b)
			for _, conns := range []int{1, 16, 64} {
				b.Run(fmt.Sprint("conns-", conns), func(b *testing.B) { get(b, front.URL+path, conns) })
			}
		})
	}
}

// serveHelloC starts the C program that make compiled, for $WISP_HELLO_WASM names
// it.
func serveHelloC(tb testing.TB) (*httptest.Server, string) {
	if os.Getenv("WISP_HELLO_WASM") == "" {
		tb.Skip("WISP_HELLO_WASM is not set")
	}
	s := start(tb, Spec{ABI: guest.ABICGI, Module: "hello-c", Memory: 1 << 30})
	front := httptest.NewServer(s)
	tb.Cleanup(front.Close)
	return front, "/"
}

// get calls url over conns connections.
func get(b *testing.B, url string, conns int) {
	load.Run(b, conns, func() *http.Request {
		r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url, nil)
		if err != nil {
			panic(err)
		}
		return r
	})
}
