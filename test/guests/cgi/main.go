// Command cgi is a CGI program as Go's standard library makes them; the tests of
// the runtime send it requests.
//
//	/           the request: method, URL, host, a header; its body; how often this
//	            instance was asked
//	/env/NAME   a variable
//	/status/N   answers with a status
//	/deaf       answers without reading the body
//	/silent     exits without an answer
//	/exit/N     exits with a status, after some output
//	/panic      panics in the middle of its body
//	/sleep      never ends
//	/listen     reads the body, for ever
package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"path"
	"strconv"
	"time"
)

var asked int

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		asked++
		fmt.Fprintf(w, "%s %s %s %q %d\n", r.Method, r.URL.RequestURI(), r.Host, r.Header.Get("X-Custom"), asked)
		_, _ = io.Copy(w, r.Body)
	})
	mux.HandleFunc("/env/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, os.Getenv(path.Base(r.URL.Path))) })
	mux.HandleFunc("/status/", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(number(r)) })
	mux.HandleFunc("/deaf", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "what?\n") })
	mux.HandleFunc("/silent", func(http.ResponseWriter, *http.Request) { os.Exit(0) })
	mux.HandleFunc("/exit/", func(_ http.ResponseWriter, r *http.Request) {
		fmt.Println("some output")
		os.Exit(number(r))
	})
	mux.HandleFunc("/panic", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "begun")
		w.(http.Flusher).Flush()
		panic("as told")
	})
	mux.HandleFunc("/sleep", func(http.ResponseWriter, *http.Request) { time.Sleep(time.Hour) })
	mux.HandleFunc("/listen", func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	if err := cgi.Serve(mux); err != nil {
		fmt.Fprintln(os.Stderr, "cgi:", err)
		os.Exit(1)
	}
}

func number(r *http.Request) int {
	n, _ := strconv.Atoi(path.Base(r.URL.Path))
	return n
}
