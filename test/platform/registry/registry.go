// Package registry is an OCI registry that keeps its images on disk.
//
// It is go-containerregistry's registry, which holds blobs where it is told to
// but manifests in memory only, behind a handler that writes each accepted
// manifest down and offers it again at the next start. It is a registry for one
// machine: no authentication, no garbage collection.
package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log" //nolint:depguard // what go-containerregistry logs to
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/registry"
)

// maxManifest bounds a manifest, as the distribution specification suggests.
const maxManifest = 4 << 20

// Handler serves a registry from a folder. It is safe for concurrent use.
type Handler struct {
	inner     http.Handler
	manifests string
	mu        sync.Mutex // orders what is kept as the inner registry took it
}

// record is one accepted PUT of a manifest.
type record struct {
	Path        string `json:"path"`
	ContentType string `json:"contentType"`
	Body        []byte `json:"body"`
}

// New opens the registry kept in dir. Each request is a line on requests.
func New(dir string, requests io.Writer) (*Handler, error) {
	blobs, manifests := filepath.Join(dir, "blobs"), filepath.Join(dir, "manifests")
	for _, d := range []string{blobs, manifests} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open registry: %w", err)
		}
	}
	h := &Handler{
		inner: registry.New(
			registry.Logger(log.New(requests, "", log.LstdFlags)),
			registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)),
			registry.WithReferrersSupport(true),
		),
		manifests: manifests,
	}
	if err := h.replay(); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	return h, nil
}

// ServeHTTP answers by the OCI distribution specification.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	changes := r.Method == http.MethodPut || r.Method == http.MethodDelete
	if !changes || !isManifest(r.URL.Path) {
		h.inner.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
	if err != nil {
		http.Error(w, fmt.Sprintf("read manifest: %v, at most %d bytes are taken", err, maxManifest), http.StatusRequestEntityTooLarge)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	got := h.try(r.Context(), r.Method, record{r.URL.Path, r.Header.Get("Content-Type"), body})
	if got.code < 300 {
		if err := h.keep(r, body); err != nil {
			http.Error(w, fmt.Sprintf("keep manifest: %v", err), http.StatusInternalServerError)
			return
		}
	}
	for k, v := range got.header {
		w.Header()[k] = v
	}
	w.WriteHeader(got.code)
	_, _ = w.Write(got.body.Bytes())
}

// try asks the inner registry. Its answer is held back until the change is on
// disk.
func (h *Handler) try(ctx context.Context, method string, rec record) *answer {
	got := &answer{code: http.StatusOK, header: http.Header{}}
	r, err := http.NewRequestWithContext(ctx, method, "http://registry"+rec.Path, bytes.NewReader(rec.Body))
	if err != nil {
		http.Error(got, err.Error(), http.StatusBadRequest)
		return got
	}
	r.Header.Set("Content-Type", rec.ContentType)
	h.inner.ServeHTTP(got, r)
	return got
}

// answer is a response that is held back.
type answer struct {
	code   int
	header http.Header
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(code int)        { a.code = code }
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

// keep writes an accepted change down. A manifest pushed by tag is reachable by
// its digest too, and stays so when the tag moves on: Revisions name digests.
func (h *Handler) keep(r *http.Request, body []byte) error {
	path := r.URL.Path
	if r.Method == http.MethodDelete {
		if err := os.Remove(h.file(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	repository := path[:strings.LastIndexByte(path, '/')+1]
	for _, p := range []string{path, fmt.Sprintf("%ssha256:%x", repository, sha256.Sum256(body))} {
		text, err := json.Marshal(record{p, r.Header.Get("Content-Type"), body})
		if err != nil {
			return err
		}
		tmp := h.file(p) + ".tmp"
		if err := os.WriteFile(tmp, text, 0o600); err != nil {
			return err
		}
		if err := os.Rename(tmp, h.file(p)); err != nil {
			return err
		}
	}
	return nil
}

// replay offers the inner registry every kept manifest. It refuses an index
// that comes before its children, so what is refused is offered again as long
// as that helps.
func (h *Handler) replay() error {
	pending, err := h.records()
	if err != nil {
		return err
	}
	for len(pending) > 0 {
		var refused []record
		for _, rec := range pending {
			if h.try(context.Background(), http.MethodPut, rec).code >= 300 {
				refused = append(refused, rec)
			}
		}
		if len(refused) == len(pending) {
			return fmt.Errorf("manifest %s is on disk but the registry refuses it: a blob or child of it is missing; remove %s", refused[0].Path, h.file(refused[0].Path))
		}
		pending = refused
	}
	return nil
}

func (h *Handler) records() ([]record, error) {
	files, err := filepath.Glob(filepath.Join(h.manifests, "*.json"))
	if err != nil {
		return nil, err
	}
	var records []record
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var rec record
		if err := json.Unmarshal(text, &rec); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		records = append(records, rec)
	}
	return records, nil
}

// file names the record of a manifest. Paths hold slashes and what not, so it
// is a hash.
func (h *Handler) file(path string) string {
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(h.manifests, hex.EncodeToString(sum[:16])+".json")
}

// isManifest recognises /v2/<name>/manifests/<reference>.
func isManifest(path string) bool {
	parts := strings.Split(path, "/")
	return len(parts) >= 5 && parts[1] == "v2" && parts[len(parts)-2] == "manifests"
}
