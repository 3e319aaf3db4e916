package main

import (
	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/autoscaler"
	"github.com/wisp-serving/wisp/config"
)

func autoscalerCommand() *cobra.Command {
	var settings string
	cmd := &cobra.Command{
		Use:   "autoscaler",
		Short: "Scale the revisions of Wisp's PodAutoscaler class by what nodes report",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadAutoscaler(settings)
			if err != nil {
				return err
			}
			log, err := newLog("autoscaler", cfg.Log)
			if err != nil {
				return err
			}
			return autoscaler.Run(cmd.Context(), cfg, log)
		},
	}
	cmd.Flags().StringVar(&settings, "config", "", "YAML file with the autoscaler's settings; without it, the defaults")
	return cmd
}
