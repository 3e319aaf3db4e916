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
	os.Exit(run(untilSignal(), os.Args[1:], os.Stdout, os.Stderr))
}

// untilSignal is done once the process is told to end. By then a second signal
// kills: whoever has seen the process begin to end can count on that.
func untilSignal() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() { // as long as the process
		<-signals
		signal.Stop(signals)
		cancel()
	}()
	return ctx
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:   "wisp",
		Short: "Knative Services that run WebAssembly",
		Long: `Wisp runs WebAssembly modules as Knative Services. With a module, begin with

  wisp run MODULE.wasm              try it here
  wisp push MODULE.wasm IMAGE       make an image of it
  kn service create NAME --image IMAGE`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	var status int
	addGroup(root, "For functions:", buildCommand(), runCommand(&status), inspectCommand(), pushCommand())
	addGroup(root, "In a cluster:", nodeCommand(), gatewayCommand(), autoscalerCommand())
	root.AddCommand(compileCommand(&status))
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(stderr, "wisp:", err)
		return 1
	}
	return status
}

// addGroup adds commands under a title of the help.
func addGroup(root *cobra.Command, title string, commands ...*cobra.Command) {
	root.AddGroup(&cobra.Group{ID: title, Title: title})
	for _, c := range commands {
		c.GroupID = title
	}
	root.AddCommand(commands...)
}
