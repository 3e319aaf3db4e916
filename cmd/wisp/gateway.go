package main

import (
	"context"
	"os"

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
			text, err := bootstrap.Render(cfg)
			if err != nil {
				return err
			}
			if output != "" {
				return os.WriteFile(output, text, 0o600)
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
