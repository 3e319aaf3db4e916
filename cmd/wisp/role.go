package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/config"
)

// source is where a role's settings come from.
type source[T any] struct {
	// path is of the file, or empty.
	path string
	// load reads them again.
	load func() (T, error)
}

// roleCommand is a subcommand that loads a role's settings and runs it until it
// is told to stop.
func roleCommand[T any](role, short string, load func(path string, set ...string) (T, error), run func(context.Context, T, source[T]) error) *cobra.Command {
	var path string
	var set []string
	cmd := &cobra.Command{
		Use:   role,
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(path, set...)
			if err != nil {
				return err
			}
			return run(cmd.Context(), cfg, source[T]{path, func() (T, error) { return load(path, set...) }})
		},
	}
	cmd.PersistentFlags().StringVar(&path, "config", "", "YAML `file` with settings; what it leaves out has its default")
	cmd.PersistentFlags().StringArrayVar(&set, "set", nil, "one more setting, as `KEY=VALUE`, over those of the file; KEY as in kubelet.port")
	cmd.AddCommand(&cobra.Command{
		Use:     "defaults",
		Short:   "Print the settings with their defaults and what they mean",
		Example: "  wisp " + role + " defaults > " + role + ".yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := config.Example(role)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	})
	return cmd
}
