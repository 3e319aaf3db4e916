package platform

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/wisp-serving/wisp/test/platform/stack"
)

// Main runs a package's tests on one platform, which [Start] then gives to each
// of them, and returns the exit status. Where `platform run` has started one for
// several packages already, it is that. Benchmarks get wisp as users do, without
// the race detector.
func Main(m *testing.M, o Options) int {
	if os.Getenv(stack.StateEnv) != "" {
		return m.Run()
	}
	flag.Parse()
	if f := flag.Lookup("test.bench"); f != nil && f.Value.String() != "" {
		o.WithoutRace = true
	}
	ctx := context.Background()
	cfg, err := configure(ctx, o)
	if err != nil {
		return fail(err)
	}
	status := 0
	err = during(ctx, cfg, func(context.Context) error {
		if err := os.Setenv(stack.StateEnv, cfg.State.Dir); err != nil {
			return err
		}
		status = m.Run()
		return nil
	})
	if err != nil {
		return fail(err)
	}
	return status
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "run the tests' platform:", err)
	return 1
}
