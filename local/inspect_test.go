package local

import (
	"strings"
	"testing"

	"github.com/wisp-serving/wisp/runtime/outline"
)

// TestReportObeysNobody shows a terminal nothing that it would obey, whatever an
// image's maker has called things.
func TestReportObeysNobody(t *testing.T) {
	evil := "a\x1b[2J\nImage\tfake"
	r := Report{
		Reference: "example.com/fn@sha256:0", Module: evil, ABI: evil, Args: []string{evil}, Env: []string{evil}, Refused: evil,
		Labels:  map[string]string{evil: evil},
		Outline: outline.Module{Imports: []outline.Import{{Module: evil, Name: evil}}, Exports: []outline.Export{{Name: evil}}, Sections: []outline.Section{{Name: "custom " + evil}}},
	}
	var out strings.Builder
	if err := r.Write(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "\x1b") || strings.Contains(out.String(), "\nImage\tfake") || strings.Count(out.String(), "\nImage") != 1 {
		t.Errorf("got %q", out.String())
	}
}

func TestIsFile(t *testing.T) {
	for what, want := range map[string]bool{
		"none.wasm": true, "./none": true, "/none": true, "inspect.go": true,
		"ghcr.io/ada/fn:v1": false, "fn": false, "localhost:5000/fn@sha256:0": false,
	} {
		if got := IsFile(what); got != want {
			t.Errorf("%s: got %t, want %t", what, got, want)
		}
	}
}
