package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/autoscaler"
	"github.com/wisp-serving/wisp/config"
)

func autoscalerCommand() *cobra.Command {
	return roleCommand("autoscaler", "Scale the revisions of Wisp's PodAutoscaler class by what nodes report", config.LoadAutoscaler,
		func(ctx context.Context, cfg config.Autoscaler, _ source[config.Autoscaler]) error {
			log, err := newLog("autoscaler", cfg.Log)
			if err != nil {
				return err
			}
			return autoscaler.Run(ctx, cfg, log)
		})
}
