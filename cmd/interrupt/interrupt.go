// Package interrupt ends a command that is told to.
package interrupt

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// Context is done once the process is told to end, by SIGINT or SIGTERM. By then a
// second signal kills: whoever has seen the process begin to end can count on that. It
// is for main, which calls it once: its goroutine lives as long as the process.
func Context() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		signal.Stop(signals)
		cancel()
	}()
	return ctx
}
