package xds

import (
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// changes is what may differ from what was last read.
type changes struct {
	ingresses map[types.NamespacedName]bool
	// services are other than they were, or have other addresses: the Service of
	// that key, its EndpointSlices, or the PodAutoscaler or the pods of the
	// revision of that key.
	services map[types.NamespacedName]bool
	secrets  map[types.NamespacedName]bool
	nodes    bool
}

// inbox collects changes until they are taken, so that many are handled as one
// and no event handler ever waits. It is safe for concurrent use.
type inbox struct {
	// wake receives after something has been put in.
	wake chan struct{}

	mu      sync.Mutex
	changes changes
}

func newInbox() *inbox {
	return &inbox{wake: make(chan struct{}, 1), changes: noChanges()}
}

func noChanges() changes {
	return changes{
		ingresses: map[types.NamespacedName]bool{},
		services:  map[types.NamespacedName]bool{},
		secrets:   map[types.NamespacedName]bool{},
	}
}

// put lets change add to what is collected.
func (i *inbox) put(change func(*changes)) {
	i.mu.Lock()
	change(&i.changes)
	i.mu.Unlock()
	select {
	case i.wake <- struct{}{}:
	default: // whoever wakes takes this too
	}
}

func (i *inbox) take() changes {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := i.changes
	i.changes = noChanges()
	return out
}
