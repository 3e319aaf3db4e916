package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/runtime/oci"
)

func pushCommand() *cobra.Command {
	var abi string
	var insecure []string
	cmd := &cobra.Command{
		Use:   "push MODULE.wasm REGISTRY/REPOSITORY:TAG",
		Short: "Package a wasm module as an image and push it to a registry",
		Long: `Push packages a compiled module as an image FROM scratch whose entrypoint is
the module, and pushes it. Credentials are those of docker and podman. It prints
the image's digest reference.`,
		Example: "  wisp push sort.wasm localhost:5000/sort:v1",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, reference := args[0], args[1]
			module, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("read module: %w", err)
			}
			push := oci.PushConfig{
				Reference:          reference,
				Module:             module,
				FileName:           filepath.Base(file),
				InsecureRegistries: insecure,
			}
			if abi != "" {
				push.Labels = map[string]string{config.ABIAnnotation: abi}
			}
			digest, err := oci.Push(cmd.Context(), push)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), digest)
			return nil
		},
	}
	cmd.Flags().StringVar(&abi, "abi", "", "how the function is called, unless its Service says otherwise: the image's "+config.ABIAnnotation+" label")
	cmd.Flags().StringSliceVar(&insecure, "insecure-registry", nil, "`host:port` of a registry reached by plain HTTP; loopback ones always are")
	return cmd
}
