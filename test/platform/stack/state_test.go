package stack

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wisp-serving/wisp/test/platform/ports"
)

func TestWipe_removes_a_platform_only(t *testing.T) {
	stranger := State{Dir: t.TempDir()}
	file := filepath.Join(stranger.Dir, "precious")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := stranger.Wipe(); err == nil || !strings.Contains(err.Error(), "holds no platform") {
		t.Errorf("Wipe of another folder = %v, want it refused", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Fatal(err)
	}
	ours := State{Dir: filepath.Join(t.TempDir(), "state")}
	if err := errors.Join(ours.make(), Config{State: ours}.Save()); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing
		if err := ours.Wipe(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(ours.Dir); !os.IsNotExist(err) {
		t.Errorf("after Wipe: %v", err)
	}
}

func TestConfig_is_the_same_after_a_round_trip(t *testing.T) {
	state := State{Dir: t.TempDir()}
	want := Config{Root: "/root", State: state, Ports: ports.Default(), NodeAddresses: []string{DefaultNodeAddress}, WithoutWisp: true, Platform: "/p"}
	if err := want.Save(); err != nil {
		t.Fatal(err)
	}
	got, err := Load(state)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("loaded (-saved +loaded):\n%s", diff)
	}
}

func TestValidate(t *testing.T) {
	tests := map[string]struct {
		config Config
		want   string
	}{
		"good":         {Config{State: State{Dir: "/s"}, NodeAddresses: []string{"127.9.9.9", "127.9.9.10"}}, ""},
		"without_wisp": {Config{State: State{Dir: "/s"}, WithoutWisp: true}, ""},
		"no_node":      {Config{State: State{Dir: "/s"}}, "nodes = 0, must be at least 1"},
		"all_wrong": {
			Config{State: State{Dir: "relative"}, NodeAddresses: []string{"10.0.0.1", "127.0.0.9", "127.0.0.9"}},
			"state = \"relative\", must be an absolute path\n" +
				"node-address = \"10.0.0.1\", must be a loopback address\n" +
				"node-address = \"127.0.0.9\", must be another for each node",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := ""
			if err := tt.config.Validate(); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("Validate = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestNodeAddresses_count_up(t *testing.T) {
	got, err := NodeAddresses("127.0.1.255", 2)
	if diff := cmp.Diff([]string{"127.0.1.255", "127.0.2.0"}, got); err != nil || diff != "" {
		t.Errorf("NodeAddresses: %v, (-want +got):\n%s", err, diff)
	}
	if _, err := NodeAddresses("localhost", 1); err == nil || !strings.Contains(err.Error(), `node-address = "localhost"`) {
		t.Errorf("NodeAddresses of a name = %v, want it refused", err)
	}
}

func TestSocketDir_is_short_enough(t *testing.T) {
	shallow := State{Dir: t.TempDir()}
	dir, err := shallow.socketDir("xds.sock")
	if err != nil || !strings.HasPrefix(dir, shallow.Dir) {
		t.Errorf("socketDir = %s, %v, want it in the state folder", dir, err)
	}
	deep := State{Dir: filepath.Join(t.TempDir(), strings.Repeat("d", 100))}
	if dir, err = deep.socketDir("xds.sock"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if n := len(filepath.Join(dir, "xds.sock")); n > maxSocketPath {
		t.Errorf("the path has %d bytes, at most %d work", n, maxSocketPath)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode = %v, %v, want 700: who can open the socket can read from it", info.Mode(), err)
	}
}

func TestHold_keeps_a_second_platform_out(t *testing.T) {
	state := State{Dir: t.TempDir()}
	release, err := state.hold()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := state.hold(); err == nil || !strings.Contains(err.Error(), "another platform runs there") {
		t.Errorf("hold = %v, want it refused", err)
	}
	release()
	release, err = state.hold()
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestQuote(t *testing.T) {
	for _, word := range []string{"plain", "it's", "a b", `$HOME "x" \`} {
		out, err := exec.Command("/bin/sh", "-c", "printf %s "+quote(word)).Output()
		if err != nil || string(out) != word {
			t.Errorf("a shell reads %s as %q, %v, want %q", quote(word), out, err, word)
		}
	}
}

func TestFollow(t *testing.T) {
	tests := map[string]struct {
		reports string
		lines   []string
		err     error
		text    string
	}{
		"ready":       {"{\"line\":\"a\"}\n{\"line\":\"b\"}\n{\"ready\":true}\n", []string{"a", "b"}, nil, ""},
		"failed":      {"{\"line\":\"a\"}\n{\"error\":\"no luck\"}\n", []string{"a"}, nil, "no luck"},
		"died":        {"{\"line\":\"a\"}\n", []string{"a"}, io.ErrUnexpectedEOF, ""},
		"not_a_line":  {"panic: x\n", nil, nil, "read the supervisor's report"},
		"not_started": {"", nil, io.ErrUnexpectedEOF, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var lines []string
			err := follow(strings.NewReader(tt.reports), func(l string) { lines = append(lines, l) })
			switch {
			case tt.err != nil:
				if !errors.Is(err, tt.err) {
					t.Errorf("follow = %v, want %v", err, tt.err)
				}
			case tt.text != "":
				if err == nil || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("follow = %v, want %q", err, tt.text)
				}
			case err != nil:
				t.Errorf("follow = %v, want nil", err)
			}
			if diff := cmp.Diff(tt.lines, lines); diff != "" {
				t.Errorf("lines (-want +got):\n%s", diff)
			}
		})
	}
}
