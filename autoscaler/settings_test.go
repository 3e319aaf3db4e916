package autoscaler

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/wisp-serving/wisp/config"
)

func TestSettings(t *testing.T) {
	tests := []struct {
		name string
		maps []client.Object
		want string // part of the error
	}{
		{name: "good", maps: knativeSettings()},
		{name: "Knative isn't there", want: "read ConfigMap knative-serving/config-autoscaler: "},
		{
			name: "one is missing", maps: knativeSettings()[:1],
			want: "read ConfigMap knative-serving/config-deployment: ",
		},
		{
			name: "one is wrong", maps: []client.Object{configMap("config-autoscaler", map[string]string{"stable-window": "1s"})},
			want: "parse ConfigMap knative-serving/config-autoscaler: ",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &settings{namespace: "knative-serving", log: zap.NewNop().Sugar()}
			err := s.load(t.Context(), fake.NewClientBuilder().WithObjects(tt.maps...).Build())
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("load = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestSettingsThatChange(t *testing.T) {
	s := &settings{namespace: "knative-serving", log: zap.NewNop().Sugar()}
	if err := s.load(t.Context(), fake.NewClientBuilder().WithObjects(knativeSettings()...).Build()); err != nil {
		t.Fatal(err)
	}
	elsewhere := configMap("config-autoscaler", map[string]string{"stable-window": "2m"})
	elsewhere.Namespace = "default"
	steps := []struct {
		name     string
		cm       *corev1.ConfigMap
		taken    bool
		window   time.Duration
		deadline time.Duration
	}{
		{"another ConfigMap", configMap("config-gc", nil), false, 30 * time.Second, 10 * time.Minute},
		{"another namespace", elsewhere, false, 30 * time.Second, 10 * time.Minute},
		{"good", configMap("config-autoscaler", map[string]string{"stable-window": "1m"}), true, time.Minute, 10 * time.Minute},
		{"bad", configMap("config-autoscaler", map[string]string{"stable-window": "one minute"}), false, time.Minute, 10 * time.Minute},
		{"deadline", configMap("config-deployment", map[string]string{"queue-sidecar-image": "q", "progress-deadline": "60s"}), true, time.Minute, time.Minute},
	}
	for _, st := range steps {
		if got := s.take(st.cm); got != st.taken {
			t.Errorf("%s: taken = %v, want %v", st.name, got, st.taken)
		}
		if got := s.autoscaler.Load().StableWindow; got != st.window {
			t.Errorf("%s: window = %v, want %v", st.name, got, st.window)
		}
		if got := s.deadline(); got != st.deadline {
			t.Errorf("%s: deadline = %v, want %v", st.name, got, st.deadline)
		}
	}
}

func TestRunSaysWhyItCannotStart(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	// Nothing listens on port 1.
	const text = `{"apiVersion":"v1","kind":"Config","current-context":"c","clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}],"contexts":[{"name":"c","context":{"cluster":"c"}}]}`
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		set  func(*config.Autoscaler)
		want string
	}{
		{"no kubeconfig", func(c *config.Autoscaler) { c.Cluster.Kubeconfig = "/none" }, `load kubeconfig "/none": `},
		{"stat address taken", func(c *config.Autoscaler) { c.StatAddress = taken.Addr().String() }, "listen for stats: "},
		{"no API server", func(*config.Autoscaler) {}, "connect to the cluster: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config.DefaultAutoscaler()
			cfg.Cluster.Kubeconfig = kubeconfig
			cfg.HealthAddress, cfg.StatAddress = "127.0.0.1:0", "127.0.0.1:0"
			tt.set(&cfg)
			err := Run(context.Background(), cfg, zap.NewNop().Sugar())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Run = %v, want %q", err, tt.want)
			}
		})
	}
}
