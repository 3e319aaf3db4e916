package xds

import (
	"sync"
	"time"

	"github.com/wisp-serving/wisp/xds/translate"
	"k8s.io/apimachinery/pkg/types"
)

// outcome is how far one generation of a KIngress has come.
type outcome struct {
	uid        types.UID
	generation int64
	// domains are where the gateway is reached, by its settings.
	domains domains
	// refusal is why it isn't served as it asks, or nil.
	refusal *translate.Refusal
	// awaits says that an earlier generation is served while a backend of this one
	// has no endpoint.
	awaits bool
	// acked says that every connected Envoy has its routes.
	acked bool
	// since is when it became known.
	since time.Time
	// hash and probes prove that its routes work.
	hash   string
	probes []translate.Probe
}

// board is where the gateway's loop leaves outcomes for whoever writes status.
// It is safe for concurrent use.
type board struct {
	mu       sync.Mutex
	outcomes map[types.NamespacedName]outcome
	envoys   int
	silent   int
}

func newBoard() *board { return &board{outcomes: map[types.NamespacedName]outcome{}} }

// get returns a KIngress's outcome with the numbers of Envoys that answer and
// that don't.
func (b *board) get(key types.NamespacedName) (o outcome, envoys, silent int, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o, ok = b.outcomes[key]
	return o, b.envoys, b.silent, ok
}

func (b *board) set(key types.NamespacedName, o outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.outcomes[key] = o
}

func (b *board) drop(key types.NamespacedName) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.outcomes, key)
}

// settle marks the KIngresses as acknowledged.
func (b *board) settle(keys map[types.NamespacedName]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for key := range keys {
		if o, ok := b.outcomes[key]; ok {
			o.acked = true
			b.outcomes[key] = o
		}
	}
}

// count sets the numbers of Envoys and reports whether that changes what a
// KIngress without an answering Envoy is told, or whether there is one.
func (b *board) count(envoys, silent int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	turned := (b.envoys == 0) != (envoys == 0) || envoys == 0 && (b.silent == 0) != (silent == 0)
	b.envoys, b.silent = envoys, silent
	return turned
}

// alone reports whether no Envoy answered when they were last counted.
func (b *board) alone() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.envoys == 0
}

// keys returns every KIngress that has an outcome.
func (b *board) keys() map[types.NamespacedName]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(map[types.NamespacedName]bool, len(b.outcomes))
	for key := range b.outcomes {
		out[key] = true
	}
	return out
}
