// Package conformance runs Knative's own conformance suites against Wisp, and what
// else needs a network as a cluster has it: several gateways.
//
// They need pods with addresses that the API server takes for a pod's, which it
// does not do for loopback, and Envoy on ports 80 and 443. So the tests run in a
// network namespace of their own; see package netns for who may make one.
package conformance

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"testing"

	"github.com/wisp-serving/wisp/test/conformance/netns"
	"github.com/wisp-serving/wisp/test/guests"
	"github.com/wisp-serving/wisp/test/platform/tools"
)

// The pod network, divided by how an address comes to be there.
var (
	// localPods are addresses of the tests' own namespace: Envoy's, and those
	// that a wasm node gives to its pods.
	localPods = netip.MustParsePrefix("10.244.128.0/17")
	// nativePods are addresses of pods that have a namespace each, and the
	// tests' own on the bridge to them.
	nativePods = netip.MustParsePrefix("10.244.0.1/17")
)

// wasmPods is the part of localPods that a wasm node has.
const wasmPods = "10.244.128.0/18"

// Envoy's addresses.
const (
	externalAddress = "10.244.255.1"
	internalAddress = "10.244.255.2"
)

// Made before any test: Knative's suite and its images as programs, the images
// as modules, but for those that no guest can be, and what leads to native pods.
var (
	suite   tools.KIngress
	modules map[string]string
	bridge  *netns.Bridge
	// envoy and wisp are programs; wisp has the race detector in it.
	envoy, wisp string
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		code = 1
	}
	os.Exit(code)
}

// run runs the tests in a namespace. What they need is built before, while
// there is still a network.
func run(m *testing.M) (int, error) {
	err := build()
	if err != nil {
		return 0, err
	}
	if !netns.Inside() {
		return netns.Exec()
	}
	if err := netns.Up(localPods); err != nil {
		return 0, err
	}
	if bridge, err = netns.NewBridge(nativePods); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// build makes what is missing: on an empty cache that takes minutes.
func build() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	root, err := tools.FindRoot()
	if err != nil {
		return err
	}
	cache, err := tools.CacheDir()
	if err != nil {
		return err
	}
	b := &tools.Builder{Root: root, Cache: cache, Report: func(line string) { fmt.Fprintln(os.Stderr, line) }}
	programs, err := b.Build(ctx)
	if err != nil {
		return err
	}
	envoy = programs.Envoy
	if _, err := b.Guest(ctx, filepath.Join(root, "samples/sort/sort.c")); err != nil {
		return err
	}
	if _, err := b.Wisp(ctx, false); err != nil {
		return err
	}
	if wisp, err = b.Wisp(ctx, true); err != nil {
		return err
	}
	if suite, err = b.KIngress(ctx); err != nil {
		return err
	}
	images := slices.DeleteFunc(slices.Sorted(maps.Keys(suite.Images)), func(image string) bool { return image == "httpproxy" }) // it dials out
	modules, err = compile(ctx, "networking/", images)
	return err
}

// compile compiles images of one of Knative's modules to wasm.
func compile(ctx context.Context, module string, images []string) (map[string]string, error) {
	compiled := map[string]string{}
	for _, image := range images {
		var err error
		if compiled[image], err = guests.Knative(ctx, module+image); err != nil {
			return nil, err
		}
	}
	return compiled, nil
}
