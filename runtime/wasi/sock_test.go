package wasi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// listening starts a guest that listens on the returned Listener, descriptor 3.
func listening(t testing.TB, ctx context.Context) (proxy, *Listener) {
	t.Helper()
	l := NewListener(8080)
	guest := start(t, ctx, Config{Listeners: []*Listener{l}})
	return guest, l
}

// connected returns a connection; the guest's side is the descriptor 4.
func connected(t testing.TB) (proxy, net.Conn) {
	t.Helper()
	guest, l := listening(t, t.Context())
	guest.must(t, "fd_fdstat_set_flags", 3, fdflagNonblock)
	host, err := l.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	guest.must(t, "sock_accept", 3, fdflagNonblock, 1040)
	if fd := guest.number(1040); fd != 4 {
		t.Fatalf("accepted %d", fd)
	}
	return guest, host
}

func TestDialIsRefusedUntilTheGuestListens(t *testing.T) {
	guest, l := listening(t, t.Context())
	if _, err := l.Dial(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v", err)
	}
	guest.must(t, "fd_fdstat_set_flags", 3, fdflagNonblock)
	<-l.Listening()
	for range backlog {
		if _, err := l.Dial(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Dial(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("beyond the backlog: got %v", err)
	}
	guest.must(t, "fd_close", 3)
	<-l.Closed()
	if _, err := l.Dial(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after its close: got %v", err)
	}
}

func TestConnection(t *testing.T) {
	guest, host := connected(t)
	if _, e, _ := guest.read(4, 10); e != eAGAIN {
		t.Errorf("nothing there: errno %d", e)
	}
	if _, err := host.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	at, n := guest.vector(4096, 3)
	guest.must(t, "sock_recv", 4, at, n, recvPeek, 1040, 1048)
	if text := guest.text(4096, guest.number(1040)); text != "hel" {
		t.Errorf("peeked %q", text)
	}
	if text, e, _ := guest.read(4, 100); text != "hello" || e != ok {
		t.Errorf("got %q, errno %d", text, e)
	}
	if e, _ := guest.write(4, "world"); e != ok {
		t.Errorf("write: errno %d", e)
	}
	buf := make([]byte, 10)
	if n, err := host.Read(buf); string(buf[:n]) != "world" || err != nil {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	// The guest says that it sends no more; the host may.
	guest.must(t, "sock_shutdown", 4, 2)
	if _, err := host.Read(buf); !errors.Is(err, io.EOF) {
		t.Errorf("after shutdown: %v", err)
	}
	if e, _ := guest.write(4, "x"); e != ePIPE {
		t.Errorf("write after shutdown: errno %d", e)
	}
	if _, err := host.Write([]byte("late")); err != nil {
		t.Error(err)
	}
	if err := host.Close(); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"late", ""} { // what was sent, then the end
		if text, e, _ := guest.read(4, 100); text != want || e != ok {
			t.Errorf("got %q, errno %d, want %q", text, e, want)
		}
	}
	if _, err := host.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	if _, err := host.Read(buf); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if err := host.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
}

func TestGuestClosesItsConnection(t *testing.T) {
	guest, host := connected(t)
	if e, _ := guest.write(4, "bye"); e != ok {
		t.Fatal(e)
	}
	guest.must(t, "fd_close", 4)
	text, err := io.ReadAll(host)
	if string(text) != "bye" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
	if _, err := host.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("got %v, want EPIPE", err)
	}
}

// A side that doesn't read stops the other, at the size of the buffer.
func TestBackPressure(t *testing.T) {
	guest, host := connected(t)
	if err := host.SetWriteDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	n, err := host.Write(make([]byte, 10*maxBuffered))
	if n != maxBuffered || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the host wrote %d, %v", n, err)
	}
	at, vectors := guest.vector(4096, 50000)
	sent := uint32(0)
	for {
		e, _ := guest.call("fd_write", 4, at, vectors, 1040)
		if e == eAGAIN {
			break
		}
		sent += guest.number(1040)
	}
	if sent != maxBuffered {
		t.Errorf("the guest wrote %d", sent)
	}
}

// Bytes come in order, whatever the sizes in which they are written and read.
func TestStream(t *testing.T) {
	guest, host := connected(t)
	want := make([]byte, 1<<20)
	for i := range want {
		want[i] = byte(i * 31 >> 3)
	}
	var writing sync.WaitGroup
	defer writing.Wait()
	writing.Go(func() {
		for rest, n := want, 1; len(rest) > 0; n = n*3%70001 + 1 {
			n = min(n, len(rest))
			if _, err := host.Write(rest[:n]); err != nil {
				t.Error(err)
			}
			rest = rest[n:]
		}
		_ = host.Close()
	})
	guest.must(t, "fd_fdstat_set_flags", 4, 0) // waiting
	var got bytes.Buffer
	for size := uint32(1); ; size = size*7%60000 + 1 {
		text, e, _ := guest.read(4, size)
		if e != ok || text == "" {
			break
		}
		got.WriteString(text)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("got %d bytes, want %d in order", got.Len(), len(want))
	}
}

// What waits ends with the guest's context, on each function that can wait.
func TestWaitingEndsWithTheContext(t *testing.T) {
	waits := map[string]func(proxy) (errno, bool){
		"accept": func(p proxy) (errno, bool) { return p.call("sock_accept", 3, 0, 1040) },
		"read":   func(p proxy) (errno, bool) { _, e, ended := p.read(4, 10); return e, ended },
		"recv": func(p proxy) (errno, bool) {
			at, n := p.vector(4096, 10)
			return p.call("sock_recv", 4, at, n, recvWaitAll, 1040, 1048)
		},
		"write": func(p proxy) (errno, bool) {
			at, n := p.vector(4096, 2*50000)
			return p.call("fd_write", 4, at, n, 1040)
		},
		"poll": func(p proxy) (errno, bool) {
			p.subscribe(60000, eventRead, 4, 0)
			return p.call("poll_oneoff", 60000, 61000, 1, 1040)
		},
		"sleep": func(p proxy) (errno, bool) {
			p.subscribe(60000, eventClock, clockMonotonic, uint64(time.Hour))
			return p.call("poll_oneoff", 60000, 61000, 1, 1040)
		},
	}
	for name, wait := range waits {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			guest, l := listening(t, ctx)
			guest.must(t, "fd_fdstat_set_flags", 3, 0)
			if _, err := l.Dial(ctx); err != nil {
				t.Fatal(err)
			}
			guest.must(t, "sock_accept", 3, 0, 1040)
			time.AfterFunc(10*time.Millisecond, cancel)
			if e, ended := wait(guest); !ended {
				t.Errorf("errno %d, and the guest goes on", e)
			}
		})
	}
}

// subscribe writes a subscription whose user data is its address.
func (p proxy) subscribe(at uint32, kind byte, what uint32, timeout uint64) {
	p.Memory().Write(at, make([]byte, subscriptionLen))
	p.Memory().WriteUint64Le(at, uint64(at))
	p.Memory().WriteByte(at+8, kind)
	p.Memory().WriteUint32Le(at+16, what)
	p.Memory().WriteUint64Le(at+24, timeout)
}

// events returns the user data, errno and kind of what a poll has written.
func (p proxy) events(at uint32) []string {
	list := []string{}
	for range p.number(1040) {
		data, _ := p.Memory().ReadUint64Le(at)
		e, _ := p.Memory().ReadUint16Le(at + 8)
		kind, _ := p.Memory().ReadByte(at + 10)
		list = append(list, fmt.Sprintf("%d: kind %d errno %d", data, kind, e))
		at += eventLen
	}
	return list
}

func TestPoll(t *testing.T) {
	guest, host := connected(t)
	subscribe := func() {
		guest.subscribe(60000, eventRead, 4, 0)
		guest.subscribe(60048, eventClock, clockMonotonic, uint64(5*time.Millisecond))
		guest.subscribe(60096, eventRead, 3, 0)
	}
	poll := func(n uint64) []string {
		guest.must(t, "poll_oneoff", 60000, 61000, n, 1040)
		return guest.events(61000)
	}
	subscribe()
	if got := poll(3); len(got) != 1 || got[0] != "60048: kind 0 errno 0" {
		t.Errorf("nothing but time: %q", got)
	}
	if _, err := host.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if got := poll(3); len(got) != 1 || got[0] != "60000: kind 1 errno 0" {
		t.Errorf("readable: %q", got)
	}
	guest.subscribe(60048, eventWrite, 4, 0)
	guest.subscribe(60096, eventRead, 77, 0)
	if got := poll(3); len(got) != 3 || got[1] != "60048: kind 2 errno 0" || got[2] != "60096: kind 1 errno 8" {
		t.Errorf("writable, and none: %q", got)
	}
	guest.subscribe(60000, eventClock, 9, 0)
	guest.Memory().WriteUint16Le(60000+40, 1)
	if got := poll(1); len(got) != 1 || got[0] != "60000: kind 0 errno 28" {
		t.Errorf("no such clock: %q", got)
	}
	guest.subscribe(60000, 7, 0, 0)
	if e, _ := guest.call("poll_oneoff", 60000, 61000, 1, 1040); e != eINVAL {
		t.Errorf("no such kind: errno %d", e)
	}
}

// A guest that waits is woken by each thing that it may wait for, not by time.
func TestPollIsWoken(t *testing.T) {
	guest, host := connected(t)
	wake := map[string]struct {
		kind byte
		fd   uint32
		do   func()
	}{
		"bytes":      {eventRead, 4, func() { _, _ = host.Write([]byte("x")) }},
		"connection": {eventRead, 3, func() {}},
	}
	for name, tc := range wake {
		guest.subscribe(60000, tc.kind, tc.fd, 0)
		if name == "connection" {
			p := processOf(guest.ctx)
			tc.do = func() { _, _ = p.fds[3].listener.Dial(t.Context()) }
		}
		time.AfterFunc(5*time.Millisecond, tc.do)
		guest.must(t, "poll_oneoff", 60000, 61000, 1, 1040)
		if got := guest.events(61000); len(got) != 1 {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// Deadlines of the host's side, as net/http uses them.
func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := (*Conn)(newConn(1, make(chan struct{}, 1)))
		if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write: %v", err)
		}
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		read := make(chan error)
		go func() { _, err := c.Read(make([]byte, 1)); read <- err }()
		synctest.Wait()
		if err := c.SetReadDeadline(time.Unix(0, 1)); err != nil { // the past ends one that waits
			t.Fatal(err)
		}
		if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		_ = c.SetReadDeadline(time.Time{})
		go func() { _, err := c.Read(make([]byte, 1)); read <- err }()
		synctest.Wait()
		_ = c.Close()
		if err := <-read; !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v", err)
		}
	})
}

// Connections that come and go leave nothing: no descriptor, no buffer, no
// goroutine.
func TestManyConnections(t *testing.T) {
	guest, l := listening(t, t.Context())
	guest.must(t, "fd_fdstat_set_flags", 3, fdflagNonblock)
	number := 100_000
	if testing.Short() {
		number = 1000
	}
	for i := range number {
		host, err := l.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		guest.must(t, "sock_accept", 3, fdflagNonblock, 1040)
		if fd := guest.number(1040); fd != 4 {
			t.Fatalf("connection %d has the descriptor %d", i, fd)
		}
		_, _ = host.Write([]byte("x"))
		_, _ = guest.write(4, "y")
		_ = host.Close()
		guest.must(t, "fd_close", 4)
	}
	p := processOf(guest.ctx)
	if len(p.fds) != 5 || p.open != 4 || len(l.waiting) != 0 {
		t.Errorf("%d descriptors, %d open, %d waiting", len(p.fds), p.open, len(l.waiting))
	}
}

func TestOpenFilesAreBounded(t *testing.T) {
	guest := start(t, t.Context(), Config{Mounts: []Mount{{Path: "/", FS: EmptyFS()}}})
	at, size := guest.put(512, ".")
	for range maxOpen - 4 {
		guest.must(t, "path_open", 3, 0, at, size, openDirectory, rightFdRead, 0, 0, 1040)
	}
	if e, _ := guest.call("path_open", 3, 0, at, size, openDirectory, rightFdRead, 0, 0, 1040); e != eMFILE {
		t.Errorf("errno %d", e)
	}
	guest.must(t, "fd_close", 17)
	guest.must(t, "path_open", 3, 0, at, size, openDirectory, rightFdRead, 0, 0, 1040)
	if fd := guest.number(1040); fd != 17 {
		t.Errorf("got the descriptor %d, want the lowest that is free", fd)
	}
}
