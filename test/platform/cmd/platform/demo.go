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

// What the demo calls with, and how it waits.
const (
	demoBody   = `{"args":["1111","2345","8","99","11234","12312","1231231","-10000"]}`
	demoShort  = `{"args":["3","1","2"]}`
	demoBad    = `{"args":["eight"]}`
	demoLabel  = "serving.knative.dev/service=sort"
	demoWaited = "120s"
)

// demo does what a user would, with the same programs, and says so. Where the
// function is there already, from an earlier start, it only calls it.
func demo(ctx context.Context, cfg stack.Config, module string, out io.Writer) error {
	r := runner{ctx, cfg.State, out}
	d := demonstration{r, cfg}
	if r.quiet("kn", "service", "describe", "sort", "--output", "name") == nil {
		return d.call("sort", demoBody)
	}
	image := cfg.Registry() + "/sort:v1"
	for _, step := range []func() error{
		func() error { return r.run("wisp", "push", module, image) },
		func() error {
			return r.run("kn", "service", "create", "sort", "--image", image, "--annotation", config.ABIAnnotation+"=argv")
		},
		func() error { return d.call("sort", demoBody) },
		// To zero, and back with the next call.
		func() error {
			return r.run("kubectl", "wait", "pods", "--selector", demoLabel, "--for", "delete", "--timeout", demoWaited)
		},
		func() error { return r.run("kubectl", "get", "pods") },
		func() error { return d.call("sort", demoShort) },
		// A second revision, half of the calls to each, and a tag for the first.
		func() error {
			return r.run("kn", "service", "update", "sort", "--arg", "0", "--tag", "sort-00001=old", "--tag", "@latest=new",
				"--traffic", "sort-00001=50", "--traffic", "@latest=50")
		},
		func() error { return d.call("old-sort", demoShort) },
		func() error { return d.call("new-sort", demoShort) },
		// What it has written to standard error.
		func() error { return d.fail("new-sort", demoBad) },
		func() error {
			return r.run("kubectl", "wait", "pods", "--selector", "serving.knative.dev/revision=sort-00002", "--for", "condition=Ready", "--timeout", demoWaited)
		},
		func() error {
			return r.run("kubectl", "logs", "--selector", "serving.knative.dev/revision=sort-00002", "--container", "user-container")
		},
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// demonstration calls functions of one platform.
type demonstration struct {
	runner
	cfg stack.Config
}

// call calls a function through Envoy.
func (d demonstration) call(host, body string) error {
	return d.curl(host, body, "--fail-with-body")
}

// fail makes a call that is answered with an error.
func (d demonstration) fail(host, body string) error { return d.curl(host, body) }

func (d demonstration) curl(host, body string, flags ...string) error {
	url := fmt.Sprintf("http://%s.default.localhost:%d/", host, d.cfg.Ports.Gateway)
	if _, err := exec.LookPath("curl"); err != nil {
		fmt.Fprintln(d.out, "(curl is not installed: the call comes from here)")
		return post(d.ctx, d.cfg.Gateway(), url, body, d.out, len(flags) == 0)
	}
	args := append([]string{"-sS"}, flags...)
	return d.run("curl", append(args, "-H", "Content-Type: application/json", "-d", body, url)...)
}

// post does what the demo's curl would: curl knows that names under localhost
// are on this machine, and Go's resolver may not. mayFail takes any status.
func post(ctx context.Context, gateway, url, body string, out io.Writer, mayFail bool) error {
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
	if resp.StatusCode != http.StatusOK && !mayFail {
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
