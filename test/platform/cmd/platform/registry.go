package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/wisp-serving/wisp/test/platform/registry"
)

func registryCommand() *cobra.Command {
	var address, dir string
	c := &cobra.Command{
		Use:    "registry",
		Short:  "Run the image registry (what the supervisor starts)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := registry.New(dir, c.OutOrStdout())
			if err != nil {
				return err
			}
			return serveHTTP(c.Context(), address, h)
		},
	}
	c.Flags().StringVar(&address, "address", "127.0.0.1:5000", "host and port to listen on")
	c.Flags().StringVar(&dir, "dir", "", "`folder` of the images")
	_ = c.MarkFlagRequired("dir")
	return c
}

// serveHTTP serves h until ctx ends and requests under way are answered.
func serveHTTP(ctx context.Context, address string, h http.Handler) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve on %s: %w", address, err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := srv.Shutdown(drain); err != nil {
			return srv.Close() // connections that are kept alive by their clients
		}
		return nil
	})
	return g.Wait()
}
