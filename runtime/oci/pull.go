package oci

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/wisp-serving/wisp/runtime/api"
)

// Pull returns the image that ref names, a tag or a digest, with its module in
// the store. A tag is looked up in its registry each time; what the store holds
// under the digest isn't fetched again. Concurrent pulls of one digest from one
// repository are one download, which ends early only when nobody waits for it.
//
// An error is api.ErrUnusable where the name or the image is at fault,
// api.ErrImagePull where the registry or the way to it is, or ctx's.
func (s *Store) Pull(ctx context.Context, ref string) (Image, error) {
	img, err := s.pull(ctx, ref)
	if err == nil {
		return img, nil
	}
	err = fmt.Errorf("pull %s: %w", ref, err)
	switch broken := new(contentError); {
	case errors.Is(err, api.ErrUnusable):
		return Image{}, err
	case errors.As(err, &broken):
		return Image{}, api.Unusable(err)
	case ctx.Err() != nil:
		return Image{}, err
	default:
		return Image{}, api.ImagePull(err)
	}
}

func (s *Store) pull(ctx context.Context, ref string) (Image, error) {
	parsed, err := parseReference(ref, s.insecure)
	if err != nil {
		return Image{}, err
	}
	digest, err := s.resolve(ctx, parsed)
	if err != nil {
		return Image{}, err
	}
	pinned := parsed.Context().Digest(digest.String())
	img, ok := s.lookup(digest)
	if !ok {
		if img, err = s.join(ctx, pinned); err != nil {
			return Image{}, err
		}
	}
	img.Reference = pinned.String()
	return img, nil
}

// pull is a download that callers wait for.
type pull struct {
	waiting int // callers; under Store.mu
	cancel  context.CancelFunc
	done    chan struct{} // closed once img and err are set
	img     Image
	err     error
}

var errClosed = errors.New("the store is closed")

// join waits for the pull of ref, which it starts if there is none.
func (s *Store) join(ctx context.Context, ref name.Digest) (Image, error) {
	key := ref.String()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return Image{}, errClosed
	}
	p := s.pulls[key]
	if p == nil {
		p = s.start(ctx, ref)
	}
	p.waiting++
	s.mu.Unlock()

	select {
	case <-p.done:
		return p.img, p.err
	case <-ctx.Done():
		s.leave(key, p)
		return Image{}, ctx.Err()
	}
}

// start begins a pull. It outlives the ctx of the caller who happened to be
// first. s.mu is held.
func (s *Store) start(ctx context.Context, ref name.Digest) *pull {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &pull{cancel: cancel, done: make(chan struct{})}
	s.pulls[ref.String()] = p
	s.joined.Go(func() {
		defer cancel()
		p.img, p.err = s.fetch(ctx, ref)
		if p.err == nil {
			p.err = s.remember(p.img)
		}
		s.mu.Lock()
		s.forget(ref.String(), p)
		s.mu.Unlock()
		close(p.done)
	})
	return p
}

// leave takes one caller off p and ends p after the last one.
func (s *Store) leave(key string, p *pull) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.waiting--
	if p.waiting == 0 {
		s.forget(key, p) // nobody joins a pull that is being ended
		p.cancel()
	}
}

// forget takes p off the pulls that can be joined. s.mu is held.
func (s *Store) forget(key string, p *pull) {
	if s.pulls[key] == p {
		delete(s.pulls, key)
	}
}
