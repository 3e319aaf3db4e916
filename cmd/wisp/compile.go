package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/runtime/compile"
)

// compileName is the subcommand that a node runs itself with, to compile in a
// process that has limits.
const compileName = "compile"

func compileCommand(status *int) *cobra.Command {
	return &cobra.Command{
		Use:                compileName,
		Hidden:             true,
		DisableFlagParsing: true,
		Run: func(cmd *cobra.Command, args []string) {
			*status = compile.ChildMain(args, cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
}

// compiler is the command line of compileCommand.
func compiler() ([]string, error) {
	self, err := os.Executable()
	return []string{self, compileName}, err
}
