package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/wisp-serving/wisp/test/docs"
)

const root = "../.."

// TestElsewhere finds what is said of commands that are in no document any more.
func TestElsewhere(t *testing.T) {
	for file, beginnings := range docs.Elsewhere {
		commands, err := docs.Commands(root, file)
		if err != nil {
			t.Error(err)
		}
		for beginning := range beginnings {
			if !slices.ContainsFunc(commands, func(c docs.Command) bool { return strings.HasPrefix(c.Text, beginning) }) {
				t.Errorf("%s has no command that begins with %q", file, beginning)
			}
		}
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	noWord  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchor is how GitHub names a heading.
func anchor(heading string) string {
	return strings.ReplaceAll(noWord.ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}

// TestLinks follows each link within the project, to the heading.
func TestLinks(t *testing.T) {
	files, err := docs.Files(root)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, file := range append(files, "ARCHITECTURE.md", "CHANGELOG.md") {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			target := m[1]
			if strings.Contains(target, "://") {
				continue
			}
			found++
			path, part, _ := strings.Cut(target, "#")
			path = filepath.Join(root, filepath.Dir(file), path)
			if strings.HasPrefix(target, "#") {
				path = filepath.Join(root, file)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: link to %s: %v", file, target, err)
				continue
			}
			if part != "" && !hasHeading(t, path, part) {
				t.Errorf("%s: link to %s: there is no such heading", file, target)
			}
		}
	}
	if found == 0 {
		t.Error("found no link")
	}
}

func hasHeading(t *testing.T, path, part string) bool {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(heading.FindAllStringSubmatch(string(text), -1), func(m []string) bool { return anchor(m[1]) == part })
}

// TestNothingPrivate keeps links to public pages.
func TestNothingPrivate(t *testing.T) {
	files, err := docs.Files(root)
	if err != nil {
		t.Fatal(err)
	}
	url := regexp.MustCompile(`\]\((https?://[^)/]+)`)
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range url.FindAllStringSubmatch(string(text), -1) {
			if !strings.HasPrefix(m[1], "https://") || !strings.Contains(m[1][8:], ".") {
				t.Errorf("%s: link to %s, want a public page by HTTPS", file, m[1])
			}
		}
	}
}
