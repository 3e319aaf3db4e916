package watchdog_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	goruntime "runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/wisp-serving/wisp/runtime/internal/wasmtest"
	"github.com/wisp-serving/wisp/runtime/watchdog"
)

// TestMain is also the process that is watched: what a watchdog does can't be
// seen from inside.
func TestMain(m *testing.M) {
	switch os.Getenv("WATCHED") {
	case "":
		os.Exit(m.Run())
	case "stuck":
		watched(stuck)
	case "stuck and deaf":
		signal.Ignore(syscall.SIGQUIT) // as if the Go runtime couldn't print
		watched(stuck)
	case "alive":
		watched(alive)
	}
}

const timeout = 500 * time.Millisecond

func watched(run func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- watchdog.Run(ctx, timeout) }()
	run()
	cancel()
	if err := <-ended; err != nil {
		panic(err)
	}
	time.Sleep(2 * timeout) // nothing watches any more, so nothing kills
}

// stuck runs a guest that nothing has metered, and lets the collector wait for
// it.
func stuck() {
	ctx := context.Background()
	r := wazero.NewRuntime(ctx)
	go func() { _, _ = r.Instantiate(ctx, wasmtest.Command(wasmtest.Loop)) }()
	for {
		goruntime.GC()
	}
}

// alive is busy on all cores, and collects, for longer than the timeout.
func alive() {
	for end := time.Now().Add(3 * timeout); time.Now().Before(end); {
		goruntime.GC()
	}
}

func run(t *testing.T, mode string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "WATCHED="+mode)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestStuckProcessEnds(t *testing.T) {
	out, err := run(t, "stuck")
	exit := new(exec.ExitError)
	if !errors.As(err, &exit) {
		t.Fatalf("got %v, %s", err, out)
	}
	if !strings.Contains(out, "SIGQUIT") || !strings.Contains(out, "goroutine ") {
		t.Errorf("it doesn't say where it was stuck: %v, %s", err, out)
	}
}

func TestStuckProcessThatCannotPrintIsKilled(t *testing.T) {
	_, err := run(t, "stuck and deaf")
	exit := new(exec.ExitError)
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("got %v, want it to be killed", err)
	}
}

func TestLivingProcessLivesOn(t *testing.T) {
	if out, err := run(t, "alive"); err != nil {
		t.Errorf("got %v, %s", err, out)
	}
}
