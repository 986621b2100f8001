//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cgroupLimits are the files in which the container's limits are, with what the kernel says.
func (c *container) cgroupLimits(t *testing.T) map[string]string {
	t.Helper()
	limits := map[string]string{
		"memory": c.cgroupFile(t, "memory", "memory.limit_in_bytes", "memory.max"),
		"cpus":   c.cgroupFile(t, "cpuset", "cpuset.cpus", "cpuset.cpus"),
		"mems":   c.cgroupFile(t, "cpuset", "cpuset.mems", "cpuset.mems"),
	}
	if cgroupV2() {
		limits["weight"] = c.cgroupFile(t, "", "", "cpu.weight")
		quota := strings.Fields(c.cgroupFile(t, "", "", "cpu.max"))
		limits["quota"], limits["period"] = quota[0], quota[1]
	} else {
		limits["shares"] = c.cgroupFile(t, "cpu", "cpu.shares", "")
		limits["quota"] = c.cgroupFile(t, "cpu", "cpu.cfs_quota_us", "")
		limits["period"] = c.cgroupFile(t, "cpu", "cpu.cfs_period_us", "")
	}
	return limits
}

func (c *container) update(t *testing.T, r *runtime.LinuxContainerResources) error {
	t.Helper()
	_, err := c.node.Runtime.UpdateContainerResources(timeout(t), &runtime.UpdateContainerResourcesRequest{
		ContainerId: c.id, Linux: r,
	})
	return err
}

// startLimits are the limits of a container to be updated.
func startLimits() *runtime.LinuxContainerResources {
	return &runtime.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0", CpusetMems: "0",
		OomScoreAdj: 300,
	}
}

// Each field alone: it is in its file and in the status, and every other file and field is as it was.
func TestUpdateOfOneFieldLeavesTheOthers(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000", limits(startLimits()))
	want := startLimits()
	for _, step := range []struct {
		name   string
		update *runtime.LinuxContainerResources
		files  map[string]string
	}{
		{"nothing", &runtime.LinuxContainerResources{}, nil},
		{"memory up", &runtime.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}, map[string]string{"memory": "134217728"}},
		{"memory down", &runtime.LinuxContainerResources{MemoryLimitInBytes: 32 << 20}, map[string]string{"memory": "33554432"}},
		{"quota", &runtime.LinuxContainerResources{CpuQuota: 25000}, map[string]string{"quota": "25000"}},
		{"period", &runtime.LinuxContainerResources{CpuPeriod: 50000}, map[string]string{"period": "50000"}},
		{"cpus", &runtime.LinuxContainerResources{CpusetCpus: "0-1"}, map[string]string{"cpus": "0-1"}},
		{"mems", &runtime.LinuxContainerResources{CpusetMems: "0"}, map[string]string{"mems": "0"}},
		{"shares", &runtime.LinuxContainerResources{CpuShares: 2048}, map[string]string{"shares": "2048", "weight": "174"}},
		{"several", &runtime.LinuxContainerResources{CpuQuota: 30000, MemoryLimitInBytes: 48 << 20},
			map[string]string{"quota": "30000", "memory": "50331648"}},
		{"unlimited quota", &runtime.LinuxContainerResources{CpuQuota: -1}, map[string]string{"quota": "-1"}},
	} {
		t.Run(step.name, func(t *testing.T) {
			files := c.cgroupLimits(t)
			for name, value := range step.files {
				if _, exists := files[name]; exists {
					files[name] = value
				}
			}
			if cgroupV2() && files["quota"] == "-1" {
				files["quota"] = "max"
			}
			if err := c.update(t, step.update); err != nil {
				t.Fatal(err)
			}
			proto.Merge(want, step.update)
			if got := c.cgroupLimits(t); !maps.Equal(got, files) {
				t.Errorf("cgroup files are %v, expected %v", got, files)
			}
			if got := c.status(t).GetResources().GetLinux(); !proto.Equal(got, want) {
				t.Errorf("status tells %v, expected %v", got, want)
			}
		})
	}
}

// The score is no file of the cgroup: every process of the container has it.
func TestUpdateOfTheOOMScore(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000 & exec sleep 1000", limits(startLimits()))
	eventually(t, "the child is there", func() bool { return len(processesWith(t, c.id)) == 2 })
	wantEqual(t, "score of an exec before", strings.TrimSpace(c.exec(t, "cat /proc/self/oom_score_adj")), "300")
	if err := c.update(t, &runtime.LinuxContainerResources{OomScoreAdj: 600}); err != nil {
		t.Fatal(err)
	}
	pids := processesWith(t, c.id)
	if len(pids) < 2 {
		t.Errorf("processes %v, expected two", pids)
	}
	for _, pid := range pids {
		score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
		if err != nil {
			t.Error(err)
		}
		wantEqual(t, fmt.Sprintf("score of %d", pid), strings.TrimSpace(string(score)), "600")
	}
	wantEqual(t, "score of init", strings.TrimSpace(c.exec(t, "cat /proc/1/oom_score_adj")), "600")
	wantEqual(t, "score of an exec", strings.TrimSpace(c.exec(t, "cat /proc/self/oom_score_adj")), "600")
	if err := c.update(t, &runtime.LinuxContainerResources{CpuShares: 700}); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "score after another update", strings.TrimSpace(c.exec(t, "cat /proc/1/oom_score_adj")), "600")
}

// What is refused or fails changes nothing, neither in the files nor in the status.
func TestAnInvalidUpdateChangesNothing(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000", limits(startLimits()))
	files := c.cgroupLimits(t)
	for name, test := range map[string]struct {
		update *runtime.LinuxContainerResources
		word   string
	}{
		"little memory":   {&runtime.LinuxContainerResources{MemoryLimitInBytes: 1000}, "memory_limit_in_bytes"},
		"negative memory": {&runtime.LinuxContainerResources{MemoryLimitInBytes: -5, CpuShares: 9}, "memory_limit_in_bytes"},
		"short period":    {&runtime.LinuxContainerResources{CpuPeriod: 1}, "cpu_period"},
		"small quota":     {&runtime.LinuxContainerResources{CpuQuota: 5}, "cpu_quota"},
		"negative shares": {&runtime.LinuxContainerResources{CpuShares: -1, MemoryLimitInBytes: 128 << 20}, "cpu_shares"},
		"no list of cpus": {&runtime.LinuxContainerResources{CpusetCpus: "all", CpuShares: 9}, "cpuset_cpus"},
		"no list of mems": {&runtime.LinuxContainerResources{CpusetMems: "0-", CpuShares: 9}, "cpuset_mems"},
		"score":           {&runtime.LinuxContainerResources{OomScoreAdj: 2000, CpuShares: 9}, "oom_score_adj"},
		"swap < memory":   {&runtime.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, MemorySwapLimitInBytes: 1 << 20}, "memory_swap_limit_in_bytes"},
		"absent cpus":     {&runtime.LinuxContainerResources{CpusetCpus: "4000", MemoryLimitInBytes: 128 << 20}, ""},
		"absent mems":     {&runtime.LinuxContainerResources{CpusetMems: "900", MemoryLimitInBytes: 128 << 20, CpuShares: 9}, ""},
		"odd page size": {&runtime.LinuxContainerResources{CpuShares: 9, HugepageLimits: []*runtime.HugepageLimit{
			{PageSize: "many", Limit: 1},
		}}, "page_size"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.update(t, test.update)
			if test.word != "" {
				wantCode(t, err, codes.InvalidArgument, test.word)
			} else if err == nil {
				t.Error("the update succeeded")
			}
			if got := c.cgroupLimits(t); !maps.Equal(got, files) {
				t.Errorf("cgroup files are %v, expected %v", got, files)
			}
			if got := c.status(t).GetResources().GetLinux(); !proto.Equal(got, startLimits()) {
				t.Errorf("status tells %v, expected %v", got, startLimits())
			}
		})
	}
}

// The kubelet sends every size of huge page on each update: the list is one entry per size for ever.
func TestHugepageLimitsDoNotMultiply(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	pages := []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 0}, {PageSize: "1GB", Limit: 0}, {PageSize: "64KB", Limit: 0}}
	c := p.start(t, "c", "sleep 1000", limits(&runtime.LinuxContainerResources{HugepageLimits: pages}))
	for range 3 {
		if err := c.update(t, &runtime.LinuxContainerResources{HugepageLimits: pages}); err != nil {
			t.Fatal(err)
		}
	}
	wantSame(t, "hugepage limits in status", c.status(t).GetResources().GetLinux().GetHugepageLimits(), pages)
}

func TestUpdateByState(t *testing.T) {
	t.Parallel()
	p := runPod(t)
	c := p.create(t, "c", "sleep 1000", limits(startLimits()))
	if err := c.update(t, &runtime.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "limit of a created container", c.status(t).GetResources().GetLinux().GetMemoryLimitInBytes(), 128<<20)
	if err := c.start(t); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "memory limit", c.cgroupLimits(t)["memory"], strconv.Itoa(128<<20))
	wantEqual(t, "quota", c.cgroupLimits(t)["quota"], "50000")
	wantAllGood(t, "update", atOnce(8, func(i int) error {
		if i%2 == 0 {
			return c.update(t, &runtime.LinuxContainerResources{CpuShares: 1000})
		}
		return c.update(t, &runtime.LinuxContainerResources{CpuQuota: 70000})
	}))
	got := c.status(t).GetResources().GetLinux()
	wantEqual(t, "shares after updates at once", got.GetCpuShares(), 1000)
	wantEqual(t, "quota after updates at once", got.GetCpuQuota(), 70000)
	wantEqual(t, "quota in the file", c.cgroupLimits(t)["quota"], "70000")
	if err := c.stop(t, 0); err != nil {
		t.Fatal(err)
	}
	wantCode(t, c.update(t, &runtime.LinuxContainerResources{CpuShares: 5}), codes.FailedPrecondition)
}
