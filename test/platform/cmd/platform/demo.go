package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/platform/stack"
)

func demoCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "demo",
		Short: "Deploy the sample function and call it through Envoy",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := platformOf(dir)
			if err != nil {
				return err
			}
			return demo(c.Context(), cfg, c.OutOrStdout())
		},
	}
	stateFlag(c, &dir)
	return c
}

// demo does what a user would, with the same programs, and says so.
func demo(ctx context.Context, cfg stack.Config, out io.Writer) error {
	b, err := newBuilder(out)
	if err != nil {
		return err
	}
	if _, err := exec.LookPath("curl"); err != nil {
		return errors.New("curl is missing: install the Debian package curl")
	}
	module, err := b.Guest(ctx, filepath.Join(b.Root, "samples/sort/sort.c"))
	if err != nil {
		return err
	}
	r := runner{ctx, cfg.State, out}
	image := cfg.Registry() + "/sort:v1"
	if err := r.run("wisp", "push", module, image); err != nil {
		return err
	}
	verb := "create"
	if r.quiet("kn", "service", "describe", "sort", "--output", "name") == nil {
		verb = "update"
	}
	if err := r.run("kn", "service", verb, "sort", "--image", image, "--annotation", config.ABIAnnotation+"=argv"); err != nil {
		return err
	}
	url := fmt.Sprintf("http://sort.default.localhost:%d/", cfg.Ports.Gateway)
	return r.run("curl", "--silent", "--show-error", "--fail-with-body", "-X", "POST", "-H", "Content-Type: application/json",
		"-d", `{"args":["1111","2345","8"]}`, url)
}

// runner runs the platform's programs as its user.
type runner struct {
	ctx   context.Context
	state stack.State
	out   io.Writer
}

// run shows a command line and what it prints.
func (r runner) run(name string, args ...string) error {
	fmt.Fprintln(r.out, "$", line(name, args))
	cmd := r.command(name, args)
	cmd.Stdout, cmd.Stderr = r.out, r.out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (r runner) quiet(name string, args ...string) error {
	return r.command(name, args).Run()
}

func (r runner) command(name string, args []string) *exec.Cmd {
	if own := r.state.Bin(name); name != "curl" {
		name = own
	}
	cmd := exec.CommandContext(r.ctx, name, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+r.state.Kubeconfig())
	return cmd
}

// line writes a command as one would type it.
func line(name string, args []string) string {
	var b bytes.Buffer
	b.WriteString(name)
	for _, a := range args {
		if strings.ContainsAny(a, " {}\"") {
			a = "'" + a + "'"
		}
		b.WriteString(" " + a)
	}
	return b.String()
}
