package keeperd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
)

// unifiedCgroup is the cgroup of a container; without cgroup v2 the test is skipped. hack/unified.sh gives it to a machine
// of v1, without controllers.
func (c *container) unifiedCgroup() string {
	c.t.Helper()
	if !cgroups.IsCgroup2UnifiedMode() {
		c.t.Skip("cgroup v2 only")
	}
	return c.cgroups()[0]
}

func write(t *testing.T, dir, file, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// below makes a cgroup below the container's.
func below(t *testing.T, dir, name string) string {
	t.Helper()
	dir = filepath.Join(dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Virtual machines have cgroups for the threads of their processors. The kernel lets no process into another cgroup
// beside those.
func TestExecBesideCgroupsOfThreads(t *testing.T) {
	c := newNode(t).run(nil, "sleep", "1000")
	dir := c.unifiedCgroup()
	write(t, below(t, dir, "threads"), "cgroup.type", "threaded")
	if out, code := c.exec("echo", "in"); out != "in\n" || code != 0 {
		t.Errorf("exec: %q, exit code %d", out, code)
	}
	c.delete()
}

func TestExecWhereNoCgroupMayBeMade(t *testing.T) {
	c := newNode(t).run(nil, "sleep", "1000")
	write(t, c.unifiedCgroup(), "cgroup.max.depth", "0")
	if out, code := c.exec("echo", "in"); out != "in\n" || code != 0 {
		t.Errorf("exec: %q, exit code %d", out, code)
	}
	c.delete()
}

// An init such as systemd goes to a cgroup of its own, and gives controllers to those below the container's. That takes
// no process then.
func TestWhatAnExecLeavesGoesToWhereTheInitIs(t *testing.T) {
	n := newNode(t)
	c := n.run(nil, "sleep", "1000")
	dir := c.unifiedCgroup()
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		t.Fatal(err)
	}
	if len(strings.TrimSpace(string(controllers))) == 0 {
		t.Skip("the machine has all controllers on v1")
	}
	inner := below(t, dir, "init")
	write(t, inner, "cgroup.procs", fmt.Sprint(c.pid))
	write(t, dir, "cgroup.subtree_control", "+"+strings.Fields(string(controllers))[0])
	if out, code := c.exec("sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo left"); out != "left\n" || code != 0 {
		t.Errorf("exec: %q, exit code %d", out, code)
	}
	if pids, err := cgroups.GetPids(inner); err != nil || len(pids) != 2 {
		t.Errorf("processes beside the init: %v, %v; expected one", pids, err)
	}
	if left, _ := filepath.Glob(dir + "/exec-*"); len(left) > 0 {
		t.Errorf("cgroups of execs: %v", left)
	}
	n.crash()
	n.respawn(c)
	if pids, err := cgroups.GetPids(inner); err != nil || len(pids) != 2 {
		t.Errorf("processes after the keeper was killed: %v, %v; expected two", pids, err)
	}
	c.delete()
}
