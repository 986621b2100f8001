package keeperd

import (
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// A checkpoint may come from anywhere: it must not choose what file of the node's a process is given.
func TestRestoreTakesNoFileForAStream(t *testing.T) {
	k := &Keeper{layout: layout{root: t.TempDir()}}
	spec := &specs.Spec{Linux: &specs.Linux{}}
	for _, name := range []string{"../../other/c/x/stdin", "request.json", ""} {
		out := &outsideWorld{Streams: map[string][]string{name: {"file[1:2]"}}}
		r := &criu{}
		err := k.restoreArgs(r, newContainer("id", t.TempDir()), spec, out)
		if err == nil || !strings.Contains(err.Error(), `expected one of ["stdin" "stdout" "stderr"]`) || len(r.inherit) > 0 {
			t.Errorf("%q: %v, %d files", name, err, len(r.inherit))
		}
	}
}
