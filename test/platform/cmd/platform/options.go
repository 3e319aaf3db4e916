package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/wisp-serving/wisp/test/platform/ports"
	"github.com/wisp-serving/wisp/test/platform/stack"
	"github.com/wisp-serving/wisp/test/platform/tools"
)

// stateFlag adds --state, which every command that concerns one platform has.
func stateFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "state", "", "the platform's `folder` (default: .wisp in the checkout)")
}

// openState makes the --state flag absolute.
func openState(dir string) (stack.State, error) {
	if dir == "" {
		root, err := tools.FindRoot()
		if err != nil {
			return stack.State{}, fmt.Errorf("find the state folder: %w: name it with --state", err)
		}
		dir = filepath.Join(root, ".wisp")
	}
	abs, err := filepath.Abs(dir)
	return stack.State{Dir: abs}, err
}

// newBuilder makes a builder for the checkout that holds the working folder.
func newBuilder(out io.Writer) (*tools.Builder, error) {
	root, err := tools.FindRoot()
	if err != nil {
		return nil, err
	}
	cache, err := tools.CacheDir()
	if err != nil {
		return nil, err
	}
	return &tools.Builder{Root: root, Cache: cache, Report: func(line string) { fmt.Fprintln(out, line) }}, nil
}

// platformFlags say what a platform consists of and where it listens.
type platformFlags struct {
	ports       string
	port        []string
	nodes       int
	nodeAddress string
	withoutWisp bool
	race        bool
}

// add adds the flags to a command. PortSet is the default of --ports.
func (f *platformFlags) add(c *cobra.Command, portSet string) {
	c.Flags().StringVar(&f.ports, "ports", portSet, "`set` of ports: default, or free for ones that nobody uses")
	var names []string
	p := ports.Default()
	for _, s := range p.Settings() {
		names = append(names, s.Name)
	}
	c.Flags().StringArrayVar(&f.port, "port", nil, "one port, as `NAME=NUMBER`; names are "+strings.Join(names, ", "))
	c.Flags().IntVar(&f.nodes, "nodes", 1, "`number` of wisp nodes")
	c.Flags().StringVar(&f.nodeAddress, "node-address", "", "loopback `address` of the first wisp node, the others' count up from it (default "+stack.DefaultNodeAddress+")")
	c.Flags().BoolVar(&f.withoutWisp, "without-wisp", false, "leave Wisp's roles and Envoy out")
	c.Flags().BoolVar(&f.race, "race", false, "build wisp with the race detector")
}

// configure builds what is missing and makes the configuration of a platform in
// state.
func (f *platformFlags) configure(ctx context.Context, state stack.State, out io.Writer) (stack.Config, error) {
	cfg := stack.Config{State: state, WithoutWisp: f.withoutWisp, Race: f.race}
	// Before minutes of building: what can't work should be said at once.
	if err := f.choosePorts(&cfg); err != nil {
		return cfg, err
	}
	if err := errors.Join(cfg.Validate(), cfg.CheckPorts()); err != nil {
		return cfg, err
	}
	b, err := newBuilder(out)
	if err != nil {
		return cfg, err
	}
	if err := cfg.AddPrograms(ctx, b); err != nil {
		return cfg, err
	}
	cfg.Platform, err = os.Executable()
	return cfg, err
}

// choosePorts sets the ports and the nodes' addresses.
func (f *platformFlags) choosePorts(cfg *stack.Config) error {
	cfg.Ports = ports.Default()
	switch f.ports {
	case "default":
	case "free":
		var err error
		if cfg.Ports, err = ports.Free(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("--ports = %q, must be default or free", f.ports)
	}
	for _, s := range f.port {
		name, text, _ := strings.Cut(s, "=")
		number, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("--port = %q, must be NAME=NUMBER", s)
		}
		if err := cfg.Ports.Set(name, number); err != nil {
			return err
		}
	}
	var err error
	if f.ports == "free" && f.nodeAddress == "" {
		cfg.NodeAddresses, err = stack.FreeNodeAddresses(cfg.Ports, f.nodes)
	} else {
		cfg.NodeAddresses, err = stack.NodeAddresses(cmp.Or(f.nodeAddress, stack.DefaultNodeAddress), f.nodes)
	}
	return err
}

// shown is a path as short as it can be said from here.
func shown(path string) string {
	wd, err := os.Getwd()
	if err != nil {
		return path
	}
	rel, err := filepath.Rel(wd, path)
	if err != nil || strings.HasPrefix(rel, "..") {
		return path
	}
	return rel
}
