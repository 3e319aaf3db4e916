// Package images runs Knative's own test images as guests, without a cluster.
package images

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/wisp-serving/wisp/runtime/compile"
	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/runtime/instance"
	"github.com/wisp-serving/wisp/runtime/modcache"
	"github.com/wisp-serving/wisp/runtime/sandbox"
	"github.com/wisp-serving/wisp/test/echo"
	"github.com/wisp-serving/wisp/test/guests"
)

// Knative's own test images, compiled from its modules as they are, with `wisp
// build`: each does what Knative's suites ask of it. Compiling them takes minutes
// the first time.
func TestKnativeImages(t *testing.T) {
	for image, check := range map[string]func(*testing.T, *httptest.Server){
		"serving/helloworld":   checkHelloWorld,
		"serving/hellohttp2":   checkHelloHTTP2,
		"serving/autoscale":    checkAutoscale,
		"networking/runtime":   checkRuntime,
		"networking/retry":     checkRetry,
		"networking/timeout":   checkTimeout,
		"networking/wsserver":  checkWebsocket,
		"networking/grpc-ping": checkGRPC,
	} {
		t.Run(image, func(t *testing.T) { check(t, serve(t, image)) })
	}
}

// serve runs an image behind a server of both versions of HTTP, until the test
// ends.
func serve(t *testing.T, image string) *httptest.Server {
	t.Helper()
	modules, err := modcache.New(modcache.Config{
		Dir: t.TempDir(), Memory: 1 << 30, Disk: 1 << 30, Compile: compile.Here,
		Load: func(image string) ([]byte, error) {
			path, err := guests.Knative(t.Context(), image)
			if err != nil {
				return nil, err
			}
			return os.ReadFile(path)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	host := instance.NewHost(instance.HostConfig{Cores: 2})
	s, err := sandbox.New(t.Context(), sandbox.Deps{Modules: modules, Host: host, Memory: 256 << 20, Log: zap.NewNop().Sugar()}, sandbox.Spec{
		ID: image, Module: image, Argv0: "image.wasm", ABI: guest.ABIServer, H2C: image == "serving/hellohttp2",
		Env: []string{"TARGET=wasm", "HOSTNAME=pod-1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(context.WithoutCancel(t.Context())) }()
	front := httptest.NewUnstartedServer(s)
	front.Config.Protocols = new(http.Protocols)
	front.Config.Protocols.SetHTTP1(true)
	front.Config.Protocols.SetUnencryptedHTTP2(true)
	front.Start()
	t.Cleanup(func() {
		front.CloseClientConnections()
		front.Close()
		now, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Close(now)
		if err := <-ended; !errors.Is(err, guest.ErrClosed) {
			t.Errorf("the guest has ended by itself: %v", err)
		}
		if err := modules.Close(); err != nil {
			t.Error(err)
		}
		host.Close()
	})
	return front
}

// fetch sends a GET and returns the answer with its body.
func fetch(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Error(err)
	}
	answer.Body.Close()
	return answer, string(text)
}

func checkHelloWorld(t *testing.T, front *httptest.Server) {
	if answer, text := fetch(t, front.URL); answer.StatusCode != 200 || !strings.Contains(text, "noodles") {
		t.Errorf("got %d %q", answer.StatusCode, text)
	}
}

func checkHelloHTTP2(t *testing.T, front *httptest.Server) {
	if answer, text := fetch(t, front.URL); answer.StatusCode != 200 || !strings.Contains(text, "HTTP/2") {
		t.Errorf("got %d %q", answer.StatusCode, text)
	}
}

func checkAutoscale(t *testing.T, front *httptest.Server) {
	if answer, text := fetch(t, front.URL+"/?sleep=10&prime=100&bloat=1"); answer.StatusCode != 200 || !strings.Contains(text, "Slept for") {
		t.Errorf("got %d %q", answer.StatusCode, text)
	}
}

func checkRuntime(t *testing.T, front *httptest.Server) {
	answer, text := fetch(t, front.URL)
	if answer.StatusCode != 200 || !strings.Contains(text, `"protoMajor": 1`) {
		t.Errorf("got %d %.500q", answer.StatusCode, text)
	}
}

func checkRetry(t *testing.T, front *httptest.Server) {
	for _, want := range []int{503, 200, 200} { // it counts, in one instance
		if answer, text := fetch(t, front.URL); answer.StatusCode != want {
			t.Errorf("got %d %q, want %d", answer.StatusCode, text, want)
		}
	}
}

// Requests that sleep do so at once.
func checkTimeout(t *testing.T, front *httptest.Server) {
	began := time.Now()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if answer, text := fetch(t, front.URL+"/?initialTimeout=500&timeout=500"); answer.StatusCode != 200 {
				t.Errorf("got %d %q", answer.StatusCode, text)
			}
		})
	}
	wg.Wait()
	if took := time.Since(began); took < time.Second {
		t.Errorf("took %s: it didn't sleep", took)
	}
}

func checkWebsocket(t *testing.T, front *httptest.Server) {
	fetch(t, front.URL+"/none") // which waits for the guest; the dialler's patience ends
	at := front.Listener.Addr().String()
	echo.WebSocket(t, at, at)
}

func checkGRPC(t *testing.T, front *httptest.Server) {
	at := front.Listener.Addr().String()
	echo.GRPC(t, at, at)
}
