package e2e

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/wisp-serving/wisp/test/echo"
	"github.com/wisp-serving/wisp/test/guests"
	"github.com/wisp-serving/wisp/test/platform"
)

// TestStreams talks to Services in both directions at once, through Envoy. Their
// modules are large: compiling one with the race detector takes longer than it may.
func TestStreams(t *testing.T) {
	p := platform.Start(t, platform.Options{WithoutRace: true})
	namespace := p.Namespace(t)
	create := func(t *testing.T, name, image, port string) string {
		t.Helper()
		module, err := guests.Knative(t.Context(), image)
		if err != nil {
			t.Fatal(err)
		}
		ref := p.Registry + "/" + name + ":v1"
		p.Wisp(t, "push", "--abi", "server", module, ref)
		p.Kn(t, "service", "create", name, "-n", namespace, "--image", ref, "--port", port)
		s := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
		return platform.WaitFor(t, p, s, "be ready", (*servingv1.Service).IsReady).Status.URL.Host
	}
	address := strings.TrimPrefix(p.Gateway, "http://")
	t.Run("gRPC", func(t *testing.T) {
		echo.GRPC(t, address, create(t, "grpc", "networking/grpc-ping", "h2c:8080"))
	})
	t.Run("websocket", func(t *testing.T) {
		echo.WebSocket(t, address, create(t, "websocket", "networking/wsserver", "8080"))
	})
}
