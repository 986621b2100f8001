package keeperd_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
	"github.com/gantry-cri/gantry/sandbox/keeperd/reaper"
)

// reaper returns the pid of the keeper's reaper.
func (n *node) reaper() int {
	n.t.Helper()
	pid := parentOf(n.t, n.pid())
	if name := nameOf(pid); name != reaper.Name {
		n.t.Fatalf("the keeper's parent is %q", name)
	}
	return pid
}

func TestReaperIsLikeItsKeeper(t *testing.T) {
	n := newNode(t)
	first := n.reaper()
	alike := func(pid int) {
		t.Helper()
		for _, file := range []string{"cgroup", "oom_score_adj"} {
			want, errWant := os.ReadFile(fmt.Sprintf("/proc/%d/%s", n.pid(), file))
			got, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
			if err != nil || errWant != nil || string(got) != string(want) {
				t.Errorf("%s of the reaper: %s, %v; of the keeper: %s, %v", file, got, err, want, errWant)
			}
		}
		if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err != nil || len(fds) > 0 {
			t.Errorf("the reaper has open: %v, %v", fds, err)
		}
	}
	alike(first)
	c := n.run(nil, "sleep", "1000")
	n.crash()
	n.respawn(c)
	if n.reaper() == first {
		t.Error("the next keeper has the first one's reaper")
	}
	if parent := parentOf(t, c.pid); parent != first {
		t.Errorf("the container's parent is %d, expected the reaper %d", parent, first)
	}
	alike(first)
	c.delete()
	n.eventually("the reaper ends with the last container", func() bool { return nameOf(first) != reaper.Name })
}

// Nobody depends on it but the exit codes of containers that outlive it and the keeper.
func TestReaperIsKilled(t *testing.T) {
	n := newNode(t)
	n.program = plainKeeper(t, "-plain-exits")
	c := n.run(nil, "sh", "-c", "trap 'exit 12' TERM; echo up; while :; do sleep 0.02; done")
	c.eventually("up", func() bool { return c.output("stdout") == "up\n" })
	pid := n.reaper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.eventually("the reaper is gone", func() bool { return nameOf(pid) != reaper.Name })
	if out, code := c.exec("echo", "in"); out != "in\n" || code != 0 {
		t.Errorf("exec: %q, %d", out, code)
	}
	n.crash()
	if err := unix.Kill(c.pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	n.eventually("process 1 reaps", func() bool { return unix.Kill(c.pid, 0) == unix.ESRCH })
	n.respawn(c)
	if s := c.wait(); s.ExitCode != 255 || s.Error == "" {
		t.Errorf("status %+v", s)
	}
	c.delete()
}

// What has left its container's cgroups outlives it, and so does the reaper that it became a child of.
func TestReaperThatLivesOnIsInNobodysWay(t *testing.T) {
	n := newNode(t)
	c := n.run(sharedPID, "sh", "-c", "(sleep 1000 &); sleep 1000")
	keeperPID, stray := n.pid(), 0
	n.eventually("the keeper has an orphan", func() bool {
		for _, pid := range c.processes() {
			// The shell between ends before the orphan is the keeper's.
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && pid != c.pid &&
				strings.Contains(string(b), fmt.Sprintf("(sleep) S %d ", keeperPID)) {
				stray = pid
			}
		}
		return stray > 0
	})
	for _, dir := range c.cgroups() {
		if err := cgroups.WriteCgroupProc(strings.TrimSuffix(dir, parent+"/"+c.ID), stray); err != nil {
			t.Fatal(err)
		}
	}
	n.crash()
	n.respawn(c)
	c.delete()
	pid := n.pid()
	own, err := os.ReadFile(keeper.Dir(n.dir) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if err := n.client.Shutdown(deadline(t)); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	n.eventually("the keeper has exited", func() bool { return unix.Kill(pid, 0) != nil })
	for _, dir := range strings.Fields(string(own)) {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("cgroup %s is left", dir)
		}
	}
	if name := nameOf(n.reapers[0]); name != reaper.Name || parentOf(t, stray) != n.reapers[0] {
		t.Errorf("the parent of what is left is %q", name)
	}
	if err := unix.Kill(stray, unix.SIGKILL); err != nil {
		t.Error(err)
	}
	n.spawn()
}

// The keeper reaps, and is killed while it waits for the rest of the output.
func TestEndIsNotedBeforeItIsReaped(t *testing.T) {
	n := newNode(t)
	n.program = plainKeeper(t, "-plain-exits")
	c := n.run(nil, "sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.01; done; exit 11")
	stdout, err := os.OpenFile(keeper.Dir(n.dir)+"/c/"+c.ID+"/stdout", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	f, err := os.Create(fmt.Sprintf("/proc/%d/root/tmp/go", c.pid))
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	n.eventually("reaped", func() bool { return unix.Kill(c.pid, 0) == unix.ESRCH })
	s, err := keeper.ReadStatus(c.Dir)
	n.crash()
	t.Logf("the status when the process was reaped: %+v, %v", s, err)
	_ = stdout.Close()
	n.respawn(c)
	c.wantInherited(11)
	c.delete()
}
