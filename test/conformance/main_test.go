// Package conformance runs Knative's own conformance suites against Wisp.
//
// They need pods with addresses that the API server takes for a pod's, which it
// does not do for loopback, and Envoy on ports 80 and 443. So the tests run in a
// network namespace of their own; see package netns for who may make one.
package conformance

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"testing"

	"github.com/wisp-serving/wisp/test/conformance/netns"
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

// Envoy's addresses.
const (
	externalAddress = "10.244.255.1"
	internalAddress = "10.244.255.2"
)

// suite is what Knative's suite was built into, bridge what leads to native
// pods. Both are made before any test.
var (
	suite  tools.KIngress
	bridge *netns.Bridge
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
	var err error
	if suite, err = build(); err != nil {
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
func build() (tools.KIngress, error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	root, err := tools.FindRoot()
	if err != nil {
		return tools.KIngress{}, err
	}
	cache, err := tools.CacheDir()
	if err != nil {
		return tools.KIngress{}, err
	}
	b := &tools.Builder{Root: root, Cache: cache, Report: func(line string) { fmt.Fprintln(os.Stderr, line) }}
	if _, err := b.Build(ctx); err != nil {
		return tools.KIngress{}, err
	}
	if _, err := b.Guest(ctx, root+"/samples/sort/sort.c"); err != nil {
		return tools.KIngress{}, err
	}
	return b.KIngress(ctx)
}
