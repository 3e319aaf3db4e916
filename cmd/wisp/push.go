package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/local"
	"github.com/wisp-serving/wisp/runtime"
	"github.com/wisp-serving/wisp/runtime/oci"
)

// pushOptions are the flags of `wisp push`.
type pushOptions struct {
	abi, entrypoint string
	args, files     []string
	artifact        bool
	insecure        []string
}

func pushCommand() *cobra.Command {
	var o pushOptions
	cmd := &cobra.Command{
		Use:   "push MODULE.wasm REGISTRY/REPOSITORY:TAG",
		Short: "Package a wasm module as an image and push it to a registry",
		Long: `Push packages a compiled module as an image FROM scratch whose entrypoint is
the module, or as a Wasm OCI artifact, and pushes it. The same module and flags
always make the same image.

Before anything is pushed the module is compiled and tried as a node does it:
what a node would refuse is refused here, and why.

Credentials are those of docker and podman: a login, or a credential helper. It
prints the image's digest reference, which is what a Service should name: a tag
may name another image tomorrow.`,
		Example: `  wisp push sort.wasm localhost:5000/sort:v1 --abi argv
  wisp push tool.wasm ghcr.io/ada/tool:v2 --entrypoint /bin/tool.wasm --arg=-v
  wisp push site.wasm ghcr.io/ada/site:v1 --file ./public=/public
  kn service create sort --image $(wisp push sort.wasm localhost:5000/sort:v1)`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := o.config(args[0], args[1])
			if err != nil {
				return err
			}
			if err := tryImage(cmd, cfg); err != nil {
				return err
			}
			digest, err := oci.Push(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), digest)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.abi, "abi", "", "how the function is called, unless its Service says otherwise (cgi, argv, server or command): the image's "+config.ABIAnnotation+" label")
	f.StringVar(&o.entrypoint, "entrypoint", "", "`path` of the module in the image, instead of its file name at the root")
	f.StringArrayVar(&o.args, "arg", nil, "`argument` that follows the module's name, unless the container has its own; repeatable")
	f.StringArrayVar(&o.files, "file", nil, "`here=/there`: a file or folder that the function finds at /there; repeatable")
	f.BoolVar(&o.artifact, "artifact", false, "push a Wasm OCI artifact, the module and nothing else, instead of an image")
	insecureFlag(cmd, &o.insecure)
	_ = cmd.RegisterFlagCompletionFunc("abi", completeABI) // the flag is there
	cmd.ValidArgsFunction = completeFirst("wasm")
	return cmd
}

func insecureFlag(cmd *cobra.Command, registries *[]string) {
	cmd.Flags().StringSliceVar(registries, "insecure-registry", nil, "`host:port` of a registry reached by plain HTTP; loopback ones always are")
}

// config reads the files that are pushed.
func (o pushOptions) config(file, reference string) (oci.PushConfig, error) {
	module, err := os.ReadFile(file)
	if err != nil {
		return oci.PushConfig{}, fmt.Errorf("read module: %w", err)
	}
	cfg := oci.PushConfig{
		Reference:          reference,
		Module:             module,
		FileName:           filepath.Base(file),
		Entrypoint:         o.entrypoint,
		Args:               o.args,
		Artifact:           o.artifact,
		InsecureRegistries: o.insecure,
	}
	if o.abi != "" {
		cfg.Labels = map[string]string{config.ABIAnnotation: o.abi}
	}
	for _, pair := range o.files {
		here, there, ok := strings.Cut(pair, "=")
		if !ok || here == "" || there == "" {
			return cfg, fmt.Errorf("file = %q, must be here=/there", pair)
		}
		if cfg.Files, err = addFiles(cfg.Files, here, there); err != nil {
			return cfg, err
		}
	}
	return cfg, nil
}

// addFiles appends the file here, or all files of the folder here.
func addFiles(files []oci.File, here, there string) ([]oci.File, error) {
	err := filepath.WalkDir(here, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		inside, err := filepath.Rel(here, name)
		if err != nil {
			return err
		}
		info, err := os.Stat(name) // what a link leads to
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is no regular file", name)
		}
		content, err := os.ReadFile(name)
		files = append(files, oci.File{Path: path.Join(there, filepath.ToSlash(inside)), Content: content})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read files for %s: %w", there, err)
	}
	return files, nil
}

// tryImage does with what is to be pushed what a node will.
func tryImage(cmd *cobra.Command, cfg oci.PushConfig) error {
	m, err := openMachine(cfg.InsecureRegistries)
	if err != nil {
		return err
	}
	defer closeMachine(m)
	image, err := m.Import(cfg)
	if err != nil {
		return err
	}
	if err := m.Try(cmd.Context(), image, ""); errors.Is(err, runtime.ErrUnusable) {
		return fmt.Errorf("a node would refuse it: %w", err)
	} else if err != nil {
		return err
	}
	return nil
}

// openMachine is a node's runtime for a tool, which keeps its log to itself.
func openMachine(insecure []string) (*local.Machine, error) {
	self, err := compiler()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	return local.Open(local.Config{Compiler: self, InsecureRegistries: insecure, Log: zap.NewNop().Sugar()})
}

// closeMachine closes what a tool has opened: a temporary folder, about which
// nothing is to be done if it stays.
func closeMachine(m *local.Machine) { _ = m.Close() }
