package chain

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/test/load"
)

// BenchmarkNode is a request to the node, without an Envoy before it, by each way
// of running a guest and by a native Go handler in a guest's place, over 1, 16 and
// 64 connections: requests a second, that as a ratio of the native one's, and times.
func BenchmarkNode(b *testing.B) {
	native := map[int]float64{}
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello\n") })
	for _, kind := range []struct {
		name, method, path, body string
		options                  options
	}{
		{"native", http.MethodGet, "/", "", options{native: hello}},
		{"server-go", http.MethodGet, "/hello", "", options{guest: "echo", abi: guest.ABIServer}},
		{"cgi-go", http.MethodGet, "/deaf", "", options{guest: "cgi", abi: guest.ABICGI, memory: 1 << 30}},
		{"cgi-c", http.MethodGet, "/", "", options{guest: "sample-hello", abi: guest.ABICGI, memory: 1 << 30}},
		{"argv-c-sort", http.MethodPost, "/", `{"args":["3","1","2"]}`, options{guest: "sample-sort", abi: guest.ABIArgv, memory: 1 << 30}},
	} {
		b.Run(kind.name, func(b *testing.B) {
			f := deploy(b, kind.options)
			for _, conns := range []int{1, 16, 64} {
				b.Run(fmt.Sprint("conns-", conns), func(b *testing.B) {
					rate := load.Run(b, conns, func() *http.Request {
						return f.request(b, kind.method, kind.path, strings.NewReader(kind.body))
					})
					if kind.name == "native" {
						native[conns] = rate
					}
					b.ReportMetric(rate/native[conns], "×native")
				})
			}
		})
	}
}
