package platform

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Command returns one of the platform's programs (kubectl, kn, helm, envoy, wisp) to
// be run as the administrator. The caller runs it.
func (p *Platform) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.state.Bin(program), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+p.Kubeconfig)
	return cmd
}

// Kubectl runs kubectl and returns what it printed. The test fails if it does.
func (p *Platform) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	return p.run(t, "kubectl", args)
}

// Kn runs kn and returns what it printed. The test fails if it does.
func (p *Platform) Kn(t testing.TB, args ...string) string {
	t.Helper()
	return p.run(t, "kn", args)
}

// Wisp runs wisp and returns what it printed. The test fails if it does.
func (p *Platform) Wisp(t testing.TB, args ...string) string {
	t.Helper()
	return p.run(t, "wisp", args)
}

// Helm runs helm and returns what it printed. The test fails if it does.
func (p *Platform) Helm(t testing.TB, args ...string) string {
	t.Helper()
	return p.run(t, "helm", args)
}

func (p *Platform) run(t testing.TB, program string, args []string) string {
	t.Helper()
	// Not t.Context(): it has ended when a test cleans up.
	ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
	defer cancel()
	cmd := p.Command(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", program, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}
