package e2e

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/wisp-serving/wisp/test/platform"
)

// TestMainJob is what Wisp is for, by the commands that a user types: from a
// module to a URL, to zero and back, a second revision beside the first, and its
// log. `make up` shows the same.
func TestMainJob(t *testing.T) {
	p := platform.Start(t, platform.Options{})
	service := createSort(t, p)
	expect(t, p, service, numbers, http.StatusOK, sorted)

	t.Run("from zero", func(t *testing.T) {
		p.Kubectl(t, "wait", "pods", "-n", service.Namespace, "--all", "--for", "delete", "--timeout", "2m")
		if pods := p.Kubectl(t, "get", "pods", "-n", service.Namespace, "--output", "name"); pods != "" {
			t.Fatalf("pods are left: %s", pods)
		}
		expect(t, p, service, numbers, http.StatusOK, sorted)
	})

	const second = "0 " // its own argument, which is sorted too
	sortedToo := strings.Replace(sorted, "-10000 ", "-10000 "+second, 1)
	p.Kn(t, "service", "update", "sort", "-n", service.Namespace, "--arg", "0",
		"--tag", "sort-00001=old", "--tag", "@latest=new", "--traffic", "sort-00001=50", "--traffic", "@latest=50")
	host := service.Status.URL.Host
	t.Run("by tag", func(t *testing.T) {
		for range 10 {
			for tag, want := range map[string]string{"old-": sorted, "new-": sortedToo} {
				if status, got := call(t, p, tag+host, numbers); status != http.StatusOK || strings.TrimSpace(got) != want {
					t.Errorf("%s: got %d %q, want %q", tag, status, got, want)
				}
			}
		}
	})
	t.Run("half and half", func(t *testing.T) {
		// That 100 fair coins fall on one side 20 times or less comes once in a billion.
		const calls, least = 100, 21
		answers := map[string]int{}
		for range calls {
			status, got := call(t, p, host, numbers)
			if status != http.StatusOK {
				t.Fatalf("got %d %q", status, got)
			}
			answers[strings.TrimSpace(got)]++
		}
		if answers[sorted] < least || answers[sortedToo] < least || len(answers) != 2 {
			t.Errorf("got %v, want about 50 of each", answers)
		}
	})
	t.Run("logs", func(t *testing.T) {
		if status, got := call(t, p, "new-"+host, `{"args":["eight"]}`); status != http.StatusInternalServerError {
			t.Errorf("got %d %q, want 500", status, got)
		}
		selector := "serving.knative.dev/revision=sort-00002"
		p.Kubectl(t, "wait", "pods", "-n", service.Namespace, "--selector", selector, "--for", "condition=Ready", "--timeout", "2m")
		awaitLogLine(t, p, `"eight" not an integer`, "-n", service.Namespace, "--selector", selector, "--container", "user-container")
	})
}

// awaitLogLine follows a log by kubectl until it has a line with what in it.
func awaitLogLine(t *testing.T, p *platform.Platform, what string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := p.Command(ctx, "kubectl", append([]string{"logs", "--follow"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen []string
	found := false
	for lines := bufio.NewScanner(out); !found && lines.Scan(); {
		seen = append(seen, lines.Text())
		found = strings.Contains(lines.Text(), what)
	}
	cancel() // it follows until it is ended
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait()
	if !found {
		t.Errorf("the log has no line with %q, but %q; %s", what, seen, errs.String())
	}
}
