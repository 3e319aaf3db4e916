package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ping "knative.dev/networking/test/test_images/grpc-ping/proto"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

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
		host := create(t, "grpc", "networking/grpc-ping", "h2c:8080")
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(host))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		stream, err := ping.NewPingServiceClient(conn).PingStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			want := fmt.Sprint("message ", i)
			if err := stream.Send(&ping.Request{Msg: want}); err != nil {
				t.Fatal(err)
			}
			if got, err := stream.Recv(); err != nil || !strings.HasPrefix(got.GetMsg(), want) {
				t.Fatalf("got %v, %v, want %q", got, err, want)
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != io.EOF { //nolint:errorlint // gRPC promises this very value
			t.Errorf("after the end: %v", err)
		}
	})
	t.Run("websocket", func(t *testing.T) {
		host := create(t, "websocket", "networking/wsserver", "8080")
		conn, resp, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+address+"/", http.Header{"Host": {host}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		resp.Body.Close()
		for i := range 100 {
			want := fmt.Sprint("message ", i)
			if err := conn.WriteMessage(websocket.TextMessage, []byte(want)); err != nil {
				t.Fatal(err)
			}
			if _, got, err := conn.ReadMessage(); err != nil || !strings.HasPrefix(string(got), want) {
				t.Fatalf("got %q, %v, want %q", got, err, want)
			}
		}
	})
}
