package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
)

func inspectCommand() *cobra.Command {
	var output string
	var insecure []string
	cmd := &cobra.Command{
		Use:   "inspect MODULE.wasm|IMAGE",
		Short: "Say what a module or image is, and whether a node would run it",
		Long: `Inspect looks at a module, in a file or in an image that it pulls with the
credentials of docker and podman: how it is called, what it imports and exports,
its memory, the sizes of its parts, the image's labels. It compiles the module as
a node does and says how long that took, or why a node would refuse it; then its
status is 1.`,
		Example: `  wisp inspect sort.wasm
  wisp inspect ghcr.io/ada/tool:v2 -o json | jq .outline.imports`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("output = %q, must be json or nothing", output)
			}
			m, err := openMachine(insecure)
			if err != nil {
				return err
			}
			defer closeMachine(m)
			image, err := m.Find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			report, err := m.Inspect(cmd.Context(), image)
			if err != nil {
				return err
			}
			if output == "json" {
				out := json.NewEncoder(cmd.OutOrStdout())
				out.SetIndent("", "  ")
				err = out.Encode(report)
			} else {
				err = report.Write(cmd.OutOrStdout())
			}
			if err == nil && report.Refused != "" {
				err = fmt.Errorf("a node would refuse %s", args[0])
			}
			return err
		},
		ValidArgsFunction: completeFirst("wasm"),
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json, for programs")
	insecureFlag(cmd, &insecure)
	// The flag is there.
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]cobra.Completion{"json"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
