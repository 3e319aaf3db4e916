// Package pause waits for a time that the end of a context cuts short.
package pause

import (
	"context"
	"time"
)

// For returns after d, or false as soon as ctx has ended.
func For(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
