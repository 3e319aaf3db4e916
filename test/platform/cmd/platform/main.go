// Command platform runs Kubernetes, Knative Serving and Envoy, and Wisp on
// them, on one machine, for one user, without root.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/cmd/interrupt"
)

func main() {
	ctx := interrupt.Context()
	err := command().ExecuteContext(ctx)
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "platform:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	c := &cobra.Command{
		Use:           "platform",
		Short:         "Kubernetes, Knative Serving, Envoy and Wisp on this machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	c.AddCommand(buildCommand(), guestCommand(), upCommand(), downCommand(), runCommand(), statusCommand(), logsCommand(), demoCommand(), superviseCommand(), registryCommand())
	return c
}
