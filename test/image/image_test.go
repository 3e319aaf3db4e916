// Package image builds the Dockerfile and tries what comes out, by typing what
// docs/install.md says. Buildah is the docker, and the tests' own process the registry.
//
// It takes root: the stages run in a chroot, and so does what was built.
package image

import (
	"bytes"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/wisp-serving/wisp/test/docs"
	"github.com/wisp-serving/wisp/test/platform/registry"
)

const root = "../.."

// nobody is the user of the image, the one that the chart's pods run as.
const nobody = 65532

// mostBytes bounds the compressed image: it holds one program.
const mostBytes = 64 << 20

// TestImage builds the image and pushes it as a reader of docs/install.md would, and
// runs it with nothing of this machine in reach.
func TestImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("building an image takes root")
	}
	b := newBuildah(t)
	b.makeGolang()
	host := serveRegistry(t)
	b.types("docs/install.md", "docker ", "REGISTRY", host)

	image, err := crane.Pull(host+"/wisp:0.1.0", crane.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(image); err != nil {
		t.Errorf("what was pushed: %v", err)
	}
	expectConfig(t, image)
	expectSize(t, image)
	dir := unpack(t, image)
	expectFiles(t, dir)
	expectRuns(t, dir)
}

func expectConfig(t *testing.T, image v1.Image) {
	t.Helper()
	file, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c := file.Config; c.User != "65532:65532" || !slices.Equal(c.Entrypoint, []string{"/wisp"}) || len(c.Cmd) > 0 {
		t.Errorf("the image runs %q %q as %q, want /wisp as 65532:65532", c.Entrypoint, c.Cmd, c.User)
	}
}

func expectSize(t *testing.T, image v1.Image) {
	t.Helper()
	manifest, err := image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, l := range manifest.Layers {
		size += l.Size
	}
	t.Logf("the image is %.1f MiB", float64(size)/(1<<20))
	if size > mostBytes {
		t.Errorf("the image is %d bytes, want at most %d", size, mostBytes)
	}
}

// expectFiles holds what the image is made of against what it is for.
func expectFiles(t *testing.T, dir string) {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, strings.TrimPrefix(path, dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	const authorities = "/etc/ssl/certs/ca-certificates.crt"
	if !slices.Equal(files, []string{authorities, "/wisp"}) {
		t.Errorf("the image holds %q, want wisp and %s", files, authorities)
	}
	text, err := os.ReadFile(filepath.Join(dir, authorities))
	if err != nil {
		t.Fatal(err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(text) {
		t.Error("there is no authority by which a registry could be known")
	}
}

// expectRuns starts wisp with the image as its root, as the image's user.
func expectRuns(t *testing.T, dir string) {
	t.Helper()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--version"}, "wisp version "},
		{[]string{"node", "defaults"}, "healthAddress:"},
		{[]string{"gateway", "--help"}, "Usage:"},
	} {
		cmd := exec.CommandContext(t.Context(), "/wisp", tt.args...)
		cmd.Dir, cmd.Env = "/", []string{}
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir, Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), tt.want) {
			t.Errorf("wisp %s in the image: %v, %q; want %q", strings.Join(tt.args, " "), err, out, tt.want)
		}
	}
}

// unpack lays an image's files out in a folder that its user can read.
func unpack(t *testing.T, image v1.Image) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wisp-image-") // t.TempDir's parents are root's alone
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var files bytes.Buffer
	if err := crane.Export(image, &files); err != nil {
		t.Fatal(err)
	}
	tar := exec.CommandContext(t.Context(), "tar", "-x", "-C", dir)
	tar.Stdin = &files
	if out, err := tar.CombinedOutput(); err != nil {
		t.Fatalf("unpack the image: %v\n%s", err, out)
	}
	return dir
}

// serveRegistry serves an empty registry on loopback, and returns its host and port.
func serveRegistry(t *testing.T) string {
	t.Helper()
	handler, err := registry.New(t.TempDir(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// buildah is Debian's, with images of its own.
type buildah struct {
	t   *testing.T
	bin string // a folder with a `docker`
	env []string
}

// shim makes buildah a docker. The Go caches of this machine are there, by their own
// paths, while a stage runs, or each run would load and compile every module anew. An
// image that isn't here is not asked for elsewhere.
const shim = `#!/bin/sh
set -eu
command=$1; shift
case $command in
build) exec buildah $STORE build --isolation chroot --pull-never --volume "$GOMODCACHE:$GOMODCACHE" --volume "$GOCACHE:$GOCACHE" "$@" ;;
push) exec buildah $STORE push --tls-verify=false "$@" ;;
*) echo "docker $command: the tests' docker can't" >&2; exit 1 ;;
esac
`

func newBuildah(t *testing.T) *buildah {
	t.Helper()
	if _, err := exec.LookPath("buildah"); err != nil {
		t.Fatal("this takes buildah, Debian's package of that name")
	}
	dir := t.TempDir()
	b := &buildah{t: t, bin: filepath.Join(dir, "bin")}
	short := filepath.Join(dir, "registries.conf") // golang is docker.io's, as it is to docker
	err := errors.Join(
		os.MkdirAll(b.bin, 0o700),
		os.WriteFile(filepath.Join(b.bin, "docker"), []byte(shim), 0o700),
		os.WriteFile(short, []byte("unqualified-search-registries = [\"docker.io\"]\n"), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	b.env = append(os.Environ(),
		"PATH="+b.bin+":"+os.Getenv("PATH"),
		"STORE=--storage-driver vfs --root "+filepath.Join(dir, "images")+" --runroot "+filepath.Join(dir, "run"),
		"CONTAINERS_REGISTRIES_CONF="+short,
		"GOMODCACHE="+b.shell("go env GOMODCACHE"),
		"GOCACHE="+b.shell("go env GOCACHE"),
	)
	return b
}

// makeGolang makes the image that the Dockerfile builds with, of this machine's Go, shell
// and authorities. No registry is asked for it.
func (b *buildah) makeGolang() {
	b.t.Helper()
	b.shell(`
		container=$(buildah $STORE from scratch)
		buildah $STORE copy $container "$(go env GOROOT)" /usr/local/go
		buildah $STORE copy $container /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
		buildah $STORE copy $container "$(mktemp -d)" /tmp
		for file in /bin/sh $(ldd /bin/sh | grep -o '/[^ ]*'); do buildah $STORE copy $container "$(realpath $file)" $file; done
		buildah $STORE config --env PATH=/usr/local/go/bin:/bin --env GOTOOLCHAIN=local \
			--env GOPATH=/go --env GOMODCACHE="$GOMODCACHE" --env GOCACHE="$GOCACHE" $container
		buildah $STORE commit --rm $container docker.io/library/golang:1.26`)
}

// types runs the commands of a document that begin so, with a word of theirs replaced.
func (b *buildah) types(file, beginning, word, by string) {
	b.t.Helper()
	commands, err := docs.Commands(root, file)
	if err != nil {
		b.t.Fatal(err)
	}
	typed := 0
	for _, c := range commands {
		if strings.HasPrefix(c.Text, beginning) {
			typed++
			b.t.Log(b.shell(strings.ReplaceAll(c.Text, word, by)))
		}
	}
	if typed == 0 {
		b.t.Fatalf("%s has no command that begins with %q", file, beginning)
	}
}

// shell runs commands in the checkout's root and returns what they print.
func (b *buildah) shell(commands string) string {
	b.t.Helper()
	cmd := exec.CommandContext(b.t.Context(), "bash", "-euo", "pipefail", "-c", commands)
	cmd.Dir, cmd.Env = root, b.env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		b.t.Fatalf("%s: %v\n%s%s", commands, err, stdout.String(), stderr.String())
	}
	return strings.TrimSpace(stdout.String())
}
