package local_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"github.com/wisp-serving/wisp/local"
	"github.com/wisp-serving/wisp/test/guests"
)

// TestMain also finds goroutines that nobody waits for; opencensus, a dependency
// of Knative's, starts one in its init.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// serving is a Run.
type serving struct {
	t      *testing.T
	url    string
	lines  chan string // what users are told
	client http.Client
	stop   context.CancelFunc
	ended  chan error
}

// serve runs cfg until the test ends, and waits until it serves.
func serve(t *testing.T, cfg local.RunConfig) *serving {
	t.Helper()
	m, err := local.Open(local.Config{Log: zaptest.NewLogger(t).Sugar()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &serving{t: t, lines: make(chan string, 100), stop: stop, ended: make(chan error, 1), client: http.Client{Transport: &http.Transport{}}}
	cfg.Address = "127.0.0.1:0"
	cfg.Tell = func(line string) { s.lines <- line }
	go func() { s.ended <- errors.Join(m.Run(ctx, cfg), m.Close()) }()
	t.Cleanup(func() {
		s.client.CloseIdleConnections()
		stop()
		if err := <-s.ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	s.url = strings.TrimSuffix(regexp.MustCompile(`http://\S+/`).FindString(s.await("http://")), "/")
	return s
}

func (s *serving) await(what string) string {
	s.t.Helper()
	timeout := time.After(2 * time.Minute)
	for {
		select {
		case line := <-s.lines:
			if strings.Contains(line, what) {
				return line
			}
		case err := <-s.ended:
			s.ended <- nil
			s.t.Fatalf("it ended without saying %q: %v", what, err)
		case <-timeout:
			s.t.Fatalf("it didn't say %q", what)
		}
	}
}

func (s *serving) post(path, body string) (int, string) {
	s.t.Helper()
	resp, err := s.client.Post(s.url+path, "application/json", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func program(t *testing.T, name string) string {
	t.Helper()
	file, err := guests.Program(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestServiceFindsWhatItsFileHolds asks a function for each thing that a Service,
// its file and the command line give it.
func TestServiceFindsWhatItsFileHolds(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "service.yaml"), `
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {COLOUR: green, motd: welcome}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {KEY: s3cret}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: puppet}
spec:
  template:
    metadata:
      annotations: {wisp.dev/abi: argv}
    spec:
      containers:
        - image: registry.example/puppet
          args: [out, first]
          envFrom: [{configMapRef: {name: settings}}]
          env:
            - {name: SHAPE, value: round}
            - {name: KEY, valueFrom: {secretKeyRef: {name: keys, key: KEY}}}
          volumeMounts: [{name: v, mountPath: /etc/settings}]
      volumes: [{name: v, configMap: {name: settings}}]
`)
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(data, "x"), "of the host\n")
	s := serve(t, local.RunConfig{
		What: file, Module: program(t, "puppet"),
		Env:  []string{"SHAPE=square", "SIZE=2"},
		Dirs: []local.Dir{{Here: data, There: "/data"}, {Here: data, There: "/fixed", ReadOnly: true}},
	})
	tests := map[string][2]string{
		"the Service's arguments":     {`"out","second"`, "first\nsecond\n"},
		"a ConfigMap's variable":      {`"env","COLOUR"`, "first\ngreen\n"},
		"a Secret's variable":         {`"env","KEY"`, "first\ns3cret\n"},
		"the command line's variable": {`"env","SHAPE","env","SIZE"`, "first\nsquare\n2\n"},
		"Knative's variables":         {`"env","K_SERVICE","env","K_REVISION","env","PORT"`, "first\npuppet\npuppet-00001\n8080\n"},
		"a volume":                    {`"cat","/etc/settings/motd"`, "first\nwelcome"},
		"a folder":                    {`"cat","/data/x"`, "first\nof the host\n"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if status, got := s.post("/", `{"args":[`+test[0]+`]}`); status != http.StatusOK || got != test[1] {
				t.Errorf("got %d %q, want %q", status, got, test[1])
			}
		})
	}
	s.post("/", `{"args":["append","/data/new","append","/fixed/newer"]}`)
	if _, err := os.Stat(filepath.Join(data, "new")); err != nil {
		t.Errorf("a folder that may be written: %v", err)
	}
	if _, err := os.Stat(filepath.Join(data, "newer")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that may not: %v", err)
	}
}

// TestServer runs what listens: it answers when Run says so, and it comes back
// after it has ended.
func TestServer(t *testing.T) {
	s := serve(t, local.RunConfig{What: program(t, "echo"), ABI: "server"})
	if status, got := s.post("/hello", ""); status != http.StatusOK || got != "hello\n" {
		t.Errorf("got %d %q", status, got)
	}
	_, headers := s.post("/", "")
	if !strings.Contains(headers, "127.0.0.1") || strings.Contains(headers, "Knative-Serving") {
		t.Errorf("the function sees %q; want the client's address and none of Knative's headers", headers)
	}
	if status, _ := s.post("/exit/3", ""); status != http.StatusBadGateway {
		t.Errorf("while it ends: got %d, want 502", status)
	}
	s.await("echo-00001 has ended (exit status 3)")
	if status, got := s.post("/hello", ""); status != http.StatusOK || got != "hello\n" {
		t.Errorf("after it has ended: got %d %q", status, got)
	}
}

// TestServerThatEndsAtOnce says so, and doesn't wait for it.
func TestServerThatEndsAtOnce(t *testing.T) {
	// Its _start is empty.
	const nothing = "\x00asm\x01\x00\x00\x00\x01\x04\x01\x60\x00\x00\x03\x02\x01\x00\x07\x0a\x01\x06_start\x00\x00\x0a\x04\x01\x02\x00\x0b"
	m, err := local.Open(local.Config{Log: zaptest.NewLogger(t).Sugar()})
	if err != nil {
		t.Fatal(err)
	}
	file := write(t, filepath.Join(t.TempDir(), "fn.wasm"), nothing)
	err = m.Run(t.Context(), local.RunConfig{What: file, ABI: "server", Address: "127.0.0.1:0", Tell: func(string) {}})
	if err == nil || !strings.Contains(err.Error(), "has ended before it listened: exit status 0") {
		t.Errorf("got %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

func TestParseDir(t *testing.T) {
	tests := map[string]local.Dir{
		"./data:/data":      {Here: "./data", There: "/data"},
		"/a":                {Here: "/a", There: "/a"},
		"/a:ro":             {Here: "/a", There: "/a", ReadOnly: true},
		"./data:/x/../b:ro": {Here: "./data", There: "/b", ReadOnly: true},
	}
	for text, want := range tests {
		if got, err := local.ParseDir(text); err != nil || got != want {
			t.Errorf("%s: got %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "data", ":/a", "a:b", ":ro"} {
		if got, err := local.ParseDir(text); err == nil {
			t.Errorf("%q: got %+v, want an error", text, got)
		}
	}
}
