package platform

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/wisp-serving/wisp/test/platform/stack"
)

// dumpLines is how much of each log a failed test shows.
const dumpLines = 40

// dump logs what may tell why a test has failed: what is in the cluster, and the
// end of what each component has written since the test began.
func (p *Platform) dump(t testing.TB) {
	p.dumpKubectl(t, "get", "nodes,pods,deployments,ksvc,revisions,podautoscalers,king", "-A", "-o", "wide")
	for _, component := range append([]string{stack.Supervisor}, p.processes(t)...) {
		text, err := p.state.ReadLog(component, p.mark)
		if err != nil {
			t.Log(err)
		}
		if text == "" {
			continue
		}
		lines := strings.Split(strings.TrimSpace(text), "\n")
		t.Logf("--- the end of the log of %s\n%s", component, strings.Join(lines[max(0, len(lines)-dumpLines):], "\n"))
	}
}

// dumpNamespace logs the objects that tests deal with, whole, and what has
// happened to them.
func (p *Platform) dumpNamespace(t testing.TB, namespace string) {
	p.dumpKubectl(t, "get", "events", "-n", namespace, "--sort-by", ".metadata.creationTimestamp")
	p.dumpKubectl(t, "get", "pods,jobs,deployments,ksvc,revisions,podautoscalers,king", "-n", namespace, "-o", "yaml")
}

func (p *Platform) processes(t testing.TB) []string {
	var names []string
	all, err := p.observer.Status()
	if err != nil {
		t.Log(err)
	}
	for _, s := range all {
		if s.Log != "" {
			names = append(names, s.Name)
		}
	}
	return names
}

// dumpTimeout is how long a failed test waits for an API server that may be
// what has failed.
const dumpTimeout = 20 * time.Second

func (p *Platform) dumpKubectl(t testing.TB, args ...string) {
	// Not t.Context(): it has ended when a test cleans up.
	ctx, cancel := context.WithTimeout(context.Background(), dumpTimeout)
	defer cancel()
	out, err := p.Command(ctx, "kubectl", args...).CombinedOutput()
	if err != nil {
		t.Logf("--- kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
		return
	}
	t.Logf("--- kubectl %s\n%s", strings.Join(args, " "), out)
}
