package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/wisp-serving/wisp/config"
)

func TestFollowSettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gateway.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("{}")
	core, logs := observer.New(zap.InfoLevel)
	level := zap.NewAtomicLevelAt(zap.InfoLevel)
	changes := make(chan config.Gateway)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		from := source[config.Gateway]{path, func() (config.Gateway, error) { return config.LoadGateway(path) }}
		followSettings(ctx, config.DefaultGateway(), from, level, changes, zap.New(core).Sugar())
	}()
	defer func() {
		cancel()
		<-ended
	}()

	// Nothing tells when the file is followed, so the first change is made until it
	// is noticed.
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	next := func(changing func()) config.Gateway {
		t.Helper()
		late := time.After(time.Minute)
		for {
			select {
			case got := <-changes:
				return got
			case <-tick.C:
				changing()
			case <-late:
				t.Fatal("no change is noticed")
			}
		}
	}
	n := 0
	got := next(func() {
		n++
		write([]string{"log: {level: debug}", "log: {level: warn}"}[n%2])
	})
	if got.Log.Level != level.String() {
		t.Errorf("the log is at %s, want %s", level, got.Log.Level)
	}

	write("unknown: 1")
	write("xdsSocket: /else/xds.sock\nexternalNames: true")
	for got = range changes {
		if got.ExternalNames {
			break
		}
	}
	if got.XDSSocket != config.DefaultGateway().XDSSocket {
		t.Errorf("socket is %s, want the one that is served", got.XDSSocket)
	}
	if all := logs.FilterMessageSnippet("started again").All(); len(all) != 1 {
		t.Errorf("%d warnings that a restart is needed, want 1", len(all))
	}
}
