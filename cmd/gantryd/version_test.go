package main

import "testing"

func TestRuntimeVersionIsSemanticWhateverTheBuild(t *testing.T) {
	for build, want := range map[string]string{
		"v1.2.3":                 "v1.2.3",
		"1.2.3":                  "1.2.3",
		"v1.2.3-4-gabcdef-dirty": "v1.2.3-4-gabcdef-dirty",
		"v0.0.0-20260101000000-abcdefabcdef+dirty": "v0.0.0-20260101000000-abcdefabcdef+dirty",
		"28b93b6-dirty": "v0.0.0-dev+28b93b6-dirty",
		"v1.2":          "v0.0.0-dev+v1-2",
		"a b/c":         "v0.0.0-dev+a-b-c",
		"unknown":       "v0.0.0-dev+unknown",
	} {
		if got := runtimeVersion(build); got != want {
			t.Errorf("%s: %s, expected %s", build, got, want)
		}
		if !semanticVersion.MatchString(runtimeVersion(build)) {
			t.Errorf("%s: no semantic version", build)
		}
	}
}
