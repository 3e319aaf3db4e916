// Package guests compiles guests for tests, once for each content: Knative's own
// test images, and programs in the folders below.
//
// What is compiled stays in the user's cache folder.
package guests

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	goruntime "runtime"
	"strings"

	"github.com/wisp-serving/wisp/gobuild"
)

// Knative compiles one of Knative's test images as it is, with `wisp build`, and
// returns the module's path. The image is named by its module and its folder in
// test/test_images, as in "networking/grpc-ping" or "serving/helloworld".
func Knative(ctx context.Context, image string) (string, error) {
	module, name, ok := strings.Cut(image, "/")
	if !ok || module != "networking" && module != "serving" {
		return "", fmt.Errorf("image = %q, must be networking/NAME or serving/NAME", image)
	}
	dir, err := os.MkdirTemp("", "wisp-slim-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	flag, err := slim(ctx, "knative.dev/"+module, dir)
	if err != nil {
		return "", fmt.Errorf("compile %s: %w", image, err)
	}
	return compile(ctx, path.Base(name), "knative.dev/"+module+"/test/test_images/"+name, flag)
}

// Program compiles the Go program in the folder of that name.
func Program(ctx context.Context, name string) (string, error) {
	return compile(ctx, name, "./test/guests/"+name)
}

// compile builds a package unless that was done before.
func compile(ctx context.Context, name, pkg string, flags ...string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	key, err := contentOf(ctx, pkg)
	if err != nil {
		return "", fmt.Errorf("compile %s: %w", pkg, err)
	}
	dir := filepath.Join(cache, "wisp", fmt.Sprintf("guest-%.6x", sha256.Sum256([]byte(key))))
	module := filepath.Join(dir, name+".wasm")
	if _, err := os.Stat(module); err == nil {
		return module, nil
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	// It gets its name when it is whole: others may compile it too.
	part, err := os.CreateTemp(dir, "part-")
	if err != nil {
		return "", err
	}
	defer os.Remove(part.Name())
	_ = part.Close()
	err = gobuild.Build(ctx, gobuild.Config{
		Args: append(flags, "-trimpath", "-buildvcs=false", "-o", part.Name(), pkg),
		Dir:  root(),
	})
	if err != nil {
		return "", fmt.Errorf("compile %s: %w", pkg, err)
	}
	return module, os.Rename(part.Name(), module)
}

// contentOf returns what the module of a package depends on: the versions of Go
// and of all packages, the overlay, and the package itself if it is here.
func contentOf(ctx context.Context, pkg string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-trimpath", "-deps", "-f", "{{.ImportPath}} {{with .Module}}{{.Path}}@{{.Version}}{{end}}", pkg)
	cmd.Dir = root()
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("list packages: %w", err)
	}
	content := string(out) + goruntime.Version()
	for _, pattern := range []string{"gobuild/*", "test/guests/*.go", pkg + "/*"} {
		files, err := filepath.Glob(filepath.Join(root(), pattern))
		if err != nil {
			return "", err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return "", err
			}
			content += string(text)
		}
	}
	return content, nil
}

// root is the repository's folder.
func root() string {
	_, here, _, _ := goruntime.Caller(0)
	return filepath.Join(filepath.Dir(here), "../..")
}

// constants is the part of Knative's test package that images print.
var constants = regexp.MustCompile(`(?s)\n// Constants for test images.*?\n\)\n`)

// slim makes, in dir, a copy of one of Knative's modules whose test package, which
// has clients for the whole of Kubernetes, is what its images use of it: their
// modules are a fifth as large then. It returns the flag by which go takes it.
func slim(ctx context.Context, module, dir string) (flag string, err error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Dir = root()
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("list %s: %w", module, err)
	}
	from, to := strings.TrimSpace(string(out)), filepath.Join(dir, "module")
	text := serve
	err = link(from, to, "test", func(string) bool { return true })
	if err == nil {
		err = link(filepath.Join(from, "test"), filepath.Join(to, "test"), "", func(name string) bool {
			if filepath.Ext(name) != ".go" {
				return true
			}
			original, _ := os.ReadFile(filepath.Join(from, "test", name))
			text += constants.FindString(string(original))
			return false
		})
	}
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(to, "test", "serve.go"), []byte(text), 0o600); err != nil {
		return "", err
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(root(), name))
		if err != nil {
			return "", err
		}
		if name == "go.mod" {
			text = fmt.Appendf(text, "\nreplace %s => %s\n", module, to)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			return "", err
		}
	}
	return "-modfile=" + filepath.Join(dir, "go.mod"), nil
}

// link makes a folder with a link to everything in another one that is wanted,
// but for one name.
func link(from, to, but string, wanted func(name string) bool) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == but || !wanted(e.Name()) {
			continue
		}
		if err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

const serve = `package test

import (
	"context"
	"net/http"

	pkgnet "knative.dev/pkg/network"
	"knative.dev/pkg/signals"
)

// HelloVolumePath is Serving's.
const HelloVolumePath = "/hello/world"

func ListenAndServeGracefully(addr string, handler func(w http.ResponseWriter, r *http.Request)) {
	ListenAndServeGracefullyWithHandler(addr, http.HandlerFunc(handler))
}

func ListenAndServeGracefullyWithHandler(addr string, handler http.Handler) {
	server := pkgnet.NewServer(addr, handler)
	go server.ListenAndServe()
	<-signals.SetupSignalHandler()
	server.Shutdown(context.Background())
}

func ListenAndServeTLSGracefully(cert, key, addr string, handler func(w http.ResponseWriter, r *http.Request)) {
	panic("no TLS here")
}

func ListenAndServeTLSGracefullyWithHandler(cert, key, addr string, handler http.Handler) {
	panic("no TLS here")
}
`
