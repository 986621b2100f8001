//go:build e2e

package vm

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ticking prints a number again and again.
const ticking = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done"

func (c *container) log(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.config.LogDirectory, "c.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// wantNoGap checks that the log of a ticking container has every number once, and that it goes on.
func (c *container) wantNoGap(t *testing.T) {
	t.Helper()
	lines := strings.Count(c.log(t), "\n")
	eventually(t, "the log goes on", func() bool { return strings.Count(c.log(t), "\n") > lines+2 })
	for i, line := range strings.Split(strings.TrimSpace(c.log(t)), "\n") {
		if !strings.HasSuffix(line, " F "+strconv.Itoa(i+1)) {
			t.Fatalf("line %d of the log is %q", i+1, line)
		}
	}
}

// pidOf finds a process by its name: pidof finds the keeper's reaper too, which is the same program.
func pidOf(t *testing.T, program string) int {
	t.Helper()
	pid := 0
	eventually(t, program+" runs", func() bool {
		pid, _ = strconv.Atoi(command(t, "sh", "-c", "grep -lx "+program+" /proc/[0-9]*/comm 2>/dev/null | cut -d/ -f3"))
		return pid > 0
	})
	return pid
}

func ready(t *testing.T) {
	t.Helper()
	eventually(t, "the daemon answers", func() bool {
		_, err := installed.Runtime.Version(timeout(t), &runtime.VersionRequest{})
		return err == nil
	})
}

// wantUntouched checks that a container is the same process as before, can be entered, and lost no line.
func (c *container) wantUntouched(t *testing.T, after string, process string) {
	t.Helper()
	wantEqual(t, "state after "+after, c.status(t).State, runtime.ContainerState_CONTAINER_RUNNING)
	wantEqual(t, "processes after "+after, strings.Fields(c.cgroupFile(t, "cgroup.procs"))[0], process)
	wantEqual(t, "exec after "+after, c.exec(t, "echo here"), "here")
	c.wantNoGap(t)
}

func TestNodeContainersSurviveTheDaemonAndTheKeeper(t *testing.T) {
	c := runPod(t).start(t, ticking)
	process := strings.Fields(c.cgroupFile(t, "cgroup.procs"))[0]
	keeper := pidOf(t, "gantry-keeper")

	command(t, "systemctl", "restart", "gantryd")
	ready(t)
	c.wantUntouched(t, "systemctl restart", process)
	wantEqual(t, "keeper after systemctl restart", pidOf(t, "gantry-keeper"), keeper)

	daemon := pidOf(t, "gantryd")
	if err := syscall.Kill(daemon, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "systemd starts the daemon again", func() bool { return pidOf(t, "gantryd") != daemon })
	ready(t)
	c.wantUntouched(t, "kill -9 of the daemon", process)
	wantEqual(t, "keeper after kill -9 of the daemon", pidOf(t, "gantry-keeper"), keeper)

	if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon starts a keeper", func() bool { return pidOf(t, "gantry-keeper") != keeper })
	eventually(t, "the new keeper serves", func() bool {
		_, err := installed.Runtime.ExecSync(timeout(t), &runtime.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}})
		return err == nil
	})
	c.wantUntouched(t, "kill -9 of the keeper", process)

	command(t, "systemctl", "stop", "gantryd")
	keeper = pidOf(t, "gantry-keeper")
	command(t, "systemctl", "daemon-reexec")
	command(t, "systemctl", "start", "gantryd")
	ready(t)
	c.wantUntouched(t, "stop, re-execution of systemd and start", process)
	wantEqual(t, "keeper after stop and start", pidOf(t, "gantry-keeper"), keeper)
	if _, err := installed.Runtime.StopContainer(timeout(t), &runtime.StopContainerRequest{ContainerId: c.id}); err != nil {
		t.Error(err)
	}
	// Its parent is the reaper of the keeper that was killed.
	wantEqual(t, "exit code", c.waitExit(t).ExitCode, 137)
}

// The cgroup's units go with the container, also when it fails.
func TestNodeLeavesNoUnits(t *testing.T) {
	p := runPod(t)
	config := containerConfig("broken", "")
	config.Command = []string{"/no-such-program"}
	c, err := p.tryCreate(t, config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := installed.Runtime.StartContainer(timeout(t), &runtime.StartContainerRequest{ContainerId: c.id}); err == nil {
		t.Error("a program that does not exist was started")
	}
	p.start(t, "exit 1", named("fails")).waitExit(t)
	eventually(t, "only the keeper's unit is left", func() bool {
		units := command(t, "systemctl", "list-units", "--all", "--plain", "--no-legend", "gantry-*.scope")
		return strings.HasPrefix(units, "gantry-keeper-") && !strings.Contains(units, "\n")
	})
}

// The init of a shared PID namespace has a scope of its own, which the keeper makes without libcontainer's containers.
func TestNodeSharesProcesses(t *testing.T) {
	p := runPod(t, func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
	})
	shared := func(c *runtime.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
	}
	p.start(t, "exec sleep 4812", named("other"), shared)
	c := p.start(t, ticking, shared)
	if out := c.exec(t, "ps"); !strings.Contains(out, "sleep 4812") {
		t.Errorf("the container does not see the other one's process: %s", out)
	}
	unit := "gantry-" + p.id + ".scope"
	wantEqual(t, "state of the init's unit", command(t, "systemctl", "is-active", unit), "active")
	init := command(t, "cat", filepath.Join(cgroupRoot, p.slice, unit, "cgroup.procs"))
	keeper := pidOf(t, "gantry-keeper")
	if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon starts a keeper", func() bool { return pidOf(t, "gantry-keeper") != keeper })
	eventually(t, "the new keeper serves", func() bool {
		_, err := installed.Runtime.ExecSync(timeout(t), &runtime.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"true"}})
		return err == nil
	})
	c.wantNoGap(t)
	wantEqual(t, "init", command(t, "cat", filepath.Join(cgroupRoot, p.slice, unit, "cgroup.procs")), init)
	if _, err := installed.Runtime.StopPodSandbox(timeout(t), &runtime.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "units of the pod", command(t, "systemctl", "list-units", "--all", "--plain", "--no-legend", unit, "gantry-"+c.id+".scope"), "")
}

// An exec that takes too long is killed with all that it started, and no more than that.
func TestNodeKillsExecsThatTakeTooLong(t *testing.T) {
	c := runPod(t).start(t, ticking)
	_, err := installed.Runtime.ExecSync(timeout(t), &runtime.ExecSyncRequest{
		ContainerId: c.id, Cmd: []string{"sh", "-c", "sleep 4813 & sleep 4813"}, Timeout: 3,
	})
	if err == nil {
		t.Error("the exec did not run out of time")
	}
	eventually(t, "what the exec started is gone", func() bool { return !strings.Contains(c.exec(t, "ps"), "sleep 4813") })
	eventually(t, "no cgroup of an exec is left", func() bool {
		left, _ := filepath.Glob(filepath.Join(cgroupRoot, c.scope(), "exec-*"))
		return len(left) == 0
	})
	c.wantNoGap(t)
}
