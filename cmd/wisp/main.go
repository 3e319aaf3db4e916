// Command wisp runs Knative Services as WebAssembly: each role of it is a
// subcommand (node, gateway, autoscaler), and so are the tools of its users
// (build, push, inspect, run).
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // back to default handling: a second signal kills
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:           "wisp",
		Short:         "Knative Services that run WebAssembly",
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	var status int
	root.AddCommand(nodeCommand(), gatewayCommand(), autoscalerCommand(), buildCommand(), pushCommand(), inspectCommand(), runCommand(&status), compileCommand(&status))
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(stderr, "wisp:", err)
		return 1
	}
	return status
}
