//go:build e2e

package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/test/e2e/node"
)

const (
	// callTimeout bounds one call: ten times what the emulated machine needs.
	callTimeout = 2 * time.Minute
	// workDir holds logs, and what one run leaves for that after a reboot.
	workDir = "/var/tmp/gantry-vm"
)

// installed is the node that the machine has.
var installed *node.Node

func TestMain(m *testing.M) {
	if _, err := os.Stat("/payload/bin/agent"); err != nil {
		fmt.Fprintln(os.Stderr, "vm: not in the virtual machine of hack/vm: use make vm-test")
		os.Exit(1)
	}
	err := os.MkdirAll(workDir, 0o755)
	if err == nil {
		installed, err = node.New(node.Options{
			Dir: workDir, Bin: "/usr/bin", Tools: "/usr/bin", Address: "unix:///run/gantry/gantry.sock",
			State: "/run/gantry", CNIConf: filepath.Join(workDir, "cni.d"),
		})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// timeout is a context for one call.
func timeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until the condition holds; it gives up when that cannot be patience any more.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(callTimeout); !condition(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func wantEqual[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
