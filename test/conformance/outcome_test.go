package conformance

import (
	"strings"
	"testing"
)

// TestParse reads what Go's own test runner prints of nested and parallel tests.
func TestParse(t *testing.T) {
	got, err := parse(strings.NewReader(`=== RUN   TestSuite
=== RUN   TestSuite/one
=== PAUSE TestSuite/one
=== RUN   TestSuite/one/deep
    one.go:1: deep down
=== RUN   TestSuite/two
    two.go:2: two says
=== CONT  TestSuite/one
    one.go:3: one says
=== RUN   TestSuite/hung
--- FAIL: TestSuite (2.50s)
    --- PASS: TestSuite/one (0.25s)
        --- PASS: TestSuite/one/deep (0.10s)
    --- FAIL: TestSuite/two (1.00s)
    --- SKIP: TestSuite/three (0.00s)
FAIL
`))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct{ verdict, took, output string }{
		"TestSuite/one":      {"PASS", "0.25s", "deep down\none says"},
		"TestSuite/one/deep": {"PASS", "0.10s", "deep down"},
		"TestSuite/two":      {"FAIL", "1.00s", "two says"},
		"TestSuite/three":    {"SKIP", "0.00s", ""},
		"TestSuite/hung":     {"", "", ""},
	} {
		result := got[name]
		if result == nil {
			result = &outcome{}
		}
		if result.verdict != want.verdict || result.took != want.took {
			t.Errorf("%s: got %q after %q, want %q after %q", name, result.verdict, result.took, want.verdict, want.took)
		}
		for line := range strings.Lines(want.output) {
			if line = strings.TrimSpace(line); !strings.Contains(result.output.String(), line) {
				t.Errorf("%s: its output %q lacks %q", name, result.output.String(), line)
			}
		}
	}
	if !got.failed() {
		t.Error("failed = false of a suite with a failed test")
	}
}
