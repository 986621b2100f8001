package pins

import (
	"os"
	"testing"

	"github.com/gantry-cri/gantry/test/e2e/node"
)

// TestMain runs the tests in a mount namespace of their own: one that is killed leaves no mount, and
// the next run removes its files.
func TestMain(m *testing.M) {
	if os.Geteuid() == 0 {
		if inner, code := node.Isolate(); !inner {
			os.Exit(code)
		}
		os.Setenv("TMPDIR", node.Dir())
	}
	os.Exit(m.Run())
}
