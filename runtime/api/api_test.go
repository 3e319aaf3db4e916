package api

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestMarks(t *testing.T) {
	cause := fmt.Errorf("pull x: %w", fs.ErrNotExist)
	for kind, mark := range map[error]func(error) error{ErrImagePull: ImagePull, ErrUnusable: Unusable} {
		err := fmt.Errorf("start y: %w", mark(cause))
		if !errors.Is(err, kind) || !errors.Is(err, fs.ErrNotExist) || err.Error() != "start y: pull x: file does not exist" {
			t.Errorf("%v: got %q", kind, err)
		}
		if errors.Is(ImagePull(cause), ErrUnusable) || errors.Is(Unusable(cause), ErrImagePull) {
			t.Error("one mark is the other")
		}
		if mark(nil) != nil {
			t.Error("nil became an error")
		}
	}
}

func TestTextIsBounded(t *testing.T) {
	long := errors.New("unknown imports: " + strings.Repeat("ä", maxText))
	text := Unusable(long).Error()
	if len(text) > maxText+len("…") || !utf8.ValidString(text) || !strings.HasPrefix(text, "unknown imports: ää") {
		t.Errorf("got %d bytes, %.50q", len(text), text)
	}
}
