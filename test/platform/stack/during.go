package stack

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/wisp-serving/wisp/test/platform/supervise"
	"github.com/wisp-serving/wisp/test/platform/tools"
)

// AddPrograms builds what is missing and notes where everything is, but for the
// platform's own program.
func (c *Config) AddPrograms(ctx context.Context, b *tools.Builder) error {
	c.Root = b.Root
	var err error
	if c.Programs, err = b.Build(ctx); err != nil || c.WithoutWisp {
		return err
	}
	c.Wisp, err = b.Wisp(ctx, c.Race)
	return err
}

// During runs a platform inside this process for as long as body takes, which
// is called when everything is ready. The error is body's, or says why the
// platform didn't start or stop. Should this process die, so does the platform.
func During(ctx context.Context, cfg Config, body func(context.Context) error) error {
	if err := cfg.State.make(); err != nil {
		return err
	}
	release, err := cfg.State.hold()
	if err != nil {
		return err
	}
	defer release()
	if err := cfg.Save(); err != nil {
		return err
	}
	log, err := os.OpenFile(cfg.State.Log(Supervisor), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s, err := New(cfg, func(e supervise.Event) { fmt.Fprintln(log, e) })
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Run(ctx) })
	g.Go(func() error {
		defer stop()
		select {
		case <-s.Ready():
			return body(ctx)
		case <-ctx.Done():
			return nil
		}
	})
	return g.Wait()
}
