package provider

import (
	"context"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"go.uber.org/zap"
)

// maxAhead bounds the images that wait to be prepared, and those that are known
// to be.
const maxAhead = 1000

// ahead prepares images of revisions that may be called here: one at a time, so
// that what a request or a pod waits for has the rest of the machine. It is safe
// for concurrent use.
type ahead struct {
	runtime Runtime
	log     *zap.SugaredLogger
	wake    chan struct{} // has room for one token

	mu      sync.Mutex
	waiting []string
	known   *simplelru.LRU[string, struct{}] // waiting or done
}

func newAhead(runtime Runtime, log *zap.SugaredLogger) *ahead {
	known, err := simplelru.NewLRU[string, struct{}](2*maxAhead, nil)
	if err != nil {
		panic(err) // it only takes a size above 0
	}
	return &ahead{runtime: runtime, log: log, wake: make(chan struct{}, 1), known: known}
}

// add has the image prepared in its turn, unless that was asked for before. With
// too many waiting it is dropped: it is pulled when it is needed.
func (a *ahead) add(ref string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.known.Contains(ref) || len(a.waiting) >= maxAhead {
		return
	}
	a.known.Add(ref, struct{}{})
	a.waiting = append(a.waiting, ref)
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *ahead) next() (string, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.waiting) == 0 {
		return "", false
	}
	ref := a.waiting[0]
	a.waiting = a.waiting[1:]
	return ref, true
}

// run prepares until ctx ends.
func (a *ahead) run(ctx context.Context) {
	for {
		ref, ok := a.next()
		if !ok {
			select {
			case <-a.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		if err := a.runtime.Prepare(ctx, ref); err != nil {
			a.log.Debugw("an image is not prepared: it is pulled when it is needed", "image", ref, "error", err)
		}
		if ctx.Err() != nil {
			return
		}
	}
}
