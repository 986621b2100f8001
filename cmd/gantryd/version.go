package main

import (
	"regexp"
	"runtime/debug"
)

// version is set by the linker (-X main.version=v1.2.3), to the same for gantryd and gantry-keeper.
var version string

// buildVersion returns the version of this binary: a tag, or whatever git described the sources as.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "unknown"
}

var (
	semanticVersion = regexp.MustCompile(
		`^v?(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$`)
	notInVersion = regexp.MustCompile(`[^0-9A-Za-z-]+`)
)

// runtimeVersion returns a build's version as the CRI tells it: a semantic version in any case, because the kubelet
// refuses to run with one that is not.
func runtimeVersion(build string) string {
	if semanticVersion.MatchString(build) {
		return build
	}
	return "v0.0.0-dev+" + notInVersion.ReplaceAllString(build, "-")
}
