// Package api is the leaf that the packages under runtime share: the errors on
// which their callers branch. It starts nothing and imports nothing of Wisp.
package api

import (
	"errors"
	"strings"
)

var (
	// ErrImagePull means that an image could not be had from its registry:
	// unknown there, refused, unreachable or not what its digest says. A later
	// attempt may succeed.
	ErrImagePull = errors.New("image pull")
	// ErrUnusable means that what was found can never run here: not a wasm
	// image, a broken module, an unknown import, an unknown ABI. The same input
	// always gives the same error.
	ErrUnusable = errors.New("unusable")
	// ErrImageName is an ErrUnusable: the reference names no image.
	ErrImageName = errors.New("image name")
	// ErrImageNeverPull is an ErrImagePull: the image isn't in the store, and no
	// registry may be asked for it.
	ErrImageNeverPull = errors.New("image not present")
)

// maxText bounds the text of a marked error, in bytes. Images and modules have a
// part in it, names of any length for one, and it is to fit into a pod's status.
const maxText = 4 << 10

// Unusable marks err as ErrUnusable. Its text stays, but for what is beyond
// 4 KiB. It returns nil for nil.
func Unusable(err error) error { return mark(err, ErrUnusable) }

// ImagePull marks err as ErrImagePull, as Unusable does.
func ImagePull(err error) error { return mark(err, ErrImagePull) }

func mark(err, kind error) error {
	if err == nil {
		return nil
	}
	return &marked{error: err, kind: kind}
}

// marked is an error with a kind for errors.Is beside its own chain.
type marked struct {
	error
	kind error
}

func (m *marked) Error() string {
	text := m.error.Error()
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…" // a rune may be cut
	}
	return text
}

func (m *marked) Unwrap() []error { return []error{m.error, m.kind} }
