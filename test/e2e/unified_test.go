//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/test/e2e/node"
)

// unifiedMount is where the harness has the unified hierarchy on a machine of cgroup v1.
const unifiedMount = "/sys/fs/cgroup/unified"

// unifiedNode is a node that sees nothing but cgroup v2. On a machine of v1 the controllers are not to be had there, so
// limits are not tested, but how cgroups are made, entered, killed and removed is.
func unifiedNode(t *testing.T) *node.Node {
	t.Helper()
	if cgroupV2() {
		t.Skip("the machine has cgroup v2 itself: every other test covers it")
	}
	holder := exec.Command("unshare", "--mount", "--propagation", "unchanged", "sh", "-c",
		"mount --make-private /sys/fs/cgroup 2>/dev/null; mount -t cgroup2 none /sys/fs/cgroup && echo up && exec sleep 1000000")
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "up\n" {
		t.Fatalf("mount cgroup2: %q, %v", line, err)
	}
	// The bridge of a node stays, with its subnet: each needs a name of its own.
	n, err := newNode(fmt.Sprint("unified", nodes), func(o *node.Options) {
		o.Wrap = []string{"nsenter", "--mount", "--target", fmt.Sprint(holder.Process.Pid), "--"}
	})
	if err != nil {
		t.Fatal(err)
	}
	closeAtEnd(t, n)
	if err := n.Start(timeout(t)); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestOnTheUnifiedHierarchy(t *testing.T) {
	n := unifiedNode(t)
	config := podConfig(t, n, "")
	p := runPodOn(t, n, config)
	dir := func(c *container) string {
		return filepath.Join(unifiedMount, config.Linux.CgroupParent, c.id)
	}
	c := p.start(t, "c", "cat /proc/self/cgroup | grep ^0; echo up; exec sleep 4811")
	c.waitLog(t, "up")
	if text := c.logText(t); !strings.Contains(text, "0::/\n") {
		t.Errorf("inside: %q, expected a cgroup namespace of its own", text)
	}
	if b, err := os.ReadFile(filepath.Join(dir(c), "cgroup.procs")); err != nil || strings.TrimSpace(string(b)) == "" {
		t.Errorf("cgroup.procs of the container: %q, %v", b, err)
	}

	t.Run("statistics", func(t *testing.T) { unifiedStats(t, p) })

	t.Run("an exec that runs out of time dies with its children", func(t *testing.T) {
		_, err := n.Runtime.ExecSync(timeout(t), &runtime.ExecSyncRequest{
			ContainerId: c.id, Cmd: []string{"sh", "-c", "sleep 4812 & sleep 4812"}, Timeout: 1,
		})
		if err == nil {
			t.Error("no error")
		}
		eventually(t, "the tree is gone", func() bool { return len(processesWith(t, "4812")) == 0 })
		eventually(t, "no cgroup of an exec is left", func() bool {
			subs, _ := filepath.Glob(filepath.Join(dir(c), "exec-*"))
			return len(subs) == 0
		})
	})

	t.Run("a forced stop kills more than init", func(t *testing.T) {
		host := p.start(t, "host", "setsid sleep 4813 & setsid sleep 4813 & echo up; sleep 1000", pidMode(runtime.NamespaceMode_NODE))
		host.waitLog(t, "up")
		if err := host.stop(t, 0); err != nil {
			t.Fatal(err)
		}
		if left := processesWith(t, "4813"); len(left) != 0 {
			t.Errorf("processes are left: %v", left)
		}
		eventually(t, "the cgroup is gone", func() bool { return missing(dir(host)) })
	})

	t.Run("in a user namespace", func(t *testing.T) {
		needUserns(t)
		p := runPodOn(t, n, podConfig(t, n, ""), inUserns(200000))
		mapped := p.start(t, "c", "cat /proc/self/cgroup | grep ^0; ls /sys/fs/cgroup; echo up; sleep 1000", joining(200000))
		mapped.waitLog(t, "up")
		if text := mapped.logText(t); !strings.Contains(text, "0::/\n") || !strings.Contains(text, "cgroup.procs") {
			t.Errorf("inside: %q, expected a cgroup namespace and its files", text)
		}
	})

	t.Run("kill of daemon and keeper", func(t *testing.T) {
		n.Kill()
		killKeeper(t, n)
		if err := n.Start(timeout(t)); err != nil {
			t.Fatal(err)
		}
		wantEqual(t, "state", c.status(t).State, runtime.ContainerState_CONTAINER_RUNNING)
		wantEqual(t, "exec", strings.TrimSpace(c.exec(t, "echo hello")), "hello")
		if err := c.stop(t, 1); err != nil {
			t.Fatal(err)
		}
		c.waitExit(t)
		eventually(t, "the cgroup is gone", func() bool { return missing(dir(c)) })
	})
}

func missing(path string) bool {
	_, err := os.Stat(path)
	return os.IsNotExist(err)
}
