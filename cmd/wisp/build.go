package main

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/gobuild"
)

func buildCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "build [PACKAGE] [-o APP.wasm] [go build flags]",
		Short: "Compile a Go main package to a module that can listen",
		Long: `Build compiles a Go main package to a WASI module, with the go in PATH. An
ordinary net/http or gRPC server is one that way, without a change: net.Listen
finds the container's ports, as in any container. All flags are those of go
build; -o is the package's name with .wasm unless it is given.

A guest has no cgo, no processes and no signals, and can't dial out.`,
		Example: `  wisp build ./cmd/app -o app.wasm
  wisp build -tags purego -trimpath .`,
		DisableFlagParsing: true, // they are go's
		RunE: func(cmd *cobra.Command, args []string) error {
			if slices.ContainsFunc(args, func(arg string) bool { return arg == "-h" || arg == "-help" || arg == "--help" }) {
				return cmd.Help()
			}
			return gobuild.Build(cmd.Context(), gobuild.Config{Args: args})
		},
	}
}
