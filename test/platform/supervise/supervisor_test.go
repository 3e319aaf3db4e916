package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// roleEnv makes the test binary play a part instead of running tests.
const roleEnv = "SUPERVISE_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "":
		goleak.VerifyTestMain(m)
	case "child":
		playChild()
	case "supervisor":
		playSupervisor(os.Args[len(os.Args)-1])
	}
}

// playChild says that it runs and waits for SIGTERM.
func playChild() {
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	fmt.Println("child runs")
	<-term
}

// playSupervisor runs one child and prints its process id when it is ready.
func playSupervisor(dir string) {
	s, err := New(Config{Components: []Component{sample(dir, "a")}, LogDir: dir, StatusFile: filepath.Join(dir, "status.json")})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go func() {
		<-s.Ready()
		fmt.Println("ready")
	}()
	_ = s.Run(context.Background())
}

// sample is a component that is ready once it has said so.
func sample(dir, name string, after ...string) Component {
	return Component{
		Name:  name,
		After: after,
		Path:  os.Args[0],
		Env:   []string{roleEnv + "=child", "GORACE=atexit_sleep_ms=0"},
		Ready: func(context.Context) error { return hasLine(filepath.Join(dir, name+".log"), "child runs") },
	}
}

func hasLine(file, line string) error {
	text, err := os.ReadFile(file)
	if err == nil && !strings.Contains(string(text), line) {
		err = fmt.Errorf("%s: not there yet", line)
	}
	return err
}

// record keeps what happened.
type record struct {
	mu    sync.Mutex
	lines []string
}

func (r *record) add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, e.Component+": "+e.Text)
}

// index returns the position of the first line with the prefix, or -1.
func (r *record) index(prefix string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, l := range r.lines {
		if strings.HasPrefix(l, prefix) {
			return i
		}
	}
	return -1
}

// start runs a supervisor until the test ends.
func start(t *testing.T, dir string, components ...Component) (*Supervisor, *record, func() error) {
	t.Helper()
	r := &record{}
	s, err := New(Config{
		Components: components, LogDir: dir, StatusFile: filepath.Join(dir, "status.json"), Report: r.add,
		Backoff: Backoff{First: time.Millisecond, Max: 10 * time.Millisecond, Forget: time.Minute},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop := sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { _ = stop() })
	return s, r, stop
}

func awaitReady(t *testing.T, s *Supervisor) {
	t.Helper()
	select {
	case <-s.Ready():
	case <-time.After(time.Minute):
		t.Fatalf("not ready: %+v", s.Status())
	}
}

func TestRun_starts_and_stops_in_order(t *testing.T) {
	dir := t.TempDir()
	// Listed against the order of their dependencies.
	s, r, stop := start(t, dir, sample(dir, "c", "b"), sample(dir, "b", "a"), sample(dir, "a"))
	awaitReady(t, s)
	if err := stop(); err != nil {
		t.Fatalf("Run = %v, want nil", err)
	}
	var at []int
	for _, want := range []string{"a: ready", "b: ready", "c: ready", "c: stopped", "b: stopped", "a: stopped"} {
		at = append(at, r.index(want))
	}
	if diff := cmp.Diff([]int{0, 1, 2, 3, 4, 5}, at); diff != "" {
		t.Errorf("order of events (-want +got):\n%s\n%s", diff, strings.Join(r.lines, "\n"))
	}
	for _, st := range s.Status() {
		if st.State != Stopped || st.Running() {
			t.Errorf("after Run: %+v, want stopped", st)
		}
	}
}

func TestRun_restarts_and_reports_a_killed_child(t *testing.T) {
	dir := t.TempDir()
	s, r, stop := start(t, dir, sample(dir, "a"), sample(dir, "b", "a"))
	awaitReady(t, s)
	before := s.Status()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := observe(dir).Kill(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	got := s.Status()[0]
	if got.Process == before[0].Process || !got.Running() {
		t.Errorf("process after the restart = %+v, want a new one that runs", got.Process)
	}
	if got.LastExit != "signal: killed" {
		t.Errorf("last exit = %q, want %q", got.LastExit, "signal: killed")
	}
	if after := s.Status(); after[1].Process != before[1].Process {
		t.Errorf("what depends on it was restarted too: %+v", after[1])
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if r.index("a: ended: signal: killed\n    child runs\n  the whole log: ") < 0 || r.index("a: starting again in 1ms") < 0 || r.index("a: ready again") < 0 {
		t.Errorf("the death or the restart wasn't reported:\n%s", strings.Join(r.lines, "\n"))
	}
}

func TestRestart_waits_until_ready(t *testing.T) {
	dir := t.TempDir()
	s, _, _ := start(t, dir, sample(dir, "a"))
	awaitReady(t, s)
	before := s.Status()[0]
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := observe(dir).Restart(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if after := s.Status()[0]; after.State != Ready || after.Process == before.Process || after.LastExit != "exit status 0" {
		t.Errorf("after Restart: %+v, want a new process, the old one having ended by itself", after)
	}
}

// A restart that was asked for, however often, isn't a crash loop.
func TestRestart_is_no_death(t *testing.T) {
	dir := t.TempDir()
	a := sample(dir, "a")
	// Else what the process before has said would pass for this one's being ready.
	a.Prepare = func(context.Context) error { return os.WriteFile(filepath.Join(dir, "a.log"), nil, 0o600) }
	s, r, stop := start(t, dir, a)
	awaitReady(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, end := range []func(context.Context, string) error{observe(dir).Kill, observe(dir).Kill, observe(dir).Restart, observe(dir).Restart, observe(dir).Kill} {
		if err := end(ctx, "a"); err != nil {
			t.Fatal(err)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range r.lines {
		if d, ok := strings.CutPrefix(l, "a: starting again in "); ok {
			got = append(got, d)
		}
	}
	if diff := cmp.Diff([]string{"1ms", "2ms", "1ms", "1ms", "2ms"}, got); diff != "" {
		t.Errorf("pauses (-want +got):\n%s", diff)
	}
}

func TestObserver_says_what_it_waits_for(t *testing.T) {
	dir := t.TempDir()
	s, _, _ := start(t, dir, sample(dir, "a"))
	awaitReady(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := observe(dir).WaitFor(ctx, "a", func(st Status) bool { return st.State == Stopped })
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "wait for component a, now ready") {
		t.Errorf("WaitFor = %v, want that a is ready, still", err)
	}
	if err := observe(dir).Kill(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), "component b: there is none of that name") {
		t.Errorf("Kill of nothing = %v, want it refused", err)
	}
}

func observe(dir string) Observer { return Observer{StatusFile: filepath.Join(dir, "status.json")} }

func TestRun_fails_when_a_component_does_not_start(t *testing.T) {
	never := func(context.Context) error { return errors.New("nobody answers") }
	tests := map[string]struct {
		component Component
		want      []string
	}{
		"ends_before_it_is_ready": {
			Component{Name: "a", Path: "/bin/sh", Args: []string{"-c", "echo one; echo two >&2; exit 3"}, Ready: never},
			[]string{"start component a: ended before it was ready: exit status 3", "    one\n    two", "a.log"},
		},
		"never_gets_ready": {
			Component{Name: "a", Path: "/bin/sh", Args: []string{"-c", "echo waiting for what; exec sleep 60"}, Ready: never, ReadyTimeout: 2 * time.Second},
			[]string{"start component a: not ready after 2s: nobody answers", "    waiting for what", "a.log"},
		},
		"has_no_program": {
			Component{Name: "a", Path: "/nowhere/a"},
			[]string{"start component a: ", "/nowhere/a: no such file"},
		},
		"can't_be_prepared": {
			Component{Name: "a", Prepare: func(context.Context) error { return errors.New("no permission") }},
			[]string{"start component a: prepare: no permission"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, err := New(Config{Components: []Component{sample(dir, "base"), tt.component, sample(dir, "late", "a")}, LogDir: dir})
			if err != nil {
				t.Fatal(err)
			}
			err = s.Run(t.Context())
			var start *StartError
			if !errors.As(err, &start) {
				t.Fatalf("Run = %v, want a StartError", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Run = %q, want %q in it", err, want)
				}
			}
			for _, st := range s.Status() {
				if st.Running() {
					t.Errorf("%s still runs", st.Name)
				}
			}
			if _, err := os.Stat(filepath.Join(dir, "late.log")); !os.IsNotExist(err) {
				t.Errorf("what depends on it was started: %v", err)
			}
		})
	}
}

func TestRun_kills_what_ignores_SIGTERM(t *testing.T) {
	dir := t.TempDir()
	stubborn := sample(dir, "a")
	stubborn.Path, stubborn.Args = "/bin/sh", []string{"-c", "trap '' TERM; echo child runs; exec sleep 60"}
	stubborn.StopTimeout = 50 * time.Millisecond
	s, r, stop := start(t, dir, stubborn)
	awaitReady(t, s)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if i := r.index("a: stopped"); i < 0 || !strings.Contains(r.lines[i], "signal: killed") {
		t.Errorf("events = %q, want it killed", r.lines)
	}
}

// A supervisor that is killed with -9 can't stop anything: the kernel does.
func TestChildren_die_with_a_killed_supervisor(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], dir)
	cmd.Env = append(os.Environ(), roleEnv+"=supervisor")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		t.Fatalf("supervisor said %q, %v, want it ready", line, err)
	}
	snapshot, err := ReadSnapshot(filepath.Join(dir, "status.json"))
	if err != nil {
		t.Fatal(err)
	}
	child := snapshot.Components[0].Process
	if !child.Running() || !snapshot.Supervisor.Running() {
		t.Fatalf("snapshot = %+v, want both to run", snapshot)
	}
	fd, err := child.open()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	gone, err := waitPidfd(t.Context(), fd, time.Minute)
	if err != nil || !gone {
		t.Errorf("child %d outlives its supervisor (%v)", child.PID, err)
	}
	if snapshot.Supervisor.Running() {
		t.Error("the dead supervisor counts as running")
	}
}

func TestEnd(t *testing.T) {
	tests := map[string]struct {
		script string
		grace  time.Duration
		want   unix.Signal
	}{
		"asks_first":                 {"echo up; exec sleep 60", time.Minute, unix.SIGTERM},
		"kills_what_does_not_listen": {"trap '' TERM; echo up; exec sleep 60", 100 * time.Millisecond, unix.SIGKILL},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("/bin/sh", "-c", tt.script)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, len("up\n"))); err != nil {
				t.Fatal(err)
			}
			p, err := Identify(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.End(t.Context(), tt.grace); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if got := cmd.ProcessState.Sys().(interface{ Signal() unix.Signal }).Signal(); got != tt.want {
				t.Errorf("ended by %s, want %s", got, tt.want)
			}
			if err := p.End(t.Context(), 0); err != nil {
				t.Errorf("End of an ended process = %v, want nil", err)
			}
		})
	}
}

// Another process may have the pid of one that was recorded.
func TestProcess_is_not_mistaken_for_another(t *testing.T) {
	self, err := Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !self.Running() {
		t.Error("this process doesn't count as running")
	}
	for name, other := range map[string]Process{
		"another_start": {PID: self.PID, Start: self.Start - 1, Boot: self.Boot},
		"another_boot":  {PID: self.PID, Start: self.Start, Boot: "00000000-0000-0000-0000-000000000000"},
		"none":          {},
	} {
		t.Run(name, func(t *testing.T) {
			if other.Running() {
				t.Error("counts as running")
			}
			if err := other.Signal(unix.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("Signal = %v, want %v", err, os.ErrProcessDone)
			}
			if err := other.End(t.Context(), time.Minute); err != nil {
				t.Errorf("End = %v, want nil", err)
			}
		})
	}
}

func TestNew_checks_the_graph(t *testing.T) {
	tests := map[string]struct {
		components []Component
		want       string
	}{
		"cycle":   {[]Component{{Name: "a", After: []string{"b"}}, {Name: "b", After: []string{"a"}}}, "component a: waits for itself through [a b]"},
		"unknown": {[]Component{{Name: "a", After: []string{"b"}}}, "component a: after b, which does not exist"},
		"twice":   {[]Component{{Name: "a"}, {Name: "a"}}, "component a: named twice"},
		"unnamed": {[]Component{{}}, "component without a name"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := New(Config{Components: tt.components}); err == nil || err.Error() != tt.want {
				t.Errorf("New = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestBackoff(t *testing.T) {
	b := Backoff{First: 200 * time.Millisecond, Max: time.Second}
	var got []time.Duration
	for n := range 6 {
		got = append(got, b.pause(n+1))
	}
	want := []time.Duration{200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, time.Second, time.Second, time.Second}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pauses (-want +got):\n%s", diff)
	}
}

func TestTail(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(file, []byte("old\none\ntwo\nthree\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, tt := range []struct {
		from int64
		n    int
		want []string
	}{
		{0, 2, []string{"two", "three"}},
		{4, 10, []string{"one", "two", "three"}},
		{18, 10, nil},
	} {
		got, err := Tail(f, tt.from, tt.n)
		if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
			t.Errorf("Tail(from %d, %d) %v (-want +got):\n%s", tt.from, tt.n, err, diff)
		}
	}
}
