//go:build e2e

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func limits(r *runtime.LinuxContainerResources) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) { c.Linux.Resources = r }
}

func TestLimitsAreInTheCgroup(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000", limits(&runtime.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0",
		OomScoreAdj: 500,
	}))
	wantEqual(t, "memory limit", c.cgroupFile(t, "memory", "memory.limit_in_bytes", "memory.max"), strconv.Itoa(64<<20))
	quota := c.cgroupFile(t, "cpu", "cpu.cfs_quota_us", "cpu.max")
	wantEqual(t, "cpu quota", strings.Fields(quota)[0], "50000")
	if !cgroupV2() {
		wantEqual(t, "cpu shares", c.cgroupFile(t, "cpu", "cpu.shares", ""), "512")
	}
	wantEqual(t, "cpus", c.cgroupFile(t, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0")
	wantEqual(t, "oom score", c.exec(t, "cat /proc/1/oom_score_adj"), "500")
	for _, dir := range cgroupsNamed(t, c.id) {
		if !strings.Contains(dir, p.config.Linux.CgroupParent) {
			t.Errorf("cgroup %s is not below the pod's %s", dir, p.config.Linux.CgroupParent)
		}
	}
}

func TestOOMKill(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "eater", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done", limits(&runtime.LinuxContainerResources{
		MemoryLimitInBytes: 20 << 20,
	}))
	s := c.waitExit(t)
	wantEqual(t, "exit code", s.ExitCode, 137)
	wantEqual(t, "reason", s.Reason, "OOMKilled")
}

// A child that was killed for memory is told although the first process was not killed itself.
func TestOOMKillOfAChild(t *testing.T) {
	p := runPod(t)
	for _, code := range []int32{3, 0} {
		name := fmt.Sprintf("eater-%d", code)
		script := fmt.Sprintf("(x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done); exit %d", code)
		s := p.start(t, name, script, limits(&runtime.LinuxContainerResources{MemoryLimitInBytes: 20 << 20})).waitExit(t)
		wantEqual(t, "exit code", s.ExitCode, code)
		wantEqual(t, "reason", s.Reason, "OOMKilled")
	}
}

func TestUpdateResources(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000", limits(&runtime.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20,
	}))
	update := func(r *runtime.LinuxContainerResources) error {
		_, err := p.node.Runtime.UpdateContainerResources(timeout(t), &runtime.UpdateContainerResourcesRequest{
			ContainerId: c.id, Linux: r,
		})
		return err
	}
	if err := update(&runtime.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "memory limit", c.cgroupFile(t, "memory", "memory.limit_in_bytes", "memory.max"), strconv.Itoa(128<<20))
	quota := c.cgroupFile(t, "cpu", "cpu.cfs_quota_us", "cpu.max")
	wantEqual(t, "cpu quota that was not updated", strings.Fields(quota)[0], "50000")
	if err := update(&runtime.LinuxContainerResources{CpuQuota: -1}); err != nil {
		t.Fatal(err)
	}
	quota = strings.Fields(c.cgroupFile(t, "cpu", "cpu.cfs_quota_us", "cpu.max"))[0]
	if quota != "-1" && quota != "max" {
		t.Errorf("unlimited cpu quota is %s", quota)
	}
	told := c.status(t).GetResources().GetLinux()
	wantEqual(t, "memory limit in status", told.GetMemoryLimitInBytes(), 128<<20)
	wantEqual(t, "cpu quota in status", told.GetCpuQuota(), -1)

	before := c.cgroupFile(t, "memory", "memory.limit_in_bytes", "memory.max")
	if err := update(&runtime.LinuxContainerResources{MemoryLimitInBytes: 256 << 20, CpusetCpus: "4000"}); err == nil {
		t.Error("an impossible update succeeded")
	}
	wantEqual(t, "memory limit after a failed update",
		c.cgroupFile(t, "memory", "memory.limit_in_bytes", "memory.max"), before)
	wantEqual(t, "memory limit in status after a failed update",
		c.status(t).GetResources().GetLinux().GetMemoryLimitInBytes(), 128<<20)
}
