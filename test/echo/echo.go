// Package echo talks with those of Knative's test images that send back what they
// get, message by message in both directions at once.
package echo

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	ping "knative.dev/networking/test/test_images/grpc-ping/proto"
)

// messages is how many are sent on a stream.
const messages = 100

// GRPC talks with grpc-ping at an address (host:port), which may serve several hosts:
// it asks for the named one.
func GRPC(t *testing.T, address, host string) {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(host))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := ping.NewPingServiceClient(conn)
	if got, err := client.Ping(t.Context(), &ping.Request{Msg: "hello"}); err != nil || !strings.HasPrefix(got.GetMsg(), "hello") {
		t.Errorf("got %v, %v", got, err)
	}
	stream, err := client.PingStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range messages {
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
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

// WebSocket talks with wsserver in the same way.
func WebSocket(t *testing.T, address, host string) {
	t.Helper()
	conn, resp, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+address+"/", http.Header{"Host": {host}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	resp.Body.Close()
	for i := range messages {
		want := fmt.Sprint("message ", i)
		if err := conn.WriteMessage(websocket.TextMessage, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.ReadMessage(); err != nil || !strings.HasPrefix(string(got), want) {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
}
