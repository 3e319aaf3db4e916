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

var hello = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello\n") })

// kinds are the ways to run a guest. First comes a native Go server by itself, by
// which the others are measured, then its handler in a guest's place.
var kinds = []struct {
	name, method, path, body string
	options                  options
}{
	{"native", http.MethodGet, "/", "", options{native: hello, alone: true}},
	{"native-in-place", http.MethodGet, "/", "", options{native: hello}},
	{"server-go", http.MethodGet, "/hello", "", options{guest: "echo", abi: guest.ABIServer}},
	{"cgi-go", http.MethodGet, "/deaf", "", options{guest: "cgi", abi: guest.ABICGI, memory: 1 << 30}},
	{"cgi-c", http.MethodGet, "/", "", options{guest: "sample-hello", abi: guest.ABICGI, memory: 1 << 30}},
	{"argv-c-sort", http.MethodPost, "/", `{"args":["3","1","2"]}`, options{guest: "sample-sort", abi: guest.ABIArgv, memory: 1 << 30}},
}

// BenchmarkNode is a request to the node, without an Envoy before it, by each way
// of running a guest and to a native Go server, over 1, 16 and 64 connections:
// requests a second, that as a ratio of the native one's, and times.
func BenchmarkNode(b *testing.B) { benchmarkKinds(b, false) }

// BenchmarkGateway is the same through one Envoy before all of them, as a gateway
// configures it.
func BenchmarkGateway(b *testing.B) { benchmarkKinds(b, true) }

func benchmarkKinds(b *testing.B, envoy bool) {
	functions := map[string]*function{}
	for _, kind := range kinds {
		kind.options.name = kind.name
		functions[kind.name] = deploy(b, kind.options)
	}
	addr := ""
	if envoy {
		addr = gateway(b, functions)
	}
	native := map[int]float64{}
	for _, kind := range kinds {
		for _, conns := range []int{1, 16, 64} {
			b.Run(fmt.Sprint(kind.name, "/conns-", conns), func(b *testing.B) {
				rate := load.Run(b, conns, func() *http.Request {
					r := functions[kind.name].request(b, kind.method, kind.path, strings.NewReader(kind.body))
					if envoy {
						through(r, addr, kind.name)
					}
					return r
				})
				if kind.name == "native" {
					native[conns] = rate
				}
				b.ReportMetric(rate/native[conns], "×native")
			})
		}
	}
}
