package main

import (
	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/runtime/guest"
)

// completeABI completes --abi.
func completeABI(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return []cobra.Completion{
		cobra.CompletionWithDesc(guest.ABICGI, "a request is variables and standard input (the default)"),
		cobra.CompletionWithDesc(guest.ABIArgv, "a request is arguments, in JSON"),
		cobra.CompletionWithDesc(guest.ABIServer, "the module listens on $PORT"),
		cobra.CompletionWithDesc(guest.ABICommand, "the module runs once, to its end"),
	}, cobra.ShellCompDirectiveNoFileComp
}

// completeFirst completes the first argument as a file with one of the endings.
func completeFirst(endings ...string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return endings, cobra.ShellCompDirectiveFilterFileExt
	}
}
