package sandbox

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wisp-serving/wisp/runtime/guest"
)

func TestRunOutcomes(t *testing.T) {
	log := &record{}
	exit, trap := new(guest.ExitError), new(guest.TrapError)
	for verbs, check := range map[string]func(error) bool{
		"exit 0": func(err error) bool { return err == nil },
		"exit 3": func(err error) bool { return errors.As(err, &exit) && exit.Status == 3 },
		"trap":   func(err error) bool { return errors.As(err, &trap) },
	} {
		spec := Spec{ABI: guest.ABICommand, Args: strings.Fields(verbs), Stderr: log}
		if verbs == "trap" {
			spec.Module = "trap"
		}
		s := start(t, spec)
		for range 2 { // it may run again
			if err := s.Run(t.Context()); !check(err) {
				t.Errorf("%s: got %v", verbs, err)
			}
		}
	}
}

func TestRunLogsBothStreamsInOrder(t *testing.T) {
	log := &record{}
	s := start(t, Spec{ABI: guest.ABICommand, Args: []string{"out", "one", "err", "two", "out", "three"}, Stdout: log, Stderr: log})
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(log.all(), []string{"one\n", "two\n", "three\n"}); diff != "" {
		t.Errorf("got -, want +:\n%s", diff)
	}
}

// A command waits for its log, and loses nothing.
func TestRunWaitsForASlowLog(t *testing.T) {
	hold := make(chan struct{})
	log := &record{hold: hold}
	s := start(t, Spec{ABI: guest.ABICommand, Args: []string{"flood"}, Stdout: log})
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	for full := false; !full; {
		s.lines.mu.Lock()
		full = s.lines.room != nil
		s.lines.mu.Unlock()
	}
	cancel(gone) // while it waits
	if err := <-ended; !errors.Is(err, gone) {
		t.Errorf("got %v, want the context's cause", err)
	}
	close(hold)
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for _, line := range log.all() {
		if line != "and on\n" {
			t.Fatalf("got %q", line)
		}
	}
}

func TestCloseEndsACommandAtOnce(t *testing.T) {
	for _, verb := range []string{"sleep", "loop"} {
		s := start(t, Spec{ABI: guest.ABICommand, Args: []string{verb}})
		ended := make(chan error, 1)
		go func() { ended <- s.Run(t.Context()) }()
		waitMain(s)
		if err := s.Run(t.Context()); !errors.Is(err, errRunning) {
			t.Errorf("a second Run at once: got %v", err)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, guest.ErrClosed) {
			t.Errorf("%s: got %v, want ErrClosed", verb, err)
		}
		if err := s.Run(t.Context()); !errors.Is(err, guest.ErrClosed) {
			t.Errorf("Run after Close: got %v, want ErrClosed", err)
		}
	}
}

func waitMain(s *Sandbox) {
	for running := false; !running; {
		s.mu.Lock()
		running = s.main != nil
		s.mu.Unlock()
	}
}

func TestRunOfAFunctionWaits(t *testing.T) {
	s := start(t, Spec{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- s.Run(ctx) }()
	if w := call(t.Context(), s, "out", "x"); w.Code != http.StatusOK {
		t.Errorf("got %d", w.Code)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	go func() { ended <- s.Run(t.Context()) }()
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, guest.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}

func TestCommandsTakeNoRequestsAndNoConnections(t *testing.T) {
	s := start(t, Spec{ABI: guest.ABICommand})
	if w := call(t.Context(), s, "out"); w.Code != http.StatusNotFound {
		t.Errorf("got %d", w.Code)
	}
	if _, err := s.Dial(t.Context(), 8080); err == nil || !strings.Contains(err.Error(), "doesn't listen") {
		t.Errorf("got %v", err)
	}
}
