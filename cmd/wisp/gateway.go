package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/config/follow"
	"github.com/wisp-serving/wisp/xds"
	"github.com/wisp-serving/wisp/xds/bootstrap"
)

// runGateway runs a gateway that takes changes of its settings' file over.
func runGateway(ctx context.Context, cfg config.Gateway, from source[config.Gateway]) error {
	level, err := zap.ParseAtomicLevel(cfg.Log.Level)
	if err != nil {
		return fmt.Errorf("set up the log: %w", err)
	}
	log, err := newLogAt(level, "gateway", cfg.Log)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	changes := make(chan config.Gateway)
	g.Go(func() error {
		defer stop()
		return xds.Run(ctx, cfg, changes, log)
	})
	if from.path != "" {
		g.Go(func() error {
			followSettings(ctx, cfg, from, level, changes, log)
			return nil
		})
	}
	return g.Wait()
}

// followSettings sends what a running gateway takes over of its settings to changes,
// until ctx ends. Settings that are wrong change nothing.
func followSettings(ctx context.Context, running config.Gateway, from source[config.Gateway], level zap.AtomicLevel, changes chan<- config.Gateway, log *zap.SugaredLogger) {
	err := follow.File(ctx, from.path, func() {
		next, err := from.load()
		if err != nil {
			log.Errorw("new settings are refused and the old ones stay", "error", err)
			return
		}
		adopted, restart, err := running.Adopt(next)
		if err != nil {
			log.Errorw("new settings are refused and the old ones stay", "error", err)
			return
		}
		if len(restart) > 0 {
			log.Warnw("some settings change when the gateway is started again", "keys", restart)
		}
		running = adopted
		if err := level.UnmarshalText([]byte(running.Log.Level)); err != nil {
			log.Errorw("the log's level stays", "error", err)
		}
		select {
		case changes <- running:
		case <-ctx.Done():
		}
	})
	if err != nil {
		log.Errorw("changes of the settings' file go unnoticed until the gateway is started again", "error", err)
	}
}

// writeBootstrap writes what an Envoy starts from to a file and, where it reaches its
// gateway by TLS, the names of its secrets beside it.
func writeBootstrap(cfg config.Gateway, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	text, err := bootstrap.Render(cfg, filepath.Dir(path))
	if err != nil {
		return err
	}
	files := map[string][]byte{}
	if cfg.XDS.Server != "" {
		if files, err = bootstrap.Secrets(cfg); err != nil {
			return err
		}
	}
	files[filepath.Base(path)] = text
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func gatewayCommand() *cobra.Command {
	cmd := roleCommand("gateway", "Configure Envoy, over xDS, from the KIngresses of Wisp's class", config.LoadGateway,
		runGateway)
	var output string
	bootstrapCmd := &cobra.Command{
		Use:     "bootstrap",
		Short:   "Print the configuration with which an Envoy of this gateway starts",
		Example: "  wisp gateway bootstrap --config gateway.yaml > envoy.yaml && envoy -c envoy.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			set, err := cmd.Flags().GetStringArray("set")
			if err != nil {
				return err
			}
			cfg, err := config.LoadGateway(cmd.Flag("config").Value.String(), set...)
			if err != nil {
				return err
			}
			if output != "" {
				return writeBootstrap(cfg, output)
			}
			text, err := bootstrap.Render(cfg, "")
			if err != nil {
				return fmt.Errorf("%w (with --output, they are put beside the bootstrap)", err)
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	// In an image without a shell there is nothing else to redirect it.
	bootstrapCmd.Flags().StringVarP(&output, "output", "o", "", "write to `file` instead")
	cmd.AddCommand(bootstrapCmd)
	return cmd
}
