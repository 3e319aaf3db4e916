package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/test/platform/ports"
	"github.com/wisp-serving/wisp/test/platform/stack"
	"github.com/wisp-serving/wisp/test/platform/supervise"
)

func upCommand() *cobra.Command {
	var dir string
	var flags platformFlags
	c := &cobra.Command{
		Use:   "up",
		Short: "Build what is missing, start everything and wait until it is ready",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			state, err := openState(dir)
			if err != nil {
				return err
			}
			return up(c.Context(), state, flags, c.OutOrStdout())
		},
	}
	stateFlag(c, &dir)
	flags.add(c, "default")
	return c
}

func up(ctx context.Context, state stack.State, flags platformFlags, out io.Writer) error {
	if running, err := alreadyUp(state); err != nil || running {
		if running {
			fmt.Fprintf(out, "a platform runs in %s already: `make status` shows it; `make down` first, to start what was built since\n", shown(state.Dir))
		}
		return err
	}
	if _, err := stack.Stop(ctx, state); err != nil { // what a dead supervisor left
		return err
	}
	cfg, err := flags.configure(ctx, state, out)
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := stack.Launch(ctx, cfg, func(line string) { fmt.Fprintln(out, line) }); err != nil {
		return err
	}
	fmt.Fprintf(out, "ready after %s\n", time.Since(begun).Round(100*time.Millisecond))
	describe(cfg, out)
	return nil
}

func alreadyUp(state stack.State) (bool, error) {
	snapshot, err := supervise.ReadSnapshot(state.Status())
	return snapshot.Supervisor.Running(), err
}

func describe(cfg stack.Config, out io.Writer) {
	line := func(name, value string) { fmt.Fprintf(out, "  %-11s %s\n", name, value) }
	if !cfg.WithoutWisp {
		line("gateway", cfg.Gateway())
	}
	line("registry", cfg.Registry())
	line("API server", "https://"+ports.Address(ports.Loopback, cfg.Ports.APIServer))
	line("kubeconfig", shown(cfg.State.Kubeconfig()))
	line("logs", shown(cfg.State.Logs()))
	line("to use it", "source "+shown(cfg.State.Env()))
}

func downCommand() *cobra.Command {
	var dir string
	var wipe bool
	c := &cobra.Command{
		Use:   "down",
		Short: "Stop everything",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			state, err := openState(dir)
			if err != nil {
				return err
			}
			return down(c.Context(), state, wipe, c.OutOrStdout())
		},
	}
	stateFlag(c, &dir)
	c.Flags().BoolVar(&wipe, "wipe", false, "remove the state folder too: the cluster's objects, the registry's images, the logs")
	return c
}

func down(ctx context.Context, state stack.State, wipe bool, out io.Writer) error {
	begun := time.Now()
	stopped, err := stack.Stop(ctx, state)
	if err != nil {
		return err
	}
	if stopped {
		fmt.Fprintf(out, "stopped in %s\n", time.Since(begun).Round(100*time.Millisecond))
	} else {
		fmt.Fprintf(out, "nothing runs in %s\n", shown(state.Dir))
	}
	if !wipe {
		return nil
	}
	if err := state.Wipe(); err != nil {
		return err
	}
	fmt.Fprintf(out, "removed %s\n", shown(state.Dir))
	return nil
}

func superviseCommand() *cobra.Command {
	var dir string
	var report bool
	c := &cobra.Command{
		Use:    "supervise",
		Short:  "Run the platform in a state folder (what `platform up` starts)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			state, err := openState(dir)
			if err != nil {
				return err
			}
			var launcher *os.File
			if report {
				launcher = os.NewFile(stack.ReportFD, "report")
			}
			return stack.Serve(c.Context(), state, c.OutOrStdout(), launcher)
		},
	}
	stateFlag(c, &dir)
	c.Flags().BoolVar(&report, "report", false, "report to descriptor 3 until ready")
	return c
}

// platformOf loads the configuration of the platform in a state folder.
func platformOf(dir string) (stack.Config, error) {
	state, err := openState(dir)
	if err != nil {
		return stack.Config{}, err
	}
	cfg, err := stack.Load(state)
	if errors.Is(err, fs.ErrNotExist) {
		return cfg, fmt.Errorf("there is no platform in %s: start one with `platform up`", shown(state.Dir))
	}
	return cfg, err
}
