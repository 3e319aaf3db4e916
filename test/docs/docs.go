// Package docs reads the project's documents for the tests that keep them true: which
// commands they tell a reader to type, and where each is run.
package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Command is one command line in a document.
type Command struct {
	// File is the document's path from the root, Line the command's in it.
	File string
	Line int
	Text string
	// Output is what a transcript shows after it.
	Output []string
}

func (c Command) String() string { return fmt.Sprintf("%s:%d: %s", c.File, c.Line, c.Text) }

// Files returns the documents, by their paths from root.
func Files(root string) ([]string, error) {
	var files []string
	for _, pattern := range []string{"*.md", "docs/*.md", "samples/*/README.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			name, err := filepath.Rel(root, f)
			if err != nil {
				return nil, err
			}
			if !slices.Contains([]string{"CHANGELOG.md", "RATIONALE.md", "ARCHITECTURE.md"}, name) { // nothing in there is to be typed
				files = append(files, name)
			}
		}
	}
	slices.Sort(files)
	return files, nil
}

// programs are those that a command begins with. What begins otherwise in a block is
// a figure, settings or queries.
var programs = []string{"make", "source", "wisp", "kn", "kubectl", "curl", "helm", "docker", "zig", "cargo", "tinygo", "GOOS=wasip1"}

// Commands returns the command lines of a document: in transcripts (```console) those
// after "$ ", in blocks of code those that begin with a program's name.
func Commands(root, file string) ([]Command, error) {
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		return nil, err
	}
	var out []Command
	fence, fenced := "", false
	for i, line := range strings.Split(string(text), "\n") {
		if info, ok := strings.CutPrefix(line, "```"); ok {
			fence, fenced = info, !fenced
			continue
		}
		switch typed, prompt := strings.CutPrefix(line, "$ "); {
		case fenced && fence == "console" && prompt:
			out = append(out, Command{File: file, Line: i + 1, Text: typed})
		case fenced && fence == "console":
			if n := len(out); n > 0 && line != "" {
				out[n-1].Output = append(out[n-1].Output, line)
			}
		case fenced && fence == "sh", !fenced && strings.HasPrefix(line, "    "):
			if c := strings.TrimSpace(line); isCommand(c) {
				out = append(out, Command{File: file, Line: i + 1, Text: c})
			}
		}
	}
	return out, nil
}

func isCommand(line string) bool {
	program, _, _ := strings.Cut(line, " ")
	return slices.Contains(programs, program)
}

const sampled = "TestSamples does the same, without the race detector: compiling Go's modules with it takes minutes"

// Elsewhere are the commands that TestDocs, in test/e2e, doesn't run, by document and
// beginning, and why. All others are run by it, on a platform.
var Elsewhere = map[string]map[string]string{
	"README.md": {
		"make up":                  "starts the platform on the ports that a reader's may be on; the tests' is started by the same code, and TestMainJob does what it shows",
		"make test":                "runs all tests, this one too",
		"source .wisp/env":         "the tests have these variables already",
		"kubectl get pods --watch": "doesn't end; TestFirstRequest watches the pod go",
		"kubectl logs":             "TestMainJob follows the log until the line is there",
		"curl -sS -H":              "is answered with an error, as it should be; TestMainJob makes that call",
	},
	"CONTRIBUTING.md": {"make ": "CI runs test, conformance and image; check and golden write into the checkout, and bench takes an hour on a quiet machine"},
	"docs/functions.md": {
		"tinygo build": "TinyGo is neither a module of Go's proxy nor a package of Debian, PyPI or npm, from which the tests get their tools",
		"wisp run":     "serves until Ctrl-C; TestRun… in cmd/wisp do that to it",
	},
	"docs/gateway.md": {"kn service update": "takes a gateway with a shared host; TestSharedHost has one"},
	"docs/install.md": {
		"docker build":   "TestImage, in test/image, which takes root",
		"helm install":   "TestHelm does it, on a platform of its own and with the platform's values",
		"helm upgrade":   "TestHelm",
		"helm uninstall": "TestHelm",
	},
	"samples/greet/README.md": {
		"make samples":  "TestDocs has done it before",
		"wisp push":     sampled,
		"kubectl apply": sampled,
		"curl":          sampled,
	},
	"samples/hello/README.md": {"make samples": "TestDocs has done it before"},
	"samples/jq/README.md": {
		"make samples":  "TestDocs has done it before",
		"wisp push":     sampled,
		"kubectl apply": sampled,
		"curl":          sampled,
	},
	"samples/notes/README.md": {
		"make samples":  "TestDocs has done it before",
		"wisp push":     sampled,
		"kubectl apply": sampled,
		"curl":          sampled,
	},
	"samples/sort/README.md": {
		"make samples":     "TestDocs has done it before",
		"source .wisp/env": "the tests have these variables already",
	},
	"samples/words/README.md": {
		"make samples":  "TestDocs has done it before",
		"wisp push":     sampled,
		"kubectl apply": sampled,
		"curl":          sampled,
	},
}

// Where returns why a command isn't run by TestDocs, or false.
func Where(c Command) (reason string, ok bool) {
	for beginning, reason := range Elsewhere[c.File] {
		if strings.HasPrefix(c.Text, beginning) {
			return reason, true
		}
	}
	return "", false
}
