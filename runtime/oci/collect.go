package oci

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"time"
)

// keptFor is how long an image stays after it was last asked for, whatever the
// budget: whoever has just pulled it is about to use it.
const keptFor = time.Minute

// held is what the store knows of an image without reading it again.
type held struct {
	image    Image
	lastUsed time.Time
	users    int
}

// diskSize is what an image takes on disk: its files, unpacked, and its modules
// once more. Compressed layers say too little, but the bound on them holds.
func (h *held) diskSize() int64 { return max(h.image.Size, h.image.ModuleSize) + h.image.ModuleSize }

// surplus returns the images to remove so that the rest fits the budget: the
// longest unused first, none that is in use or was asked for a moment ago.
func surplus(images map[string]*held, budget int64, now time.Time) []string {
	var total int64
	var idle []string
	for digest, h := range images {
		total += h.diskSize()
		if h.users == 0 && now.Sub(h.lastUsed) >= keptFor {
			idle = append(idle, digest)
		}
	}
	slices.SortFunc(idle, func(a, b string) int { return images[a].lastUsed.Compare(images[b].lastUsed) })
	for i, digest := range idle {
		if total <= budget {
			return idle[:i]
		}
		total -= images[digest].diskSize()
	}
	return idle
}

// Use keeps the files of the image with the given digest in the store until
// release is called, once. It does nothing for an image that isn't there.
func (s *Store) Use(digest string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.images[digest]
	if h == nil {
		return func() {}
	}
	h.users++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		h.users--
		h.lastUsed = time.Now()
	}
}

// touch notes that the image was asked for, also for the next process.
func (s *Store) touch(digest string) {
	now := time.Now()
	s.mu.Lock()
	h := s.images[digest]
	stale := h != nil && now.Sub(h.lastUsed) > keptFor/2
	if h != nil {
		h.lastUsed = now
	}
	s.mu.Unlock()
	if stale {
		_ = os.Chtimes(s.imagePath(digest), now, now) // an older time is no harm
	}
}

// collect removes what is beyond the budget. What can't be removed stays known
// and is tried again by the next pull. s.mu is held: nobody starts to use what
// is going.
func (s *Store) collect(now time.Time) {
	for _, digest := range surplus(s.images, s.budget, now) {
		// What says that the image is there goes first.
		if err := os.Remove(s.imagePath(digest)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		gone := s.images[digest].image
		delete(s.images, digest)
		_ = os.RemoveAll(s.rootPath(digest))
		for _, m := range gone.modules() {
			if !s.hasModule(m.ModuleDigest) {
				_ = os.Remove(s.modulePath(m.ModuleDigest))
			}
		}
	}
}

// modules returns the image's own module and the others that were asked for.
func (i Image) modules() []Module {
	all := []Module{i.Module}
	for _, m := range i.Others {
		all = append(all, m)
	}
	return all
}

// hasModule reports whether an image refers to the module. s.mu is held.
func (s *Store) hasModule(digest string) bool {
	for _, h := range s.images {
		for _, m := range h.image.modules() {
			if m.ModuleDigest == digest {
				return true
			}
		}
	}
	return false
}
