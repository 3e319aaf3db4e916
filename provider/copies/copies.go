// Package copies keeps current copies of the ConfigMaps and Secrets that
// functions start with, so that one may start before its Pod exists.
//
// A kubelet may read such an object only while a Pod on its node refers to it.
// Copies are read by another identity, in those namespaces only where it was
// allowed to; where it was not, nothing is asked of the API server but whether
// that has changed, once a minute.
//
// A copy is there while a watch of its object is established, and gone the moment
// that ends: nobody starts with what may be outdated. There is one goroutine for
// each object, joined by Run.
//
// See RATIONALE.md "Why are ConfigMaps and Secrets watched one by one?"
package copies

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"

	"github.com/wisp-serving/wisp/provider/podspec"
)

// The bounds of what is held: objects, and their bytes in all. What is beyond
// them waits for its Pod.
const (
	maxObjects = 5000
	maxBytes   = 128 << 20
)

// Config is what New needs; all fields are required.
type Config struct {
	// Client reads the objects. Their watches count against its limits.
	Client kubernetes.Interface
	Log    *zap.SugaredLogger
}

// Copies is the set of copies. It implements podspec.Source, and is safe for
// concurrent use.
type Copies struct {
	client   kubernetes.Interface
	log      *zap.SugaredLogger
	verdicts verdicts

	mu      sync.Mutex
	running context.Context // nil before Run
	ended   bool
	lives   sync.WaitGroup
	holders map[string][]object
	kept    map[object]*kept
	bytes   int
}

var _ podspec.Source = (*Copies)(nil)

// object names a ConfigMap or a Secret.
type object struct {
	scope
	name string
}

func (o object) String() string { return fmt.Sprintf("%s %s/%s", o.kind, o.namespace, o.name) }

// kept is an object that somebody holds.
type kept struct {
	object
	holders int
	end     context.CancelFunc // nil until it is watched
	// current is whether a watch is established. Then exactly what is there is in
	// configMap or secret, which nobody changes.
	current   bool
	configMap *corev1.ConfigMap
	secret    *corev1.Secret
	bytes     int
}

// New returns copies of nothing. It starts nothing.
func New(cfg Config) (*Copies, error) {
	if cfg.Client == nil || cfg.Log == nil {
		return nil, errors.New("copies: Client and Log must be set")
	}
	return &Copies{
		client:   cfg.Client,
		log:      cfg.Log,
		verdicts: verdicts{client: cfg.Client, all: make(map[scope]*verdict)},
		holders:  make(map[string][]object),
		kept:     make(map[object]*kept),
	}, nil
}

// Run watches what is held until ctx ends.
func (c *Copies) Run(ctx context.Context) error {
	c.mu.Lock()
	c.running = ctx
	for _, it := range c.kept {
		c.begin(it)
	}
	c.mu.Unlock()
	<-ctx.Done()
	c.mu.Lock()
	c.ended = true // what was begun before is waited for, and nothing is begun after
	c.mu.Unlock()
	c.lives.Wait()
	return nil
}

// Hold has the objects of a namespace kept that refs name, in place of those
// that holder has held before; none of them when refs is empty. It doesn't
// block.
func (c *Copies) Hold(holder, namespace string, refs []podspec.Reference) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.holders[holder]
	delete(c.holders, holder)
	for _, ref := range refs { // before the others go: what is in both is watched on
		if o := (object{scope{ref.Kind, namespace}, ref.Name}); c.take(o) {
			c.holders[holder] = append(c.holders[holder], o)
		}
	}
	for _, o := range before {
		c.give(o)
	}
}

// take counts a holder of o, unless there are too many objects; mu is held.
func (c *Copies) take(o object) bool {
	it := c.kept[o]
	if it == nil {
		if len(c.kept) >= maxObjects {
			return false
		}
		it = &kept{object: o}
		c.kept[o] = it
		c.begin(it)
	}
	it.holders++
	return true
}

// give takes a holder of o away; mu is held.
func (c *Copies) give(o object) {
	it := c.kept[o]
	if it.holders--; it.holders > 0 {
		return
	}
	delete(c.kept, o)
	c.put(it, nil)
	if it.end != nil {
		it.end()
	}
}

// begin watches it, unless Run does so later, or is over; mu is held.
func (c *Copies) begin(it *kept) {
	if c.running == nil || c.ended {
		return
	}
	ctx, end := context.WithCancel(c.running)
	it.end = end
	c.lives.Go(func() {
		defer end()
		c.keep(ctx, it)
	})
}

// put makes obj it's copy, nil for none; mu is held.
func (c *Copies) put(it *kept, obj any) {
	it.configMap, it.secret = nil, nil
	size := 0
	switch obj := obj.(type) {
	case *corev1.ConfigMap:
		it.configMap, size = obj, obj.Size()
	case *corev1.Secret:
		it.secret, size = obj, obj.Size()
	}
	c.bytes += size - it.bytes
	it.bytes = size
}

// set is put by the goroutine that watches it. It fails if that is too much.
func (c *Copies) set(it *kept, obj any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept[it.object] != it {
		return context.Canceled // nobody holds it any more
	}
	c.put(it, obj)
	it.current = c.bytes <= maxBytes
	if !it.current {
		c.put(it, nil)
		return fmt.Errorf("copies hold more than %d bytes", maxBytes)
	}
	return nil
}

// lose forgets a copy whose watch has ended.
func (c *Copies) lose(it *kept) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it.current = false
	c.put(it, nil)
}

// ConfigMap implements podspec.Source. It doesn't block, and fails where there is
// no current copy.
func (c *Copies) ConfigMap(_ context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it, err := c.current(object{scope{podspec.ConfigMap, namespace}, name})
	if err == nil && it.configMap == nil {
		err = apierrors.NewNotFound(corev1.Resource("configmaps"), name)
	}
	if err != nil {
		return nil, err
	}
	return it.configMap, nil
}

// Secret implements podspec.Source. It doesn't block, and fails where there is no
// current copy.
func (c *Copies) Secret(_ context.Context, namespace, name string) (*corev1.Secret, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it, err := c.current(object{scope{podspec.Secret, namespace}, name})
	if err == nil && it.secret == nil {
		err = apierrors.NewNotFound(corev1.Resource("secrets"), name)
	}
	if err != nil {
		return nil, err
	}
	return it.secret, nil
}

// current returns what is kept of o if that is current; mu is held.
func (c *Copies) current(o object) (*kept, error) {
	it := c.kept[o]
	if it == nil || !it.current {
		return nil, fmt.Errorf("there is no current copy of %s: the node's second identity may not watch it, or the watch is interrupted", o)
	}
	return it, nil
}
