package keeperd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// startTime is field 22 of /proc/<pid>/stat.
func startTime(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))[22-3]
}

// setFrozen freezes the container or thaws it, as the keeper does: by the freezer of version 1 where there is one.
func (c *container) setFrozen(value1, value2 string) {
	c.t.Helper()
	file, value := "/freezer.state", value1
	files, _ := filepath.Glob("/sys/fs/cgroup/freezer" + c.Spec.Linux.CgroupsPath + file)
	if len(files) == 0 {
		file, value = "/cgroup.freeze", value2
		files, _ = filepath.Glob("/sys/fs/cgroup" + c.Spec.Linux.CgroupsPath + file)
	}
	for _, f := range files { // none once it is deleted
		if err := os.WriteFile(f, []byte(value), 0); err != nil {
			c.t.Error(err)
		}
	}
}

// TestKeeperListensBeforeItHasThawed has a keeper killed in the middle of a checkpoint, whose runs of CRIU do not end by
// themselves. Waited for one after the other, they take longer than a keeper may take to listen.
func TestKeeperListensBeforeItHasThawed(t *testing.T) {
	n := newNode(t)
	var containers []*container
	for range 4 {
		c := n.run(nil, "sleep", "1000")
		stuck := exec.Command("sleep", "1000")
		if err := stuck.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = stuck.Process.Kill(); _ = stuck.Wait() })
		c.setFrozen("FROZEN", "1")
		t.Cleanup(func() { c.setFrozen("THAWED", "0") })
		intent := fmt.Sprintf(`{"criu":%d,"startTime":%s}`, stuck.Process.Pid, startTime(t, stuck.Process.Pid))
		if err := os.WriteFile(filepath.Join(keeper.Dir(c.dir), "c", c.ID, "frozen.json"), []byte(intent), 0o600); err != nil {
			t.Fatal(err)
		}
		containers = append(containers, c)
	}
	n.crash()
	n.respawn(containers...)
	for _, c := range containers {
		// It waits in the cgroup of a frozen container until that is thawed.
		if out, code := c.exec("echo", "thawed"); out != "thawed\n" || code != 0 {
			t.Errorf("exec: %q, exit code %d", out, code)
		}
		c.delete()
	}
}

// TestExecIntoAFrozenContainerEndsWithItsCaller has a probe come in the middle of a checkpoint. Its process hangs in the
// frozen cgroup, where nothing can be killed; who waits for it must not.
func TestExecIntoAFrozenContainerEndsWithItsCaller(t *testing.T) {
	n := newNode(t)
	c := n.run(nil, "sleep", "1000")
	c.setFrozen("FROZEN", "1")
	t.Cleanup(func() { c.setFrozen("THAWED", "0") })
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := c.client.Exec(ctx, keeper.ExecRequest{ID: c.ID, Args: []string{"true"}}, [3]*os.File{})
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("exec: %v, want the end of its context", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the exec waits for the thaw")
	}
	c.setFrozen("THAWED", "0")
	if out, code := c.exec("echo", "thawed"); out != "thawed\n" || code != 0 {
		t.Errorf("exec after the thaw: %q, exit code %d", out, code)
	}
	n.eventually("nothing is left of the exec that was given up", func() bool {
		left, _ := filepath.Glob("/sys/fs/cgroup/freezer" + c.Spec.Linux.CgroupsPath + "/exec-*")
		left2, _ := filepath.Glob("/sys/fs/cgroup" + c.Spec.Linux.CgroupsPath + "/exec-*")
		return len(left)+len(left2) == 0
	})
	c.delete()
}
