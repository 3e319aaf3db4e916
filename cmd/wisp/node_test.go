package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/wisp-serving/wisp/config"
)

// TestNodeTakesNoPodsBeforeItKnowsRevisions runs a node on an API server that
// doesn't answer for Revisions: a pod there would be Ready and get no request.
func TestNodeTakesNoPodsBeforeItKnowsRevisions(t *testing.T) {
	revisions, others := make(chan struct{}, 100), make(chan string, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/revisions") {
			revisions <- struct{}{}
			<-r.Context().Done()
			return
		}
		others <- r.Method + " " + r.URL.Path
		http.NotFound(w, r)
	}))
	defer server.Close()

	cfg := config.DefaultNode()
	cfg.Address = "127.0.0.77" // nothing listens there yet
	cfg.HealthAddress = "127.0.0.77:0"
	cfg.Autoscalers = []string{"ws://127.0.0.77:1"}
	cfg.DataDir = t.TempDir()
	cfg.Cluster.Kubeconfig = kubeconfig(t, server.URL)
	cfg.Reader.Kubeconfig = cfg.Cluster.Kubeconfig
	n, err := newNode(cfg, zaptest.NewLogger(t).Sugar())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.run(ctx) }()
	<-revisions
	select {
	case request := <-others:
		t.Errorf("got %s before the revisions were known", request)
	case <-time.After(200 * time.Millisecond): // what must not come has no signal
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("run: %v", err)
	}
}

func kubeconfig(t *testing.T, url string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q}}]
contexts: [{name: c, context: {cluster: c}}]
current-context: c
`, url)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
