package wasi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/tetratelabs/wazero"
)

func wazeroConfig() wazero.ModuleConfig { return wazero.NewModuleConfig() }

func TestStreams(t *testing.T) {
	var out, errs bytes.Buffer
	guest := start(t, t.Context(), Config{Stdin: strings.NewReader("question"), Stdout: &out, Stderr: &errs})
	for _, want := range []string{"quest", "ion", "", ""} {
		if got, e, _ := guest.read(0, 5); got != want || e != ok {
			t.Errorf("read %q, errno %d, want %q", got, e, want)
		}
	}
	for fd, text := range map[uint64]string{1: "answer", 2: "complaint"} {
		if e, _ := guest.write(fd, text); e != ok {
			t.Errorf("write to %d: errno %d", fd, e)
		}
	}
	if out.String() != "answer" || errs.String() != "complaint" {
		t.Errorf("got %q and %q", &out, &errs)
	}
	for name, e := range map[string]errno{
		"fd_write": first(guest.write(0, "x")),
		"fd_read":  second(guest.read(1, 1)),
	} {
		if e != eBADF {
			t.Errorf("%s of the wrong stream: errno %d", name, e)
		}
	}
	if e, _ := guest.call("fd_seek", 1, 0, 0, 1040); e != eSPIPE {
		t.Errorf("seek: errno %d", e)
	}
}

func first(e errno, _ bool) errno            { return e }
func second(_ string, e errno, _ bool) errno { return e }

// Without streams there is an end to read, and writing goes nowhere.
func TestNoStreams(t *testing.T) {
	guest := start(t, t.Context(), Config{})
	if got, e, _ := guest.read(0, 5); got != "" || e != ok {
		t.Errorf("read %q, errno %d", got, e)
	}
	if e, _ := guest.write(1, "x"); e != ok {
		t.Errorf("write: errno %d", e)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// A stream that fails ends the guest, and the process knows why.
func TestFailingStreamsEndTheGuest(t *testing.T) {
	broken := errors.New("broken")
	guest := start(t, t.Context(), Config{Stdin: iotest.ErrReader(broken), Stdout: failingWriter{broken}})
	if _, _, ended := guest.read(0, 5); !ended {
		t.Error("read goes on")
	}
	if err := processOf(guest.ctx).Failed(); !errors.Is(err, broken) {
		t.Errorf("failed: %v", err)
	}
	guest = start(t, t.Context(), Config{Stdout: failingWriter{broken}})
	if _, ended := guest.write(1, "x"); !ended {
		t.Error("write goes on")
	}
}

// blocked is a stream that waits for its context.
type blocked struct{ ctx context.Context }

func (b blocked) Read([]byte) (int, error)  { <-b.ctx.Done(); return 0, io.ErrClosedPipe }
func (b blocked) Write([]byte) (int, error) { <-b.ctx.Done(); return 0, io.ErrClosedPipe }

// A stream that ended with the context isn't to blame.
func TestStreamsEndWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	guest := start(t, ctx, Config{Stdin: blocked{ctx}, Stdout: blocked{ctx}})
	cancel()
	if _, _, ended := guest.read(0, 1); !ended {
		t.Error("read goes on")
	}
	if _, ended := guest.write(1, "x"); !ended {
		t.Error("write goes on")
	}
	if err := processOf(guest.ctx).Failed(); err != nil {
		t.Errorf("failed: %v", err)
	}
}

// slot counts.
type slot struct{ held, released int }

func (s *slot) Release() { s.held--; s.released++ }
func (s *slot) Acquire() { s.held++ }

// The guest's slot is given up while it waits, and had again after that, also
// where the wait ends the guest.
func TestSlotIsLentBack(t *testing.T) {
	s := &slot{held: 1}
	ctx, cancel := context.WithCancel(t.Context())
	guest := start(t, ctx, Config{Stdin: strings.NewReader("x"), Stdout: io.Discard, Slot: s})
	_, _, _ = guest.read(0, 1)
	_, _ = guest.write(1, "x")
	guest.subscribe(60000, eventClock, clockMonotonic, 5_000_000)
	guest.must(t, "poll_oneoff", 60000, 61000, 1, 1040)
	guest.subscribe(60000, eventClock, clockMonotonic, 1<<60)
	cancel()
	if _, ended := guest.call("poll_oneoff", 60000, 61000, 1, 1040); !ended {
		t.Error("the guest goes on")
	}
	if s.held != 1 || s.released != 4 {
		t.Errorf("held %d, released %d times", s.held, s.released)
	}
}
