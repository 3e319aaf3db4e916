package stack

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// holdPoll is how often a held component is looked for.
const holdPoll = 100 * time.Millisecond

// Hold keeps one of Wisp's roles from being started again once it has ended, until
// release is called.
func (s State) Hold(component string) (release func() error, err error) {
	if err := os.WriteFile(s.held(component), nil, 0o600); err != nil {
		return nil, fmt.Errorf("hold component %s: %w", component, err)
	}
	return func() error { return os.Remove(s.held(component)) }, nil
}

// awaitRelease returns what blocks while the component is held.
func (s State) awaitRelease(component string) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			if _, err := os.Lstat(s.held(component)); errors.Is(err, fs.ErrNotExist) {
				return nil
			} else if err != nil {
				return err
			}
			select {
			case <-time.After(holdPoll):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}
