package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/test/platform/stack"
	"github.com/wisp-serving/wisp/test/platform/supervise"
)

func statusCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "status",
		Short: "Show each component",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			state, err := openState(dir)
			if err != nil {
				return err
			}
			return status(state, c.OutOrStdout())
		},
	}
	stateFlag(c, &dir)
	return c
}

func status(state stack.State, out io.Writer) error {
	snapshot, err := supervise.ReadSnapshot(state.Status())
	if err != nil {
		return err
	}
	if !snapshot.Supervisor.Running() {
		return fmt.Errorf("nothing runs in %s", shown(state.Dir))
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "COMPONENT\tSTATE\tPID\tUPTIME\tRESTARTS\tADDRESS\tLOG")
	for _, c := range snapshot.Components {
		if c.Log == "" { // a step of the start
			continue
		}
		pid, uptime := "-", "-"
		if c.Running() {
			pid, uptime = fmt.Sprint(c.PID), time.Since(c.Since).Round(time.Second).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", c.Name, c.State, pid, uptime, c.Restarts, c.Address, shown(c.Log))
	}
	fmt.Fprintf(w, "supervisor\t\t%d\t\t\t\t%s\n", snapshot.Supervisor.PID, shown(state.Log("supervisor")))
	return w.Flush()
}

func logsCommand() *cobra.Command {
	var dir string
	var follow bool
	c := &cobra.Command{
		Use:   "logs COMPONENT",
		Short: "Print a component's log",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			state, err := openState(dir)
			if err != nil {
				return err
			}
			return logs(c.Context(), state, args[0], follow, c.OutOrStdout())
		},
	}
	stateFlag(c, &dir)
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on printing what is written")
	return c
}

// followInterval is how often a followed log is read.
const followInterval = 200 * time.Millisecond

func logs(ctx context.Context, state stack.State, component string, follow bool, out io.Writer) error {
	f, err := os.Open(state.Log(component))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no log of a component %q in %s", component, shown(state.Logs()))
	}
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewReader(f)
	for {
		if _, err := in.WriteTo(out); err != nil {
			return err
		}
		if !follow {
			return nil
		}
		select {
		case <-time.After(followInterval):
		case <-ctx.Done():
			return nil
		}
	}
}
