//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/test/e2e/node"
)

// damage cuts a sandbox's record in the middle.
func damage(t *testing.T, n *node.Node, sandboxID string) {
	t.Helper()
	path := filepath.Join(n.Root(), "sandboxes", sandboxID, "sandbox.json")
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, info.Size()/2); err != nil {
		t.Fatal(err)
	}
}

func TestStartIsRefusedWithoutTheKeeperProgram(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "no-such-keeper")
	n, err := newNode("no-keeper", func(o *node.Options) { o.Keeper = missing })
	if err != nil {
		t.Fatal(err)
	}
	err = n.Start(timeout(t))
	if err == nil {
		n.Close()
		t.Fatal("the daemon started")
	}
	if !strings.Contains(err.Error(), missing) {
		t.Errorf("the message does not name the missing program: %v", err)
	}
}

func TestKeeperOfAnotherProtocolIsLeftAlone(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", "echo up; sleep 1000")
	c.waitLog(t, "up")
	pid := keeperPID(t, shared)
	if err := shared.Stop(); err != nil {
		t.Fatal(err)
	}
	socket := shared.KeeperSocket()
	if err := os.Rename(socket, socket+".real"); err != nil {
		t.Fatal(err)
	}
	fake, err := shared.FakeKeeper(keeper.ProtocolVersion + 1)
	if err != nil {
		t.Fatal(err)
	}
	err = shared.Start(timeout(t))
	if err == nil {
		t.Error("the daemon started")
		shared.Kill()
	} else if !strings.Contains(err.Error(), "protocol") {
		t.Errorf("the message does not say why: %v", err)
	}
	fake.Close()
	os.Remove(socket)
	if err := os.Rename(socket+".real", socket); err != nil {
		t.Fatal(err)
	}
	if !alive(pid) || len(processesWith(t, c.id)) == 0 {
		t.Error("keeper or container did not survive the refused start")
	}
	restart(t)
	wantEqual(t, "keeper", keeperPID(t, shared), pid)
	wantEqual(t, "container state", c.status(t).State, runtime.ContainerState_CONTAINER_RUNNING)
	wantEqual(t, "exec", c.exec(t, "echo untouched"), "untouched")
}

func TestASecondDaemonIsRefused(t *testing.T) {
	second, err := node.New(shared.Options)
	if err != nil {
		t.Fatal(err)
	}
	// Its client speaks to whichever daemon listens: what counts is whether the process lives.
	err = second.Start(timeout(t))
	t.Cleanup(second.Kill)
	eventually(t, "the second daemon gives up", func() bool { return !second.Running() })
	if err != nil && !strings.Contains(err.Error(), "exit status") {
		t.Errorf("second daemon: %v", err)
	}
	crictl(t, "version")
}
