// Command greet is a CGI program, as Go's net/http/cgi has served them for years.
// Each request gets an instance of its own.
package main

import (
	"fmt"
	"net/http"
	"net/http/cgi"
	"os"
)

func main() {
	if err := cgi.Serve(http.HandlerFunc(greet)); err != nil {
		fmt.Fprintln(os.Stderr, "greet:", err)
		os.Exit(1)
	}
}

func greet(w http.ResponseWriter, r *http.Request) {
	name := r.FormValue("name")
	if name == "" {
		http.Error(w, "who is it? ask with ?name=", http.StatusBadRequest)
		return
	}
	fmt.Fprintf(w, "Hello %s, you asked %s by %s\n", name, r.Host, r.Method)
}
