// Package guest calls guests: it knows how an instance of a WASI command is run
// (Command) and how an HTTP request becomes such a call and its output an answer
// (the ABIs, by NewHandler).
//
// It knows no images, no cache and no pods: the caller lends it a compiled
// Module for each call and bounds calls by their context. A guest runs on the
// goroutine that called it; the package starts none.
package guest
