package main

import (
	"runtime/debug"
	"strings"
)

// version is the module version, or the commit, that this binary was built
// from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "v0.0.0-unknown"
	}
	if info.Main.Version == "(devel)" {
		return "v0.0.0-devel"
	}
	return info.Main.Version
}

// kubeletVersion is the version of Kubernetes that this binary speaks, that of the
// libraries it was built with, and Wisp's own as the build of that: tools that
// compare a node's version with its control plane's look at the former.
func kubeletVersion() string {
	kubernetes := "v0.0.0"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "k8s.io/client-go" { // v0.35.7 is of Kubernetes v1.35.7
				kubernetes = strings.Replace(m.Version, "v0.", "v1.", 1)
			}
		}
	}
	return kubernetes + "+wisp." + strings.ReplaceAll(version(), "+", ".")
}
