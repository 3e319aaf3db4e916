package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRun calls the binary's commands as a shell would.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	settings := filepath.Join(dir, "settings.yaml")
	if err := os.WriteFile(settings, []byte("qps: 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "text.wasm")
	if err := os.WriteFile(text, []byte("not a module"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		args   []string
		status int
		stdout string // a part of it
		stderr string // a part of it
	}{
		{"help", []string{"--help"}, 0, "For functions:\n  build ", ""},
		{"help of a tool", []string{"help", "push"}, 0, "kn service create sort --image $(wisp push", ""},
		{"completion of an ABI", []string{"__complete", "run", "--abi", ""}, 0, "server\tthe module listens on $PORT", ""},
		{"defaults", []string{"node", "defaults"}, 0, "earlyStartLease: 15s", ""},
		{"bootstrap", []string{"gateway", "bootstrap"}, 0, "/run/wisp/xds.sock", ""},
		{"bootstrap with broken settings", []string{"gateway", "bootstrap", "--config", settings}, 1, "", settings},
		{"unknown command", []string{"cook"}, 1, "", `unknown command "cook"`},
		{"role with unknown setting", []string{"autoscaler", "--config", settings}, 1, "", `unknown field "qps"`},
		{"role with no settings file", []string{"node", "--config", filepath.Join(dir, "none.yaml")}, 1, "", "none.yaml"},
		{"push of nothing", []string{"push", filepath.Join(dir, "none.wasm"), "localhost:1/a:v1"}, 1, "", "none.wasm"},
		{"push of what is no module", []string{"push", text, "localhost:1/a:v1"}, 1, "", "wasm"},
		{"compile nothing", []string{"compile", "-time", "1m", "-memory", "x"}, 2, "", "invalid value"},
		{"push to nowhere", []string{"push", text}, 1, "", "accepts 2 arg(s)"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var stdout, stderr strings.Builder
			status := run(t.Context(), test.args, &stdout, &stderr)
			if status != test.status || !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) {
				t.Errorf("got %d, stdout %q, stderr %q; want %d, %q, %q", status, stdout.String(), stderr.String(), test.status, test.stdout, test.stderr)
			}
		})
	}
}
