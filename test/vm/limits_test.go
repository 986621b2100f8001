//go:build e2e

package vm

import (
	"strconv"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func limits(r *runtime.LinuxContainerResources) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) { c.Linux.Resources = r }
}

func TestNodeUsesTheSystemdDriver(t *testing.T) {
	response, err := installed.Runtime.RuntimeConfig(timeout(t), &runtime.RuntimeConfigRequest{})
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "cgroup driver", response.GetLinux().GetCgroupDriver(), runtime.CgroupDriver_SYSTEMD)
}

func TestNodeLimitsAreInTheScope(t *testing.T) {
	c := runPod(t).start(t, "sleep 1000", limits(&runtime.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0",
		OomScoreAdj: 500,
	}))
	wantEqual(t, "cgroup of process 1", c.exec(t, "cat /proc/1/cgroup"), "0::/")
	wantEqual(t, "memory limit", c.cgroupFile(t, "memory.max"), strconv.Itoa(64<<20))
	wantEqual(t, "cpu quota", c.cgroupFile(t, "cpu.max"), "50000 100000")
	wantEqual(t, "cpus", c.cgroupFile(t, "cpuset.cpus"), "0")
	wantEqual(t, "processes without a limit", c.cgroupFile(t, "pids.max"), "max")
	wantEqual(t, "oom score", c.exec(t, "cat /proc/1/oom_score_adj"), "500")
	if weight, err := strconv.Atoi(c.cgroupFile(t, "cpu.weight")); err != nil || weight >= 100 || weight < 10 {
		t.Errorf("cpu weight of 512 shares is %d, expected less than the default 100", weight)
	}
	wantEqual(t, "processes in the scope", len(strings.Fields(c.cgroupFile(t, "cgroup.procs"))), 1)
	unit := "gantry-" + c.id + ".scope"
	wantEqual(t, "the unit's slice", command(t, "systemctl", "show", "-P", "Slice", unit),
		"kubepods-burstable-pod"+podName(t)+".slice")
	wantEqual(t, "the unit's memory limit", command(t, "systemctl", "show", "-P", "MemoryMax", unit), strconv.Itoa(64<<20))

	// systemd applies what it knows of a unit anew on a reload.
	command(t, "systemctl", "daemon-reload")
	wantEqual(t, "memory limit after a reload", c.cgroupFile(t, "memory.max"), strconv.Itoa(64<<20))
	wantEqual(t, "processes without a limit after a reload", c.cgroupFile(t, "pids.max"), "max")
	wantEqual(t, "cpu quota after a reload", c.cgroupFile(t, "cpu.max"), "50000 100000")
}

func TestNodeUpdatesLimits(t *testing.T) {
	c := runPod(t).start(t, "sleep 1000", limits(&runtime.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20,
	}))
	update := func(r *runtime.LinuxContainerResources) {
		t.Helper()
		_, err := installed.Runtime.UpdateContainerResources(timeout(t), &runtime.UpdateContainerResourcesRequest{
			ContainerId: c.id, Linux: r,
		})
		if err != nil {
			t.Error(err)
		}
	}
	update(&runtime.LinuxContainerResources{MemoryLimitInBytes: 128 << 20})
	wantEqual(t, "memory limit", c.cgroupFile(t, "memory.max"), strconv.Itoa(128<<20))
	wantEqual(t, "cpu quota that was not updated", c.cgroupFile(t, "cpu.max"), "50000 100000")
	update(&runtime.LinuxContainerResources{CpuQuota: -1})
	wantEqual(t, "unlimited cpu quota", c.cgroupFile(t, "cpu.max"), "max 100000")
	update(&runtime.LinuxContainerResources{CpusetCpus: "1"})
	wantEqual(t, "cpus", c.cgroupFile(t, "cpuset.cpus"), "1")
	wantEqual(t, "memory limit that was not updated", c.cgroupFile(t, "memory.max"), strconv.Itoa(128<<20))
	command(t, "systemctl", "daemon-reload")
	wantEqual(t, "memory limit after a reload", c.cgroupFile(t, "memory.max"), strconv.Itoa(128<<20))
	wantEqual(t, "cpus after a reload", c.cgroupFile(t, "cpuset.cpus"), "1")
}

func TestNodeHonoursUnified(t *testing.T) {
	c := runPod(t).start(t, "sleep 1000", limits(&runtime.LinuxContainerResources{
		MemoryLimitInBytes: 64 << 20,
		Unified: map[string]string{
			"memory.high": strconv.Itoa(32 << 20), "memory.swap.max": strconv.Itoa(8 << 20), "memory.oom.group": "1",
			"memory.min": strconv.Itoa(4 << 20), "pids.max": "77",
		},
	}))
	wantEqual(t, "memory.high", c.cgroupFile(t, "memory.high"), strconv.Itoa(32<<20))
	wantEqual(t, "memory.swap.max", c.cgroupFile(t, "memory.swap.max"), strconv.Itoa(8<<20))
	wantEqual(t, "memory.oom.group", c.cgroupFile(t, "memory.oom.group"), "1")
	wantEqual(t, "memory.min", c.cgroupFile(t, "memory.min"), strconv.Itoa(4<<20))
	wantEqual(t, "pids.max", c.cgroupFile(t, "pids.max"), "77")
	command(t, "systemctl", "daemon-reload")
	wantEqual(t, "memory.high after a reload", c.cgroupFile(t, "memory.high"), strconv.Itoa(32<<20))
	wantEqual(t, "pids.max after a reload", c.cgroupFile(t, "pids.max"), "77")
}

func TestNodeTellsOOMKills(t *testing.T) {
	p := runPod(t)
	eat := "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"
	limit := limits(&runtime.LinuxContainerResources{MemoryLimitInBytes: 20 << 20, MemorySwapLimitInBytes: 20 << 20})
	s := p.start(t, eat, limit, named("first")).waitExit(t)
	wantEqual(t, "exit code", s.ExitCode, 137)
	wantEqual(t, "reason", s.Reason, "OOMKilled")
	s = p.start(t, "("+eat+"); exit 3", limit, named("child")).waitExit(t)
	wantEqual(t, "exit code of one whose child was killed", s.ExitCode, 3)
	wantEqual(t, "its reason", s.Reason, "OOMKilled")
}
