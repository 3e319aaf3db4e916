package main

import (
	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/xds"
	"github.com/wisp-serving/wisp/xds/bootstrap"
)

func gatewayCommand() *cobra.Command {
	var settings string
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Configure Envoy, over xDS, from the KIngresses of Wisp's class",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadGateway(settings)
			if err != nil {
				return err
			}
			log, err := newLog("gateway", cfg.Log)
			if err != nil {
				return err
			}
			return xds.Run(cmd.Context(), cfg, log)
		},
	}
	cmd.PersistentFlags().StringVar(&settings, "config", "", "YAML file with the gateway's settings; without it, the defaults")
	cmd.AddCommand(&cobra.Command{
		Use:     "bootstrap",
		Short:   "Print the configuration with which an Envoy of this gateway starts",
		Example: "  wisp gateway bootstrap --config gateway.yaml > envoy.json && envoy -c envoy.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadGateway(settings)
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
