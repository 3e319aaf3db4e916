// Command echo is a guest that serves HTTP/1.1 and HTTP/2 on $PORT as any Go
// program does; the tests of the runtime send it requests.
//
//	/           the request: method, URL, host, headers; then its body, as it comes
//	/hello      hello
//	/status/N   answers with a status, whatever it is
//	/raw        what the body says, on the connection, without HTTP
//	/exit/N     exits
//	/panic      aborts the answer in the middle
//	/hang       begins to answer, and ends when the client has gone
//	/gone       how many clients have gone
//	/span/N     how many of these requests it serves at the moment, after N ms
//	/conns      how many connections there have been, and are
//	/listen/N   listens on another port and echoes what it gets there
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path"
	"sort"
	"strconv"
	"sync/atomic"
	"time"
)

var gone, spans, conns, open atomic.Int64

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("/", echo)
	mux.HandleFunc("/hello", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") })
	mux.HandleFunc("/status/", func(w http.ResponseWriter, r *http.Request) {
		hijack(w, "HTTP/1.1 "+path.Base(r.URL.Path)+" X\r\nContent-Length: 0\r\n\r\n")
	})
	mux.HandleFunc("/raw", func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		hijack(w, string(text))
	})
	mux.HandleFunc("/exit/", func(_ http.ResponseWriter, r *http.Request) {
		status, _ := strconv.Atoi(path.Base(r.URL.Path))
		os.Exit(status)
	})
	mux.HandleFunc("/panic", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "begun")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/hang", func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		gone.Add(1)
	})
	mux.HandleFunc("/gone", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, gone.Load()) })
	mux.HandleFunc("/span/", func(w http.ResponseWriter, r *http.Request) {
		now := spans.Add(1)
		defer spans.Add(-1)
		milliseconds, _ := strconv.Atoi(path.Base(r.URL.Path))
		time.Sleep(time.Duration(milliseconds) * time.Millisecond)
		fmt.Fprintln(w, max(now, spans.Load()))
	})
	mux.HandleFunc("/conns", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, conns.Load(), open.Load()) })
	mux.HandleFunc("/listen/", listen)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt) // as servers do; none ever comes
	server := &http.Server{Addr: ":" + os.Getenv("PORT"), Handler: mux, Protocols: protocols, ConnState: count}
	if err := server.ListenAndServe(); !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

func count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		conns.Add(1)
		open.Add(1)
	case http.StateHijacked, http.StateClosed:
		open.Add(-1)
	}
}

func echo(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 is anyway
	w.Header().Set("Trailer", "X-Read")
	fmt.Fprintf(w, "%s %s %s %s\n", r.Method, r.URL, r.Proto, r.Host)
	names := make([]string, 0, len(r.Header))
	for name := range r.Header {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(w, "%s: %q\n", name, r.Header[name])
	}
	fmt.Fprintln(w)
	w.(http.Flusher).Flush()
	total := 0
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Body.Read(buf)
		total += n
		w.Write(buf[:n])
		w.(http.Flusher).Flush()
		if err != nil {
			break
		}
	}
	w.Header().Set("X-Read", strconv.Itoa(total))
}

func hijack(w http.ResponseWriter, text string) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	_, _ = io.WriteString(conn, text)
	_ = conn.Close()
}

func listen(w http.ResponseWriter, r *http.Request) {
	l, err := net.Listen("tcp", ":"+path.Base(r.URL.Path))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	fmt.Fprintln(w, l.Addr())
}
