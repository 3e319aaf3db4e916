package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/wisp-serving/wisp/runtime/api"
)

// Policy says when a registry is asked, in Kubernetes' words (PullPolicy in
// k8s.io/api/core/v1).
type Policy string

const (
	// PullAlways asks the registry each time, with this pull's credentials, what
	// the reference names; content that the store has isn't fetched again.
	PullAlways Policy = "Always"
	// PullIfNotPresent asks it only for what the store lacks. What it has is
	// anyone's, whoever brought it: a cluster that shares nodes between tenants
	// with private images uses Always, as with any kubelet.
	PullIfNotPresent Policy = "IfNotPresent"
	// PullNever asks nobody.
	PullNever Policy = "Never"
)

// Request says which image is wanted.
type Request struct {
	// Reference is the image's, a tag or a digest.
	Reference string
	// Policy is PullIfNotPresent for a digest and PullAlways for a tag if empty.
	Policy Policy
	// Secrets are contents of .dockerconfigjson or .dockercfg.
	Secrets [][]byte
	// Own makes the pull use the credentials of this process's user instead, as
	// Push does. It is for a user's tools; a pod's pull is never its node's.
	Own bool
	// Command, unless empty, names the module instead of ENTRYPOINT, as the
	// first word of a container's command does. The image's own arguments don't
	// count then.
	Command string
}

// Pull returns the image that r names, with its module and files in the store.
// Concurrent pulls of one digest from one repository are one download, which
// ends early only when nobody waits for it. The image stays in the store for at
// least a minute; see Use.
//
// An error is api.ErrUnusable where the name (api.ErrImageName too) or the image
// is at fault, api.ErrImagePull where the registry or the way to it is
// (api.ErrImageNeverPull too if it may not be asked), or ctx's.
func (s *Store) Pull(ctx context.Context, r Request) (Image, error) {
	img, err := s.pull(ctx, r)
	if err == nil {
		return img, nil
	}
	err = fmt.Errorf("pull %s: %w", r.Reference, err)
	switch broken := new(contentError); {
	case errors.Is(err, api.ErrUnusable), errors.Is(err, api.ErrImagePull):
		return Image{}, err
	case errors.As(err, &broken):
		return Image{}, api.Unusable(err)
	case ctx.Err() != nil:
		return Image{}, err
	default:
		return Image{}, api.ImagePull(err)
	}
}

func (s *Store) pull(ctx context.Context, r Request) (Image, error) {
	parsed, err := parseReference(r.Reference, s.insecure)
	if err != nil {
		return Image{}, err
	}
	img, cached := s.present(parsed, r.Policy)
	if !cached {
		if r.Policy == PullNever {
			return Image{}, api.ImagePull(fmt.Errorf("%w: it isn't in the store and imagePullPolicy is Never", api.ErrImageNeverPull))
		}
		keys, err := r.keychain()
		if err != nil {
			return Image{}, err
		}
		if img, cached, err = s.ask(ctx, parsed, keys); err != nil {
			return Image{}, err
		}
	}
	s.touch(img.Digest)
	img.Reference, img.Cached = parsed.Context().Digest(img.Digest).String(), cached
	return s.choose(img, r.Command)
}

func (r Request) keychain() (authn.Keychain, error) {
	if r.Own {
		return authn.DefaultKeychain, nil
	}
	return keychain(r.Secrets)
}

// Import puts an image that is in no registry into the store, as a pull of it
// would: it goes through the same checks. Its Reference is its digest. What is
// wrong with it is api.ErrUnusable.
func (s *Store) Import(image v1.Image) (Image, error) {
	img, err := s.bring(image)
	broken := new(contentError)
	switch {
	case errors.As(err, &broken):
		return Image{}, api.Unusable(fmt.Errorf("import image: %w", err))
	case err != nil:
		return Image{}, fmt.Errorf("import image: %w", err)
	}
	return img, nil
}

func (s *Store) bring(image v1.Image) (Image, error) {
	digest, err := image.Digest()
	if err != nil {
		return Image{}, err
	}
	img, known := s.lookup(digest.String())
	if !known {
		if img, err = s.take(digest.String(), image); err != nil {
			return Image{}, err
		}
		if img, err = s.remember(img); err != nil {
			return Image{}, err
		}
	}
	s.touch(img.Digest)
	img.Reference, img.Cached = img.Digest, known
	return img, nil
}

// present returns what the store has for ref, if it may do without the registry.
func (s *Store) present(ref name.Reference, policy Policy) (Image, bool) {
	digest, pinned := ref.(name.Digest)
	if policy == "" {
		policy = PullAlways
		if pinned {
			policy = PullIfNotPresent
		}
	}
	if policy == PullAlways {
		return Image{}, false
	}
	if pinned {
		return s.lookup(digest.DigestStr())
	}
	known, ok := s.tagged(ref)
	if !ok {
		return Image{}, false
	}
	return s.lookup(known)
}

// ask asks the registry which image ref names, and for the image if the store
// lacks it.
func (s *Store) ask(ctx context.Context, ref name.Reference, keys authn.Keychain) (img Image, cached bool, err error) {
	digest, err := s.resolve(ctx, ref, keys)
	if err != nil {
		return Image{}, false, err
	}
	img, cached = s.lookup(digest.String())
	if !cached {
		img, err = s.join(ctx, ref.Context().Digest(digest.String()), keys)
	}
	if _, pinned := ref.(name.Digest); err == nil && !pinned {
		err = s.tag(ref, digest.String())
	}
	return img, cached, err
}

// choose returns img with the module that command names, if it names one.
func (s *Store) choose(img Image, command string) (Image, error) {
	if command == "" {
		return img, nil
	}
	img.Args = nil
	path := modulePath(command, img.WorkingDir)
	if path == img.ModulePath {
		return img, nil
	}
	if other, ok := img.Others[path]; ok {
		img.Module = other
		return img, nil
	}
	missing := &contentError{fmt.Errorf("command %q not found in image", command)}
	if path == "" || !img.HasRoot {
		return Image{}, missing
	}
	root, err := os.OpenRoot(s.rootPath(img.Digest))
	if err != nil {
		return Image{}, err
	}
	defer root.Close()
	other, err := s.takeFromRoot(root, path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Image{}, missing
	case err != nil:
		return Image{}, fmt.Errorf("command %q: %w", command, err)
	}
	img.Module = other
	return img, s.addModule(img.Digest, other)
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

// join waits for the pull of ref, which it starts if there is none. The caller
// has asked the registry for ref: who may not have it doesn't come here.
func (s *Store) join(ctx context.Context, ref name.Digest, keys authn.Keychain) (Image, error) {
	key := ref.String()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return Image{}, errClosed
	}
	p := s.pulls[key]
	if p == nil {
		p = s.start(ctx, ref, keys)
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
func (s *Store) start(ctx context.Context, ref name.Digest, keys authn.Keychain) *pull {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &pull{cancel: cancel, done: make(chan struct{})}
	s.pulls[ref.String()] = p
	s.joined.Go(func() {
		defer cancel()
		p.img, p.err = s.fetch(ctx, ref, keys)
		if p.err == nil {
			p.img, p.err = s.remember(p.img)
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
