package stack

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wisp-serving/wisp/test/platform/supervise"
)

// message is what the daemon tells the command that started it, one JSON object
// a line. The last one has Ready or Error set.
type message struct {
	Line  string `json:"line,omitempty"`
	Ready bool   `json:"ready,omitempty"`
	Error string `json:"error,omitempty"`
}

// ReportFD is the descriptor at which the daemon finds the pipe to the command
// that started it.
const ReportFD = 3

// Launch saves the configuration, starts a daemon that runs the platform, and
// waits until it is ready. Progress goes to report, a line at a time. If ctx
// ends before, the daemon is stopped again.
func Launch(ctx context.Context, cfg Config, report func(line string)) error {
	if err := errors.Join(cfg.Validate(), cfg.CheckPorts()); err != nil {
		return err
	}
	if err := cfg.State.make(); err != nil {
		return err
	}
	if err := cfg.State.copy("platform", cfg.Platform); err != nil {
		return err
	}
	cfg.Platform = cfg.State.Bin("platform")
	if err := cfg.Save(); err != nil {
		return err
	}
	daemon, reports, err := startDaemon(cfg.State)
	if err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	defer reports.Close()
	stop := context.AfterFunc(ctx, func() { _ = daemon.Process.Signal(syscall.SIGTERM) })
	defer stop()
	err = follow(reports, report)
	if err == nil {
		return nil
	}
	exit := daemon.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the supervisor ended before the platform was ready: %w\n%s", exit, logTail(cfg.State.Log(Supervisor)))
	}
	return err
}

// Supervisor names the log of what happens to components.
const Supervisor = "supervisor"

// startDaemon starts `platform supervise` in a session of its own.
func startDaemon(state State) (*exec.Cmd, *os.File, error) {
	log, err := os.OpenFile(state.Log(Supervisor), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer write.Close()
	cmd := exec.Command(state.Bin("platform"), "supervise", "--state", state.Dir, "--report")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{write} // the first of them is ReportFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		read.Close()
		return nil, nil, err
	}
	return cmd, read, nil
}

// follow passes the daemon's reports on until it is ready or fails.
func follow(reports io.Reader, report func(line string)) error {
	lines := bufio.NewScanner(reports)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var m message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			return fmt.Errorf("read the supervisor's report: %w", err)
		}
		switch {
		case m.Error != "":
			return errors.New(m.Error)
		case m.Ready:
			return nil
		default:
			report(m.Line)
		}
	}
	return errors.Join(io.ErrUnexpectedEOF, lines.Err())
}

// Serve is the daemon: it runs the platform in state until ctx ends. What
// happens goes to log and, until the platform is ready, to launcher, the pipe
// that [Launch] gave it; nil if it was started by hand.
func Serve(ctx context.Context, state State, log io.Writer, launcher *os.File) error {
	tell := func(message) {}
	if launcher != nil {
		defer launcher.Close()
		syscall.CloseOnExec(int(launcher.Fd()))
		enc := json.NewEncoder(launcher)
		tell = func(m message) { _ = enc.Encode(m) } // the launcher may be gone
	}
	err := serve(ctx, state, log, tell)
	if err != nil {
		tell(message{Error: err.Error()})
	}
	return err
}

func serve(ctx context.Context, state State, log io.Writer, tell func(message)) error {
	release, err := state.hold()
	if err != nil {
		return err
	}
	defer release()
	cfg, err := Load(state)
	if err != nil {
		return err
	}
	events := make(chan supervise.Event, 64)
	s, err := New(cfg, func(e supervise.Event) { events <- e })
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.Go(func() error {
		pass(events, s.Ready(), log, tell)
		return nil
	})
	err = s.Run(ctx)
	close(events)
	_ = g.Wait()
	return err
}

// pass writes events to the log, and tells them to the launcher until the
// platform is ready. It returns when events is closed.
func pass(events <-chan supervise.Event, ready <-chan struct{}, log io.Writer, tell func(message)) {
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			fmt.Fprintln(log, e)
			tell(message{Line: e.Component + ": " + e.Text})
		case <-ready:
			tell(message{Ready: true})
			ready, tell = nil, func(message) {}
		}
	}
}

// stopTimeout is how long a daemon may take to stop everything.
const stopTimeout = 30 * time.Second

// Stop stops the platform in state, if one runs, and ends whatever a dead
// supervisor left. It reports whether there was anything to stop.
func Stop(ctx context.Context, state State) (bool, error) {
	snapshot, err := supervise.ReadSnapshot(state.Status())
	if err != nil {
		return false, err
	}
	was := snapshot.Supervisor.Running()
	if err := snapshot.Supervisor.End(ctx, stopTimeout); err != nil {
		return was, fmt.Errorf("stop the supervisor: %w", err)
	}
	if snapshot, err = supervise.ReadSnapshot(state.Status()); err != nil {
		return was, err
	}
	for _, c := range snapshot.Components {
		was = was || c.Running()
		if err := c.End(ctx, 0); err != nil {
			return was, fmt.Errorf("stop component %s: %w", c.Name, err)
		}
	}
	return was, nil
}

func logTail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	lines, err := supervise.Tail(f, 0, 20)
	if err != nil {
		return err.Error()
	}
	return "    " + strings.Join(lines, "\n    ") + "\n  the whole log: " + path
}
