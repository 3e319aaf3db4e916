package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/test/platform/stack"
)

func demoCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "demo SORT.wasm",
		Short: "Deploy the sample function and call it through Envoy",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := platformOf(dir)
			if err != nil {
				return err
			}
			return demo(c.Context(), cfg, args[0], c.OutOrStdout())
		},
	}
	stateFlag(c, &dir)
	return c
}

// demo does what a user would, with the same programs, and says so.
func demo(ctx context.Context, cfg stack.Config, module string, out io.Writer) error {
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
	const body = `{"args":["1111","2345","8","99","11234","12312","1231231","-10000"]}`
	url := fmt.Sprintf("http://sort.default.localhost:%d/", cfg.Ports.Gateway)
	if _, err := exec.LookPath("curl"); err != nil {
		fmt.Fprintln(out, "(curl is not installed: the call comes from here)")
		return post(ctx, cfg.Gateway(), url, body, out)
	}
	return r.run("curl", "-sS", "--fail-with-body", "-X", "POST", "-H", "Content-Type: application/json", "-d", body, url)
}

// post does what the demo's curl would: curl knows that names under localhost
// are on this machine, and Go's resolver may not.
func post(ctx context.Context, gateway, url, body string, out io.Writer) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, gateway, strings.NewReader(body))
	if err != nil {
		return fmt.Errorf("call %s: %w", url, err)
	}
	r.Host = strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/")
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return fmt.Errorf("call %s: %w", url, err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(out, resp.Body); err != nil {
		return fmt.Errorf("call %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("call %s: %s", url, resp.Status)
	}
	return nil
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
