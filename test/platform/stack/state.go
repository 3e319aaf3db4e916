package stack

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// State is the folder of everything that one platform writes.
type State struct {
	Dir string `json:"dir"`
}

// Kubeconfig is the administrator's.
func (s State) Kubeconfig() string { return filepath.Join(s.Dir, "kubeconfig") }

// Bin is the path of a program for the user: kubectl, kn, helm, envoy, zig, wisp.
func (s State) Bin(program string) string { return filepath.Join(s.Dir, "bin", program) }

// Settings is the path of a role's settings, by its component.
func (s State) Settings(who string) string { return filepath.Join(s.Dir, "settings", who+".yaml") }

// Logs is the folder of the log files.
func (s State) Logs() string { return filepath.Join(s.Dir, "logs") }

// Log is a component's log file.
func (s State) Log(component string) string { return filepath.Join(s.Logs(), component+".log") }

// Env is a file for shells to source.
func (s State) Env() string { return filepath.Join(s.Dir, "env") }

// Status is the supervisor's status file.
func (s State) Status() string { return filepath.Join(s.Dir, "status.json") }

func (s State) config() string               { return filepath.Join(s.Dir, "platform.json") }
func (s State) lock() string                 { return filepath.Join(s.Dir, "lock") }
func (s State) pki() string                  { return filepath.Join(s.Dir, "pki") }
func (s State) tokens() string               { return filepath.Join(s.Dir, "tokens") }
func (s State) kubeconfig(who string) string { return filepath.Join(s.Dir, "kubeconfigs", who) }
func (s State) held(who string) string       { return s.data(who) + ".held" }
func (s State) data(who string) string       { return filepath.Join(s.Dir, "data", who) }

// make makes the folders.
func (s State) make() error {
	for _, dir := range []string{
		s.Dir, s.Logs(), s.pki(), s.tokens(), s.data(""),
		filepath.Dir(s.Bin("x")), filepath.Dir(s.kubeconfig("x")), filepath.Dir(s.Settings("x")),
	} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the state folder: %w", err)
		}
	}
	return nil
}

// Wipe removes the folder and all that is in it, if it is a platform's.
func (s State) Wipe() error {
	if _, err := os.Stat(s.config()); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Stat(s.Dir); errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return fmt.Errorf("wipe %s: it holds no platform", s.Dir)
		}
		return fmt.Errorf("wipe %s: %w", s.Dir, err)
	}
	if err := os.RemoveAll(s.Dir); err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	return nil
}

// maxSocketPath is how long the path of a Unix socket may be on Linux, in bytes.
const maxSocketPath = 107

// socketDir returns a folder for a Unix socket of the given name: in the state
// folder, or, where that is too deep, one of the system's temporary folder.
func (s State) socketDir(name string) (string, error) {
	dir := filepath.Join(s.Dir, "run")
	if len(filepath.Join(dir, name)) > maxSocketPath {
		var err error
		if dir, err = os.MkdirTemp("", "wisp-run-"); err != nil {
			return "", fmt.Errorf("make a folder for %s: %w", name, err)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make a folder for %s: %w", name, err)
	}
	return dir, nil
}

// link makes bin/<name> a link to a program in the cache.
func (s State) link(name, target string) error {
	tmp := s.Bin("." + name + ".tmp")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := errors.Join(os.Symlink(target, tmp), os.Rename(tmp, s.Bin(name))); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	return nil
}

// copy makes bin/<name> a copy of a program.
func (s State) copy(name, source string) error {
	if source == s.Bin(name) {
		return nil
	}
	in, err := os.Open(source)
	if err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	defer in.Close()
	tmp := s.Bin("." + name + ".tmp")
	out, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o700)
	if err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	return os.Rename(tmp, s.Bin(name))
}

// quote makes a word for a shell.
func quote(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }
