package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func buildCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Build or install everything that a platform runs",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			b, err := newBuilder(c.OutOrStdout())
			if err != nil {
				return err
			}
			if _, err := b.Build(c.Context()); err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), "everything is in", b.Cache)
			return nil
		},
	}
}

func guestCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "guest SOURCE.c",
		Short: "Compile a C file to a WASI command and print where it is",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			b, err := newBuilder(c.ErrOrStderr())
			if err != nil {
				return err
			}
			if _, err := b.Build(c.Context()); err != nil {
				return err
			}
			module, err := b.Guest(c.Context(), args[0])
			if err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), module)
			return nil
		},
	}
}
