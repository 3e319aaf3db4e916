package conformance

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// outcome is how one test of a suite ended.
type outcome struct {
	// verdict is PASS, FAIL or SKIP; empty if the test never ended.
	verdict string
	took    string
	// output is what the test and its subtests logged.
	output strings.Builder
}

// outcomes are those of a suite's tests, by full name.
type outcomes map[string]*outcome

// check fails t unless the suite's test of that name has passed.
func (o outcomes) check(t *testing.T, name string) {
	t.Helper()
	switch got := o[name]; {
	case got == nil || got.verdict == "":
		t.Errorf("%s was not run to its end", name)
	case got.verdict != "PASS":
		t.Errorf("%s: %s after %s\n%s", name, got.verdict, got.took, got.output.String())
	default:
		t.Logf("passed in %s", got.took)
	}
}

// runSuite runs a suite's test binary to its end and returns how its tests
// ended. Its whole output goes to the file log.
func runSuite(t *testing.T, binary, log string, args ...string) outcomes {
	t.Helper()
	file, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.CommandContext(t.Context(), binary, append([]string{"-test.v", "-test.count=1", suiteTimeout(t)}, args...)...)
	cmd.Env = append(os.Environ(),
		"SYSTEM_NAMESPACE=knative-serving",
		// The Service whose status says where Envoy is.
		"GATEWAY_OVERRIDE="+gatewayService, "GATEWAY_NAMESPACE_OVERRIDE="+gatewayNamespace)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	// The kernel's "parent" is the thread that forked; this one stays.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		t.Fatalf("run %s: %v", binary, err)
	}
	results, err := parse(io.TeeReader(stdout, file))
	if err != nil {
		t.Errorf("read the output of %s: %v", binary, err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %s: %v", binary, err)
	}
	// A failure that no test is to blame for, such as a panic.
	if exit != nil && !results.failed() {
		t.Errorf("%s: %v; its output is in %s", binary, exit, log)
	}
	return results
}

// suiteTimeout has a suite give up while there is time left to say why.
func suiteTimeout(t *testing.T) string {
	deadline, ok := t.Deadline()
	if !ok {
		return "-test.timeout=0"
	}
	return "-test.timeout=" + (time.Until(deadline) - time.Minute).Round(time.Second).String()
}

func (o outcomes) failed() bool {
	for _, result := range o {
		if result.verdict == "FAIL" {
			return true
		}
	}
	return false
}

var (
	// verdictLine ends a test: "    --- PASS: TestX/y (1.20s)".
	verdictLine = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \((\S+)\)$`)
	// nameLine says whose output follows: "=== NAME  TestX/y".
	nameLine = regexp.MustCompile(`^=== (?:RUN|NAME|CONT|PAUSE)\s+(\S+)$`)
)

// parse reads what a test binary prints with -test.v.
func parse(r io.Reader) (outcomes, error) {
	results := outcomes{}
	of := func(name string) *outcome {
		if results[name] == nil {
			results[name] = &outcome{}
		}
		return results[name]
	}
	current := ""
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if m := nameLine.FindStringSubmatch(line); m != nil {
			current = m[1]
			continue
		}
		if m := verdictLine.FindStringSubmatch(line); m != nil {
			of(m[2]).verdict, of(m[2]).took = m[1], m[3]
			continue
		}
		// A test's output is also that of the tests around it.
		for name := current; name != ""; name, _ = cutLast(name, "/") {
			of(name).output.WriteString(line + "\n")
		}
	}
	return results, lines.Err()
}

// cutLast cuts text at the last sep. Without one, nothing is before it.
func cutLast(text, sep string) (before, after string) {
	i := strings.LastIndex(text, sep)
	if i < 0 {
		return "", text
	}
	return text[:i], text[i+len(sep):]
}
