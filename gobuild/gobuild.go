// Package gobuild compiles Go main packages to guests that can listen.
//
// Go's own port to wasip1 has a network within the program: net.Listen succeeds,
// and nobody outside can connect. Package gobuild runs the `go build` at hand with
// an overlay of three files of its standard library, made from these files
// themselves, by which net.Listen finds the listeners that Wisp gives a guest,
// os.Hostname the pod's name, and a program that waits for signals, as servers do,
// sleeps. Neither the program nor the Go installation is
// changed.
package gobuild

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Config says what to build and how.
type Config struct {
	// Args are those of `go build`: packages and flags, in any order. Without -o
	// the output is named after the package, with .wasm.
	Args []string
	// Dir is where go runs; empty is the current folder.
	Dir string
	// Env is added to the environment of go.
	Env []string
	// Output takes what go prints; nil drops it.
	Output io.Writer
}

// Build compiles a main package to a module. Where that fails, the error says
// what go printed and, if it can tell, what a guest can't do.
func Build(ctx context.Context, cfg Config) error {
	args, err := parse(cfg.Args)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "wisp-build-")
	if err != nil {
		return fmt.Errorf("make overlay: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	overlay, err := writeOverlay(ctx, cfg, dir)
	if err != nil {
		return fmt.Errorf("make overlay: %w", err)
	}
	var printed bytes.Buffer
	cmd := command(ctx, cfg, append([]string{"build", "-overlay", overlay}, args...)...)
	cmd.Env = append(cmd.Env, "GOOS=wasip1", "GOARCH=wasm")
	cmd.Stdout, cmd.Stderr = &printed, &printed
	err = cmd.Run()
	if cfg.Output != nil {
		_, _ = cfg.Output.Write(printed.Bytes())
	}
	if err != nil {
		return explain(ctx, err, printed.String())
	}
	return nil
}

func command(ctx context.Context, cfg Config, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = cfg.Dir
	cmd.Env = append(os.Environ(), cfg.Env...)
	return cmd
}

// withValue are the flags of `go build` that are followed by a value.
var withValue = strings.Fields(`-C -asmflags -buildmode -compiler -covermode -coverpkg -gccgoflags -gcflags
	-installsuffix -ldflags -mod -modfile -o -overlay -p -pgo -pkgdir -tags -toolexec`)

// parse puts the flags before the packages, which go wants, and adds what isn't
// given: the output's name, and smaller output.
func parse(args []string) ([]string, error) {
	var flags, packages []string
	given := map[string]bool{}
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if !strings.HasPrefix(arg, "-") {
			packages = append(packages, arg)
			continue
		}
		name, _, hasValue := strings.Cut("-"+strings.TrimLeft(arg, "-"), "=")
		given[name] = true
		flags = append(flags, arg)
		if contains(withValue, name) && !hasValue {
			if i++; i == len(args) {
				return nil, fmt.Errorf("flag %s needs a value", arg)
			}
			flags = append(flags, args[i])
		}
	}
	switch {
	case given["-overlay"]:
		return nil, errors.New("flag -overlay is what wisp build is about, must not be given")
	case len(packages) > 1:
		return nil, fmt.Errorf("packages = %s, must be one", strings.Join(packages, " "))
	}
	if !given["-o"] {
		name, err := outputName(packages)
		if err != nil {
			return nil, err
		}
		flags = append(flags, "-o", name)
	}
	if !given["-ldflags"] {
		flags = append(flags, "-ldflags=-s -w") // a guest's traces need neither
	}
	return append(flags, packages...), nil
}

func contains(list []string, item string) bool {
	for _, i := range list {
		if i == item {
			return true
		}
	}
	return false
}

func outputName(packages []string) (string, error) {
	path := "."
	if len(packages) == 1 {
		path, _, _ = strings.Cut(packages[0], "@")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(filepath.Base(path), ".go") + ".wasm", nil
}

// writeOverlay writes the overlay's files and its list to dir and returns the
// list's path.
func writeOverlay(ctx context.Context, cfg Config, dir string) (string, error) {
	cmd := command(ctx, cfg, "env", "GOROOT")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("run go env: %w %s", err, stderr.String())
	}
	replace := map[string]string{}
	files, err := overlay(strings.TrimSpace(string(out)))
	if err != nil {
		return "", err
	}
	for path, content := range files {
		instead := filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(instead, content, 0o600); err != nil {
			return "", err
		}
		replace[path] = instead
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, list, 0o600)
}
