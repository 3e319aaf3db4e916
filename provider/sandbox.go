package provider

import (
	"cmp"
	"context"
	"strings"

	"go.uber.org/zap"

	"github.com/wisp-serving/wisp/config"
	"github.com/wisp-serving/wisp/provider/podspec"
	"github.com/wisp-serving/wisp/runtime/guest"
	"github.com/wisp-serving/wisp/runtime/oci"
	"github.com/wisp-serving/wisp/runtime/sandbox"
)

// imageRequest says which image, and which module of it, the container wants.
func imageRequest(c podspec.Container, resolved podspec.Resolved, secrets [][]byte) oci.Request {
	request := oci.Request{Reference: c.Image, Policy: oci.Policy(c.ImagePullPolicy), Secrets: secrets}
	if len(resolved.Command) > 0 {
		request.Command = resolved.Command[0]
	}
	return request
}

// sandboxSpec says how to run image as the container of the pod wants it.
func sandboxSpec(id string, image oci.Image, pod podspec.Spec, c podspec.Container, resolved podspec.Resolved) sandbox.Spec {
	argv0, args := commandLine(image, resolved)
	return sandbox.Spec{
		ID:     id,
		Image:  image.Digest,
		Module: image.ModuleDigest,
		Root:   image.Root,
		Argv0:  argv0,
		Args:   args,
		Env:    environment(image, c, resolved),
		ABI:    abi(image, pod),
		Ports:  ports(c, pod.Proxy.Readiness),
		H2C:    len(c.Ports) > 0 && c.Ports[0].Name == "h2c",
		// A quantity that isn't there is 0, which leaves it to the node.
		Memory:     c.Resources.Limits.Memory().Value(),
		CPURequest: c.Resources.Requests.Cpu().MilliValue(),
		CPULimit:   c.Resources.Limits.Cpu().MilliValue(),
	}
}

// abi is how requests reach the guest: by CGI unless the pod or the image says
// otherwise. A pod that is no revision's has none, but for those that it listens
// for.
func abi(image oci.Image, pod podspec.Spec) string {
	chosen := cmp.Or(pod.ABI, image.Labels[config.ABIAnnotation])
	switch {
	case !pod.IsRevision() && answersRequests(chosen):
		return guest.ABICommand
	case pod.IsRevision() && chosen == "":
		return guest.ABICGI
	}
	return chosen
}

// answersRequests is whether each request gets an instance of its own.
func answersRequests(abi string) bool { return abi == guest.ABIArgv || abi == guest.ABICGI }

// commandLine returns the guest's arguments, by the rules of ENTRYPOINT and CMD.
// A command has chosen the image's module already.
func commandLine(image oci.Image, resolved podspec.Resolved) (argv0 string, args []string) {
	switch {
	case len(resolved.Command) > 0:
		return resolved.Command[0], append(resolved.Command[1:len(resolved.Command):len(resolved.Command)], resolved.Args...)
	case resolved.Args != nil:
		return image.FileName(), resolved.Args
	default:
		return image.FileName(), image.Args
	}
}

// environment returns the guest's variables: what a container runtime sets, the
// image's, the pod's. Of two with one name, the last holds.
func environment(image oci.Image, c podspec.Container, resolved podspec.Resolved) []string {
	env := []string{"PWD=" + cmp.Or(c.WorkingDir, image.WorkingDir, "/")}
	env = append(env, image.Env...)
	return append(env, resolved.Env...)
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
