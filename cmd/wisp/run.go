package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/local"
	"github.com/wisp-serving/wisp/runtime/guest"
)

// exitCode is how a shell tells an exit status: its low byte, as wait(2) has it.
const exitCode = 0xff

// runCommand runs a function here. *status becomes that of a command that has
// ended.
func runCommand(status *int) *cobra.Command {
	cfg := local.RunConfig{}
	var dirs, insecure []string
	var port string
	cmd := &cobra.Command{
		Use:   "run MODULE.wasm|IMAGE|SERVICE.yaml [-- ARGUMENT...]",
		Short: "Run a function on localhost, without a cluster",
		Long: `Run serves a function on localhost as a node does in a cluster: the same runtime
with the same bounds, the same way of a request. It takes a module, an image,
pulled with the credentials of docker and podman, or a file with a Knative
Service, of which it makes the pod that Knative would make; ConfigMaps and Secrets
that the Service refers to may be in the same file.

While it runs, write the file anew: the function that is in it then takes over
once it answers, and requests that are under way end with the old one. If there is
something wrong with it, run says so and the old one goes on. A Service's image
can be a file that way too, with --module. Ctrl-C lets running requests finish; a
second one doesn't.

A module of the ABI command has no requests: it runs once, and its exit status is
that of run.`,
		Example: `  wisp run sort.wasm --abi argv
  curl -H 'Content-Type: application/json' -d '{"args":["2","10","1"]}' localhost:8080

  wisp run notes.wasm --abi server --env LIMIT=10 --dir ./data:/data -p 9000
  wisp run service.yaml --module build/notes.wasm
  wisp run tool.wasm --abi command -- --verbose input.txt`,
		Args: func(cmd *cobra.Command, args []string) error {
			if n := cmd.ArgsLenAtDash(); n >= 0 && n != 1 || n < 0 && len(args) != 1 {
				return errors.New("needs one MODULE.wasm, IMAGE or SERVICE.yaml; arguments of the function follow after --")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg.What, cfg.Args = args[0], args[1:]
			for _, text := range dirs {
				d, err := local.ParseDir(text)
				if err != nil {
					return err
				}
				cfg.Dirs = append(cfg.Dirs, d)
			}
			cfg.Address = port
			if !strings.Contains(port, ":") {
				cfg.Address = "127.0.0.1:" + port
			}
			cfg.Stdout, cfg.Stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			cfg.Tell = func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), "wisp:", line) }
			m, err := openMachine(insecure)
			if err != nil {
				return err
			}
			defer closeMachine(m)
			err = m.Run(cmd.Context(), cfg)
			if exit := new(guest.ExitError); errors.As(err, &exit) {
				*status = int(exit.Status & exitCode)
				return nil
			}
			return err
		},
		ValidArgsFunction: completeFirst("wasm", "yaml", "yml"),
	}
	f := cmd.Flags()
	f.StringVar(&cfg.ABI, "abi", "", "how the function is called (cgi, argv, server or command), unless the Service or the image says so")
	f.StringArrayVarP(&cfg.Env, "env", "e", nil, "`NAME=value` that the function finds in its environment; repeatable")
	f.StringArrayVar(&dirs, "dir", nil, "`HERE[:/THERE][:ro]`: a folder that the function finds at /THERE; repeatable")
	f.StringVarP(&port, "port", "p", "8080", "`[host:]port` to listen on, on loopback unless host says otherwise; 0 is any")
	f.StringVar(&cfg.Module, "module", "", "`file` of the module to run instead of the image that the Service names")
	insecureFlag(cmd, &insecure)
	_ = cmd.RegisterFlagCompletionFunc("abi", completeABI) // the flag is there
	return cmd
}
