package tools

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
)

// Wisp builds ./cmd/wisp of the checkout and returns its path. With race, it is
// built with the race detector, which needs a C compiler.
func (b *Builder) Wisp(ctx context.Context, race bool) (string, error) {
	if !race {
		return b.checkout(ctx, "wisp", "./cmd/wisp", "CGO_ENABLED=0")
	}
	if err := need("gcc"); err != nil && os.Getenv("CC") == "" {
		return "", fmt.Errorf("build wisp with the race detector: %w", err)
	}
	return b.checkout(ctx, "wisp-race", "./cmd/wisp", "CGO_ENABLED=1", "-race")
}

// Platform builds ./test/platform/cmd/platform of the checkout and returns its
// path.
func (b *Builder) Platform(ctx context.Context) (string, error) {
	return b.checkout(ctx, "platform", "./test/platform/cmd/platform", "CGO_ENABLED=0")
}

// checkout builds one of the checkout's own programs. Go itself knows whether
// anything has changed.
func (b *Builder) checkout(ctx context.Context, name, pkg, env string, flags ...string) (string, error) {
	out := filepath.Join(b.Cache, fmt.Sprintf("checkout-%x", sum(b.Root)), name)
	unlock, err := b.lock(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	stop := b.tick("build " + name)
	defer stop()
	args := append([]string{"build", "-buildvcs=false", "-o", out}, flags...)
	if _, err := output(ctx, b.Root, []string{env}, "go", append(args, pkg)...); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	return out, nil
}

// Guest compiles a C file to a WASI command and returns the module's path. The
// module has the file's name, with .wasm for its suffix.
func (b *Builder) Guest(ctx context.Context, source string) (string, error) {
	source, err := filepath.Abs(source) // the compiler runs in another folder
	if err != nil {
		return "", fmt.Errorf("compile guest: %w", err)
	}
	text, err := os.ReadFile(source)
	if err != nil {
		return "", fmt.Errorf("compile guest: %w", err)
	}
	base := filepath.Base(source)
	name := base[:len(base)-len(filepath.Ext(base))] + ".wasm"
	dir := filepath.Join(b.Cache, fmt.Sprintf("guest-%x", sum(string(text)+zig.version)))
	out := filepath.Join(dir, name)
	if exists(out) {
		return out, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("compile guest %s: %w", source, err)
	}
	stop := b.tick("compile " + base)
	defer stop()
	env := []string{
		"PYTHONPATH=" + zig.dir(b.Cache),
		"ZIG_GLOBAL_CACHE_DIR=" + filepath.Join(b.Cache, "zig"),
		"ZIG_LOCAL_CACHE_DIR=" + filepath.Join(b.Cache, "zig"),
	}
	tmp := filepath.Join(dir, "."+name)
	if _, err := output(ctx, dir, env, "python3", "-m", "ziglang", "cc", "--target=wasm32-wasi", "-O2", "-s", "-o", tmp, source); err != nil {
		return "", fmt.Errorf("compile guest %s: %w", source, err)
	}
	return out, os.Rename(tmp, out)
}

func sum(text string) []byte {
	s := sha256.Sum256([]byte(text))
	return s[:6]
}
