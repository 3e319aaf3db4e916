package tools

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// module is one Go module of tools. Its programs are built into a folder whose
// name holds a hash of all that goes into them.
type module struct {
	dir     string // the module's source
	out     string // the programs' folder
	ldflags string
	patches []patch
}

type modules struct{ kubernetes, knative, kn, helm *module }

func (b *Builder) modules() (modules, error) {
	var m modules
	var err error
	if m.kubernetes, err = b.module("kubernetes", "k8s.io/kubernetes", kubernetesFlags, nil); err != nil {
		return m, err
	}
	if m.knative, err = b.module("knative", "", nil, listenOnLoopback); err != nil {
		return m, err
	}
	if m.kn, err = b.module("kn", "knative.dev/client", knFlags, nil); err != nil {
		return m, err
	}
	m.helm, err = b.module("helm", "helm.sh/helm/v3", helmFlags, nil)
	return m, err
}

// kubernetesFlags stamps the version in: without it the API server says v0.0.0,
// which Knative refuses to work with.
func kubernetesFlags(version string) string {
	parts := strings.Split(strings.TrimPrefix(version, "v"), ".")
	const pkg = "k8s.io/component-base/version"
	return fmt.Sprintf("-X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s", pkg, version, parts[0], parts[1])
}

func knFlags(version string) string {
	return "-X knative.dev/client/pkg/kn/commands/version.Version=" + version
}

func helmFlags(version string) string {
	return "-X helm.sh/helm/v3/internal/version.version=" + version
}

// module reads one module of tools. What the linker is told follows from the
// version of its dependency stamped.
func (b *Builder) module(name, stamped string, flags func(version string) string, patches []patch) (*module, error) {
	m := &module{
		patches: patches,
		dir:     filepath.Join(b.Root, "test/platform/tools", name),
		ldflags: "-s -w",
	}
	goMod, err := os.ReadFile(filepath.Join(m.dir, "go.mod"))
	if err != nil {
		return nil, err
	}
	goSum, err := os.ReadFile(filepath.Join(m.dir, "go.sum"))
	if err != nil {
		return nil, err
	}
	sources, err := m.sources()
	if err != nil {
		return nil, err
	}
	if flags != nil {
		found := regexp.MustCompile(`(?m)^(?:require)?\s+` + regexp.QuoteMeta(stamped) + ` (v[0-9]+\.[0-9]+\.\S+)`).FindSubmatch(goMod)
		if found == nil {
			return nil, fmt.Errorf("%s/go.mod: requires no version of %s", m.dir, stamped)
		}
		m.ldflags += " " + flags(string(found[1]))
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n%s\n%v\n%s %s %s\n", goMod, goSum, m.ldflags, patches, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	h.Write(sources)
	m.out = filepath.Join(b.Cache, fmt.Sprintf("%s-%x", name, h.Sum(nil)[:6]))
	return m, nil
}

func (m *module) file(program string) string { return filepath.Join(m.out, program) }

func (m *module) step(program, pkg string) step {
	return step{program, m.file(program), func(ctx context.Context) error { return m.build(ctx, program, pkg) }}
}

func (m *module) build(ctx context.Context, program, pkg string) error {
	if err := os.MkdirAll(m.out, 0o700); err != nil {
		return err
	}
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", m.ldflags}
	if len(m.patches) > 0 {
		modfile, err := m.patchedModfile(ctx)
		if err != nil {
			return err
		}
		args = append(args, "-modfile", modfile)
	}
	tmp := m.file("." + program + ".tmp")
	if _, err := m.goCommand(ctx, append(args, "-o", tmp, pkg)...); err != nil {
		return err
	}
	return os.Rename(tmp, m.file(program))
}

func (m *module) goCommand(ctx context.Context, args ...string) (string, error) {
	return output(ctx, m.dir, []string{"CGO_ENABLED=0", "GOWORK=off"}, "go", args...)
}

// dirs returns the folders that hold the source of the modules at paths, as m
// requires them.
func (m *module) dirs(ctx context.Context, paths ...string) ([]string, error) {
	if _, err := m.goCommand(ctx, append([]string{"mod", "download"}, paths...)...); err != nil {
		return nil, err
	}
	out, err := m.goCommand(ctx, append([]string{"list", "-m", "-f", "{{.Dir}}"}, paths...)...)
	if err != nil {
		return nil, err
	}
	return strings.Split(out, "\n"), nil
}

// manifestModules are the modules whose config folders hold Knative's
// manifests, by the names that their copies get.
var manifestModules = map[string]string{
	"serving":    "knative.dev/serving",
	"networking": "knative.dev/networking",
	"caching":    "knative.dev/caching",
}

// manifestsStep copies the manifests beside the programs, so that starting a
// platform needs no Go.
func (m *module) manifestsStep() step {
	const name = "manifests"
	return step{"knative manifests", m.file(name), func(ctx context.Context) error {
		tmp := m.file("." + name + ".tmp")
		if err := os.RemoveAll(tmp); err != nil {
			return err
		}
		for short, path := range manifestModules {
			dirs, err := m.dirs(ctx, path)
			if err != nil {
				return err
			}
			if err := os.CopyFS(filepath.Join(tmp, short, "config"), os.DirFS(filepath.Join(dirs[0], "config"))); err != nil {
				return err
			}
		}
		return os.Rename(tmp, m.file(name))
	}}
}
