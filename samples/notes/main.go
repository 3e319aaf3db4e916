// Command notes is an ordinary HTTP server: it listens on $PORT and keeps what it
// is told in memory, for as long as its one instance lives.
package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
)

// notes are lines that clients have posted.
type notes struct {
	mu    sync.Mutex
	lines []string
}

func main() {
	n := &notes{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /notes", n.add)
	mux.HandleFunc("GET /notes", n.list)
	if err := http.ListenAndServe(":"+cmp.Or(os.Getenv("PORT"), "8080"), mux); err != nil {
		fmt.Fprintln(os.Stderr, "notes:", err)
		os.Exit(1)
	}
}

func (n *notes) add(w http.ResponseWriter, r *http.Request) {
	line, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<10))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines = append(n.lines, string(line))
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, "note %d\n", len(n.lines))
}

func (n *notes) list(w http.ResponseWriter, _ *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, line := range n.lines {
		fmt.Fprintf(w, "%d %s\n", i+1, line)
	}
}
