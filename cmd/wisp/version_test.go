package main

import (
	"testing"

	semver "k8s.io/apimachinery/pkg/util/version"
)

// TestKubeletVersion is about the tools that read a node's version: it must be a
// semantic one, of a Kubernetes that fits.
func TestKubeletVersion(t *testing.T) {
	got, err := semver.ParseSemantic(kubeletVersion())
	if err != nil {
		t.Fatal(err)
	}
	if got.Major() != 1 || got.Minor() < 35 || got.PreRelease() != "" || got.BuildMetadata() == "" {
		t.Errorf("got %s, want a release of Kubernetes with Wisp's version as its build", got)
	}
}
