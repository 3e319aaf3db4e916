package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/wisp-serving/wisp/config"
)

// TestExamplesAreTheDefaults keeps the documented settings true: every key is
// there, and has the code's value.
func TestExamplesAreTheDefaults(t *testing.T) {
	tests := map[string]any{
		"node":       config.DefaultNode(),
		"gateway":    config.DefaultGateway(),
		"autoscaler": config.DefaultAutoscaler(),
	}
	for role, defaults := range tests {
		t.Run(role, func(t *testing.T) {
			text, err := config.Example(role)
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			if err := yaml.Unmarshal(text, &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(asMap(t, defaults), got); diff != "" {
				t.Errorf("example and defaults differ (-default +example):\n%s", diff)
			}
		})
	}
}

func asMap(t *testing.T, v any) map[string]any {
	t.Helper()
	text, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := yaml.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestLoad(t *testing.T) {
	load := map[string]func(string) error{
		"node":       func(path string) error { _, err := config.LoadNode(path); return err },
		"gateway":    func(path string) error { _, err := config.LoadGateway(path); return err },
		"autoscaler": func(path string) error { _, err := config.LoadAutoscaler(path); return err },
	}
	tests := []struct {
		name, role, text string
		want             []string // parts of the error; none: no error
	}{
		{"empty file is the defaults", "node", "", nil},
		{"unknown key", "node", "colour: red", []string{`unknown field "colour"`}},
		{"not yaml", "autoscaler", "{", []string{"parse settings"}},
		{"address with port", "node", "address: 127.0.0.1:80", []string{"address = 127.0.0.1:80, must be an IP address without a port"}},
		{"every broken rule is named", "node", "name: ''\nautoscalers: ['http://x']", []string{"name = ", "autoscalers = http://x, must be a ws://host:port URL"}},
		{"registry with scheme", "node", "insecureRegistries: ['http://r']", []string{"insecureRegistries = http://r, must be"}},
		{"pod network without a size", "node", "podCIDR: 10.244.1.0", []string{"podCIDR = 10.244.1.0, must be empty or a network, as in 10.244.1.0/24"}},
		{"no memory", "node", "guest: {memory: 1Ki}", []string{"guest.memory = 1Ki, must be at least 2097152 bytes"}},
		{"admin in the open", "gateway", "envoy: {adminAddress: '0.0.0.0:9901'}", []string{"envoy.adminAddress = 0.0.0.0:9901, must be a loopback address"}},
		{"one listener for both", "gateway", "envoy: {internalAddress: '127.0.0.1:8080'}", []string{"envoy.internalAddress = 127.0.0.1:8080, must be another address"}},
		{"long socket path", "gateway", "xdsSocket: /" + strings.Repeat("a", 107), []string{"must be an absolute path of at most 107 bytes"}},
		{"no namespace", "autoscaler", "systemNamespace: ''", []string{"systemNamespace = , must be a namespace"}},
		{"nobody to push to", "node", "autoscalers: []", []string{"autoscalers = [], must be at least one"}},
		{"no room to wait", "node", "queueBytes: '0'", []string{"queueBytes = 0, must be above 0"}},
		{"hasty lease", "autoscaler", "leaseDuration: 10ms", []string{"leaseDuration = 10ms, must be at least 1s"}},
		{"bad level", "autoscaler", "log: {level: loud}", []string{"log.level = loud, must be debug, info, warn or error"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "settings.yaml")
			if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			err := load[test.role](path)
			if len(test.want) == 0 {
				if err != nil {
					t.Fatalf("got error %v, want none", err)
				}
				return
			}
			if err == nil {
				t.Fatalf("got no error, want one with %q", test.want)
			}
			for _, want := range append(test.want, path) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got error %q, want it to contain %q", err, want)
				}
			}
		})
	}
}

func TestLoad_sets_single_settings_over_the_file(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.yaml")
	if err := os.WriteFile(path, []byte("name: from-file\nkubelet: {port: 1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := config.LoadNode(path, "name=n-1", "kubelet.port=10251", "capacity.cpu=2", "name=n-2")
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "n-2" || got.Kubelet.Port != 10251 || got.Capacity.CPU.String() != "2" {
		t.Errorf("got name %s, kubelet.port %d, capacity.cpu %s, want n-2, 10251, 2", got.Name, got.Kubelet.Port, got.Capacity.CPU.String())
	}
	if want := config.DefaultNode().Capacity.Memory; !got.Capacity.Memory.Equal(want) {
		t.Errorf("its neighbour became %s, want %s as before", got.Capacity.Memory.String(), want.String())
	}
	for set, want := range map[string]string{
		"name":              `setting "name", must be KEY=VALUE`,
		"colour=red":        `unknown field "colour"`,
		"kubelet.port=many": "setting kubelet.port = many",
		"address=nowhere":   "address = nowhere, must be an IP address",
	} {
		if _, err := config.LoadNode(path, set); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("with %s: got %v, want an error with %q", set, err, want)
		}
	}
}

func TestLoadMissingFile(t *testing.T) {
	_, err := config.LoadNode(filepath.Join(t.TempDir(), "nothing.yaml"))
	if err == nil || !strings.Contains(err.Error(), "nothing.yaml") {
		t.Fatalf("got %v, want an error that names the file", err)
	}
}

func TestExampleOfNoRole(t *testing.T) {
	if _, err := config.Example("cook"); err == nil || !strings.Contains(err.Error(), "cook") {
		t.Fatalf("got %v, want an error that names the role", err)
	}
}

func TestAdopt(t *testing.T) {
	running, next := config.DefaultGateway(), config.DefaultGateway()
	next.Log.Level, next.ExternalNames, next.ExternalDomain, next.InternalDomain = "debug", true, "out.example", "in.example"
	next.SharedHost, next.SharedNamespaces = "shared.example", []string{"*"}
	next.Envoy.AccessLog, next.Envoy.HTTPSPort = false, 8443
	got, restart, err := running.Adopt(next)
	if err != nil || len(restart) > 0 {
		t.Errorf("%q wait for a restart, error %v; want none", restart, err)
	}
	if diff := cmp.Diff(asMap(t, next), asMap(t, got)); diff != "" {
		t.Errorf("adopted (-want +got):\n%s", diff)
	}

	next.XDSSocket, next.Cluster.QPS, next.Envoy.HTTPAddress = "/else/xds.sock", 1, "127.0.0.1:80"
	again, restart, err := got.Adopt(next)
	if diff := cmp.Diff([]string{"cluster.qps", "envoy.httpAddress", "xdsSocket"}, restart); diff != "" || err != nil {
		t.Errorf("waiting for a restart (-want +got), error %v:\n%s", err, diff)
	}
	if diff := cmp.Diff(asMap(t, got), asMap(t, again)); diff != "" {
		t.Errorf("adopted (-want +got):\n%s", diff)
	}
}
