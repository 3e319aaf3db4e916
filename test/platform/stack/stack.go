package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/wisp-serving/wisp/test/platform/cluster"
	"github.com/wisp-serving/wisp/test/platform/ports"
	"github.com/wisp-serving/wisp/test/platform/supervise"
)

// Stack is one platform. Its methods are safe for concurrent use.
type Stack struct {
	cfg     Config
	state   State
	socket  string // folder of Unix sockets
	cluster *cluster.Cluster
	chart   []*cluster.Object // charts/wisp, but for what runs roles in a cluster
	tokens  *cluster.Tokens
	// approver answers the nodes' requests for serving certificates.
	approver *cluster.Approver
	// Supervisor runs the components. Its Run is hidden by the stack's.
	*supervise.Supervisor
}

// New lays out the state folder and makes a platform that has started nothing.
// Report is told of everything that happens to a component.
func New(cfg Config, report func(supervise.Event)) (*Stack, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Stack{cfg: cfg, state: cfg.State}
	if err := s.state.make(); err != nil {
		return nil, err
	}
	if err := s.installPrograms(); err != nil {
		return nil, err
	}
	var err error
	s.chart, err = cluster.Chart(cfg.Programs.Helm, filepath.Join(cfg.Root, "charts/wisp"), WispNamespace, chartValues())
	if err != nil {
		return nil, err
	}
	credentials, err := s.issue()
	if err != nil {
		return nil, err
	}
	if s.cluster, err = cluster.Connect(s.state.Kubeconfig()); err != nil {
		return nil, err
	}
	trouble := func(err error) {
		report(supervise.Event{Time: time.Now(), Component: accounts, Text: err.Error(), Trouble: true})
	}
	s.tokens = &cluster.Tokens{Cluster: s.cluster, Dir: s.state.tokens(), Accounts: s.accounts(), Report: trouble}
	s.approver = &cluster.Approver{Cluster: s.cluster, Nodes: map[string]string{}, Report: trouble}
	for i, address := range cfg.NodeAddresses {
		s.approver.Nodes[NodeName(i)] = address
	}
	if err := s.writeAuditPolicy(); err != nil {
		return nil, err
	}
	components := s.controlPlane(credentials)
	components = append(components, s.knative()...)
	if !cfg.WithoutWisp {
		roles, err := s.wisp()
		if err != nil {
			return nil, err
		}
		components = append(components, roles...)
	}
	s.Supervisor, err = supervise.New(supervise.Config{
		Components: components,
		LogDir:     s.state.Logs(),
		StatusFile: s.state.Status(),
		Report:     report,
	})
	if err != nil {
		return nil, err
	}
	return s, s.writeEnv()
}

// Run starts the platform and keeps it running until ctx ends, then stops it.
// Call it once.
func (s *Stack) Run(ctx context.Context) error {
	if s.socket != "" {
		defer os.RemoveAll(s.socket) // it may be outside of the state folder
	}
	g, ctx := errgroup.WithContext(ctx)
	serving, stop := context.WithCancel(ctx)
	g.Go(func() error {
		defer stop()
		return s.Supervisor.Run(ctx)
	})
	g.Go(func() error {
		s.tokens.Run(serving)
		return nil
	})
	g.Go(func() error {
		s.approve(serving)
		return nil
	})
	return g.Wait()
}

// approve answers nodes until ctx ends. It waits for the API server first: a
// watch that fails pauses longer and longer.
func (s *Stack) approve(ctx context.Context) {
	_, err := s.WaitFor(ctx, apiserver, func(st supervise.Status) bool { return st.State == supervise.Ready })
	if err == nil {
		s.approver.Run(ctx)
	}
}

// Cluster returns the administrator's connection.
func (s *Stack) Cluster() *cluster.Cluster { return s.cluster }

// hold keeps other processes from running a platform in this folder.
func (s State) hold() (release func(), err error) {
	f, err := os.OpenFile(s.lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("state folder %s: another platform runs there", s.Dir)
		}
		return nil, fmt.Errorf("lock the state folder: %w", err)
	}
	return func() { f.Close() }, nil
}

func (s *Stack) installPrograms() error {
	errs := []error{
		s.state.link("kubectl", s.cfg.Programs.Kubectl),
		s.state.link("kn", s.cfg.Programs.Kn),
		s.state.link("helm", s.cfg.Programs.Helm),
		s.state.link("envoy", s.cfg.Programs.Envoy),
		s.state.link("zig", s.cfg.Programs.Zig),
		s.state.copy("platform", s.cfg.Platform),
	}
	if s.cfg.Wisp != "" {
		errs = append(errs, s.state.copy("wisp", s.cfg.Wisp))
	}
	return errors.Join(errs...)
}

// writeEnv writes the file that a shell sources to use the platform.
func (s *Stack) writeEnv() error {
	text := "# Source this to use the platform in this folder.\n"
	for _, v := range s.cfg.variables() {
		text += "export " + v.name + "=" + v.shell + "\n"
	}
	if err := os.WriteFile(s.state.Env(), []byte(text), 0o600); err != nil {
		return fmt.Errorf("write env: %w", err)
	}
	return nil
}

func (s *Stack) local(port int) string { return ports.Address(ports.Loopback, port) }

func (s *Stack) tokenFile(a cluster.Account) string { return cluster.TokenFile(s.state.tokens(), a) }
