// Package local is a node without a cluster: it runs functions on this machine
// for the people who write them. `wisp run` serves one on localhost, `wisp inspect`
// says what a module or image is, and `wisp push` asks it whether a node would run
// what is about to be pushed.
//
// It has nothing of its own that a node has too: images go through the node's
// store, modules are metered, compiled and tried by the node's runtime, a Service
// becomes a pod by Knative's own code and a container by the provider's, and a
// request takes the node's way, activator, queue-proxy, sandbox. What works here
// works there, and what a node refuses is refused here with the same words.
package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.uber.org/zap"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/runtime"
	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/sandbox"
)

// Config is what Open needs.
type Config struct {
	// Compiler is the command that compiles modules; see runtime.Config.
	Compiler []string
	// InsecureRegistries are registry hosts reached by plain HTTP.
	InsecureRegistries []string
	// Log takes what a node would log. Required.
	Log *zap.SugaredLogger
}

// Machine is this machine as a node. It is safe for concurrent use.
type Machine struct {
	dir     string
	log     *zap.SugaredLogger
	runtime *runtime.Runtime
}

// Open returns a Machine with empty stores, with a node's default bounds. The
// caller closes it.
func Open(cfg Config) (*Machine, error) {
	dir, err := os.MkdirTemp("", "wisp-")
	if err != nil {
		return nil, fmt.Errorf("open local runtime: %w", err)
	}
	node := config.DefaultNode()
	r, err := runtime.New(runtime.Config{
		Compiler:           cfg.Compiler,
		DataDir:            dir,
		Guest:              node.Guest,
		ImageStore:         node.ImageStore.Value(),
		InsecureRegistries: cfg.InsecureRegistries,
		Log:                cfg.Log,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open local runtime: %w", err), os.RemoveAll(dir))
	}
	return &Machine{dir: dir, log: cfg.Log, runtime: r}, nil
}

// Close stops what runs and removes the stores.
func (m *Machine) Close() error {
	now, cancel := context.WithCancel(context.Background())
	cancel() // whoever wanted requests to end has waited for them
	return errors.Join(m.runtime.Close(now), os.RemoveAll(m.dir))
}

// Find returns the image that what names: a file with a module, as an image with
// nothing else, or a reference, pulled with the credentials of this process's user.
func (m *Machine) Find(ctx context.Context, what string) (oci.Image, error) {
	if IsFile(what) {
		module, err := os.ReadFile(what)
		if err != nil {
			return oci.Image{}, fmt.Errorf("read module: %w", err)
		}
		return m.Import(oci.PushConfig{Module: module, FileName: filepath.Base(what)})
	}
	return m.runtime.Pull(ctx, oci.Request{Reference: what, Own: true})
}

// IsFile is whether what names a file rather than an image: there is one of that
// name, or the name looks like nothing else.
func IsFile(what string) bool {
	info, err := os.Stat(what)
	return err == nil && info.Mode().IsRegular() || strings.HasSuffix(what, ".wasm") || strings.HasPrefix(what, "./") || filepath.IsAbs(what)
}

// Import puts the image that cfg describes into the stores, as if it had been
// pushed and pulled.
func (m *Machine) Import(cfg oci.PushConfig) (oci.Image, error) {
	image, err := oci.Build(cfg)
	if err != nil {
		return oci.Image{}, err
	}
	return m.runtime.Import(image)
}

// Try does with the image what a node does before a container counts as started:
// the module is metered, compiled, linked and tried. abi is the container's
// choice, empty for the image's own. An error is what the node would say.
func (m *Machine) Try(ctx context.Context, image oci.Image, abi string) error {
	s, err := m.runtime.Start(ctx, sandbox.Spec{
		ID:     image.FileName(),
		Image:  image.Digest,
		Module: image.ModuleDigest,
		Argv0:  image.FileName(),
		Args:   image.Args,
		Env:    image.Env,
		Root:   image.Root,
		ABI:    abiOf(image, abi),
	})
	if err != nil {
		return err
	}
	return s.Close(ctx)
}

// abiOf is how a function of the image is called, if its container says abi.
func abiOf(image oci.Image, abi string) string {
	return cmp.Or(abi, image.Labels[config.ABIAnnotation], guest.ABICGI)
}
