package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds"
	"github.com/wisp-serving/wisp/xds/bootstrap"
)

func gatewayCommand() *cobra.Command {
	cmd := roleCommand("gateway", "Configure Envoy, over xDS, from the KIngresses of Wisp's class", config.LoadGateway,
		func(ctx context.Context, cfg config.Gateway) error {
			log, err := newLog("gateway", cfg.Log)
			if err != nil {
				return err
			}
			return xds.Run(ctx, cfg, log)
		})
	cmd.AddCommand(&cobra.Command{
		Use:     "bootstrap",
		Short:   "Print the configuration with which an Envoy of this gateway starts",
		Example: "  wisp gateway bootstrap --config gateway.yaml > envoy.yaml && envoy -c envoy.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadGateway(cmd.Flag("config").Value.String())
			if err != nil {
				return err
			}
			text, err := bootstrap.Render(cfg)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	})
	return cmd
}
