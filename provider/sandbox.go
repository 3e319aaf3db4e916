package provider

import (
	"context"
	"strings"

	"go.uber.org/zap"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/sandbox"
)

// sandboxSpec says how to run image as the pod wants it.
func sandboxSpec(id string, image oci.Image, spec podspec.Spec, log guestLog) sandbox.Spec {
	args := spec.Args
	if args == nil {
		args = image.Args
	}
	abi := spec.ABI
	if abi == "" {
		abi = image.Labels[config.ABIAnnotation]
	}
	return sandbox.Spec{
		ID:     id,
		Module: image.ModuleDigest,
		Argv0:  image.FileName(),
		Args:   args,
		// The pod's variables come last: of two with one name, the last holds.
		Env:    append(append([]string(nil), image.Env...), spec.Env...),
		ABI:    abi,
		Stdout: log,
		Stderr: log,
	}
}

// closeSandbox lets requests finish until ctx ends, then ends them: those that
// the router has sent, of which the sandbox may not know yet, until drained is
// closed.
func closeSandbox(ctx context.Context, drained <-chan struct{}, sb *sandbox.Sandbox, log *zap.SugaredLogger) {
	select {
	case <-drained:
	case <-ctx.Done():
	}
	if err := sb.Close(ctx); err != nil {
		log.Infow("running requests were cut off", "error", err)
	}
}

// guestLog writes a guest's lines to the node's log.
type guestLog struct{ log *zap.SugaredLogger }

// Write logs one line.
func (g guestLog) Write(line []byte) (int, error) {
	g.log.Infow("guest", "line", strings.TrimRight(string(line), "\n"))
	return len(line), nil
}
