package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/wisp-serving/wisp/provider/queueproxy"
)

// TestScrape calls a function and finds the call among the metrics, by the name
// that queue-proxy's have in Prometheus.
func TestScrape(t *testing.T) {
	m, err := newMeters()
	if err != nil {
		t.Fatal(err)
	}
	requests, err := queueproxy.NewMetrics(m)
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := queueproxy.New(queueproxy.Config{
		Settings: queueproxy.Settings{Namespace: "ns", Revision: "sort-00001"},
		Function: http.NotFoundHandler(),
		Metrics:  []*queueproxy.Metrics{requests},
	})
	if err != nil {
		t.Fatal(err)
	}
	proxy.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))

	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{"kn_serving_invocation_duration_seconds_count{", `kn_revision_name="sort-00001"`, `http_response_status_code="404"`, "go_goroutines ", "process_cpu_seconds_total "} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("the scrape lacks %q", want)
		}
	}
}
