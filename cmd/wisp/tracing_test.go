package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/zap/zaptest"

	"github.com/wisp-serving/wisp/span"
)

// TestTracesReachTheCollector has the variables of OpenTelemetry lead to one.
func TestTracesReachTheCollector(t *testing.T) {
	received := make(chan []byte, 1)
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("got %s, %v", r.URL, err)
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
		received <- body
	}))
	defer collector.Close()
	env := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL, "OTEL_SERVICE_NAME": "this-node"}
	for k, v := range env {
		t.Setenv(k, v) // which the exporter reads by itself
	}
	traces, err := newTraces(func(k string) string { return env[k] }, zaptest.NewLogger(t).Sugar())
	if err != nil {
		t.Fatal(err)
	}
	_, it := span.Continue(traces.provider(), httptest.NewRequest(http.MethodGet, "/", nil))
	it.End()
	traces.close()
	body := <-received
	for _, want := range []string{span.Request, "this-node"} {
		if !bytes.Contains(body, []byte(want)) { // of protobuf, where texts are as they are
			t.Errorf("the collector got %q, want %s in it", body, want)
		}
	}
}

func TestTracesAreOffUnlessAskedFor(t *testing.T) {
	for name, env := range map[string]map[string]string{
		"nothing":   {},
		"disabled":  {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
		"no traces": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
	} {
		traces, err := newTraces(func(k string) string { return env[k] }, zaptest.NewLogger(t).Sugar())
		if err != nil || traces.provider() != nil {
			t.Errorf("%s: got %v, %v, want no traces", name, traces, err)
		}
	}
	env := map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}
	_, err := newTraces(func(k string) string { return env[k] }, zaptest.NewLogger(t).Sugar())
	if err == nil || !strings.Contains(err.Error(), "http/json") {
		t.Errorf("got %v for a protocol that there isn't, want an error that names it", err)
	}
}
