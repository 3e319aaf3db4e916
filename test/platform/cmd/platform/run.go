package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/test/platform/stack"
)

func runCommand() *cobra.Command {
	var flags platformFlags
	var permissions string
	c := &cobra.Command{
		Use:   "run [flags] -- COMMAND",
		Short: "Run a command beside a platform of its own, which it finds in its environment",
		Long: `Starts a platform in a temporary folder, on ports that nobody uses, runs the
command, and stops the platform. The command's environment is that of the file
"env", with ` + stack.StateEnv + ` for the folder; Go tests find the platform by it.
If the command fails, the logs are kept.

With --permissions, what Wisp's roles may do is held against what they have done
meanwhile, here and on the platforms that Go tests have started for themselves: a
permission that was not needed fails the run. That makes sense for all tests
together, and for no part of them.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return runBeside(c.Context(), flags, permissions, args, c.OutOrStdout())
		},
	}
	flags.add(c, "free")
	c.Flags().StringVar(&permissions, "permissions", "", "hold permissions against their use, and write what needed each to a `file`")
	c.Flags().SetInterspersed(false)
	return c
}

func runBeside(ctx context.Context, flags platformFlags, permissions string, args []string, out io.Writer) error {
	dir, err := os.MkdirTemp("", "wisp-run-") // sockets need short paths
	if err != nil {
		return fmt.Errorf("make a folder for the platform: %w", err)
	}
	cfg, err := flags.configure(ctx, stack.State{Dir: dir}, out)
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	if permissions != "" {
		cfg.Audit = filepath.Join(dir, "audit")
	}
	begun := time.Now()
	err = stack.During(ctx, cfg, func(ctx context.Context) error {
		fmt.Fprintf(out, "platform ready after %s in %s\n", time.Since(begun).Round(100*time.Millisecond), dir)
		return runCommandLine(ctx, cfg, args, out)
	})
	err = errors.Join(err, cfg.State.CheckRaces(nil))
	if err == nil && permissions != "" {
		err = checkPermissions(cfg, permissions, out)
	}
	if err == nil || ctx.Err() != nil { // nobody asks why an interrupted command failed
		return errors.Join(err, os.RemoveAll(dir))
	}
	kept, keepErr := keepLogs(cfg.State)
	if keepErr == nil {
		fmt.Fprintln(out, "the platform's logs are kept in", kept)
	}
	return errors.Join(err, keepErr)
}

// interruptGrace is how long an interrupted command may take to end.
const interruptGrace = 20 * time.Second

func runCommandLine(ctx context.Context, cfg stack.Config, args []string, out io.Writer) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), cfg.Environment()...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, out, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = interruptGrace
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w", args[0], err)
	}
	return nil
}

// keepLogs removes everything but the logs.
func keepLogs(state stack.State) (string, error) {
	entries, err := os.ReadDir(state.Dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		path := filepath.Join(state.Dir, e.Name())
		if path == state.Logs() {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return "", err
		}
	}
	return state.Logs(), nil
}
