// Command wisp runs Knative Services as WebAssembly: each role of it is a
// subcommand (node, gateway, autoscaler), and so are the tools of its users
// (build, push, inspect, run).
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/cmd/interrupt"
)

func main() {
	os.Exit(run(interrupt.Context(), os.Args[1:], os.Stdout, os.Stderr))
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
