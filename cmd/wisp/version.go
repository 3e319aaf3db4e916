package main

import "runtime/debug"

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
