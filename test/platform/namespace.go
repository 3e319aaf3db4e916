package platform

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Namespace makes a namespace in which pods can run, and deletes it when t ends.
// If t has failed by then, what is in it is logged.
func (p *Platform) Namespace(t testing.TB) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: namespacePrefix(t.Name())}}
	if err := p.Client.Create(t.Context(), ns); err != nil {
		t.Fatalf("make a namespace: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			p.dumpNamespace(t, ns.Name)
		}
		// What runs in it ends in its own time.
		ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
		defer cancel()
		if err := p.Client.Delete(ctx, ns); err != nil {
			t.Errorf("delete namespace %s: %v", ns.Name, err)
		}
	})
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: "default"}}
	WaitFor(t, p, account, "be there for pods", func(*corev1.ServiceAccount) bool { return true })
	return ns.Name
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// namespacePrefix makes a namespace's name of a test's, to which Kubernetes adds
// five letters. It is short enough to be part of a DNS label with a service's.
func namespacePrefix(test string) string {
	const most = 24
	name := notInNames.ReplaceAllString(strings.ToLower(strings.TrimPrefix(test, "Test")), "-")
	return fmt.Sprintf("t-%s-", strings.Trim(name[:min(len(name), most)], "-"))
}
