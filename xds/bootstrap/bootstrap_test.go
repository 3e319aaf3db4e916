package bootstrap

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/wisp-serving/wisp/config"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite testdata")

func TestRender(t *testing.T) {
	got, err := Render(config.DefaultGateway(), "")
	if err != nil {
		t.Fatal(err)
	}
	again, err := Render(config.DefaultGateway(), "")
	if err != nil || !bytes.Equal(got, again) {
		t.Errorf("a second rendering differs, error %v", err)
	}
	const golden = "testdata/default.yaml"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatalf("read golden (run with -update): %v", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("bootstrap (-want +got):\n%s", diff)
	}
	raw, err := yaml.YAMLToJSON(got)
	if err != nil {
		t.Fatal(err)
	}
	var b bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(raw, &b); err != nil {
		t.Errorf("read back: %v", err)
	}
}

func TestRenderStats(t *testing.T) {
	cfg := config.DefaultGateway()
	cfg.Envoy.StatsAddress = "0.0.0.0:9902"
	text, err := Render(cfg, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"portValue: 9902", "path: /stats/prometheus", "path: /ready"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("bootstrap lacks %q:\n%s", want, text)
		}
	}
	cfg.Envoy.StatsAddress = "0.0.0.0"
	if _, err := Render(cfg, ""); err == nil {
		t.Error("an address without a port was taken")
	}
}

func TestRenderRefusesAddresses(t *testing.T) {
	cfg := config.DefaultGateway()
	cfg.Envoy.AdminAddress = "127.0.0.1:99999"
	if _, err := Render(cfg, ""); err == nil || !strings.Contains(err.Error(), "render bootstrap: parse address 127.0.0.1:99999") {
		t.Errorf("error is %v", err)
	}
}

func TestRenderElsewhere(t *testing.T) {
	cfg := config.DefaultGateway()
	cfg.XDS.Server = "wisp-gateway-xds.wisp-system.svc:18000"
	text, err := Render(cfg, "/run/wisp")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"portValue: 18000", "type: STRICT_DNS", "sni: wisp-gateway-xds.wisp-system.svc", "exact: wisp-gateway-xds.wisp-system.svc", "path: /run/wisp/xds-own.yaml", "path: /run/wisp/xds-authority.yaml"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("bootstrap lacks %q:\n%s", want, text)
		}
	}
	files, err := Secrets(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"xds-own.yaml": "filename: /etc/wisp/xds/tls.key", "xds-authority.yaml": "filename: /etc/wisp/xds/ca.crt"} {
		if !strings.Contains(string(files[name]), want) {
			t.Errorf("%s lacks %q:\n%s", name, want, files[name])
		}
	}
	if _, err := Render(cfg, ""); err == nil || !strings.Contains(err.Error(), "xds.server is set") {
		t.Errorf("error without a folder is %v", err)
	}
}
