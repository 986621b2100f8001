//go:build e2e

package vm

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fields are the "key value" lines of a cgroup file.
func (c *container) fields(t *testing.T, file string) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	for line := range strings.Lines(c.cgroupFile(t, file)) {
		if f := strings.Fields(line); len(f) == 2 {
			all[f[0]], _ = strconv.ParseUint(f[1], 10, 64)
		}
	}
	return all
}

func (c *container) number(t *testing.T, file string) uint64 {
	t.Helper()
	value, err := strconv.ParseUint(c.cgroupFile(t, file), 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return value
}

// pressureTotals are the totals of a pressure file, "some" and "full", in nanoseconds as the CRI has them.
func (c *container) pressureTotals(t *testing.T, file string) (some, full uint64) {
	t.Helper()
	for line := range strings.Lines(c.cgroupFile(t, file)) {
		kind, rest, _ := strings.Cut(line, " ")
		_, total, _ := strings.Cut(rest, "total=")
		value, err := strconv.ParseUint(strings.TrimSpace(total), 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if kind == "some" {
			some = value * 1000
		} else {
			full = value * 1000
		}
	}
	return some, full
}

// kernelSays is what the cgroup's files tell, under the names by which told has it.
func (c *container) kernelSays(t *testing.T) map[string]uint64 {
	t.Helper()
	memory, usage := c.fields(t, "memory.stat"), c.number(t, "memory.current")
	all := map[string]uint64{
		"cpu": c.fields(t, "cpu.stat")["usage_usec"] * 1000, "memory": usage, "working set": usage - memory["inactive_file"],
		"rss": memory["anon"], "page faults": memory["pgfault"], "major page faults": memory["pgmajfault"],
		"available": c.number(t, "memory.max") - (usage - memory["inactive_file"]),
		"swap":      c.number(t, "memory.swap.current"),
		"swap left": c.number(t, "memory.swap.max") - c.number(t, "memory.swap.current"),
	}
	for _, name := range []string{"cpu", "memory", "io"} {
		all[name+" some"], all[name+" full"] = c.pressureTotals(t, name+".pressure")
	}
	return all
}

// told is what the CRI tells.
func (c *container) told(t *testing.T) map[string]uint64 {
	t.Helper()
	response, err := installed.Runtime.ContainerStats(timeout(t), &runtime.ContainerStatsRequest{ContainerId: c.id})
	if err != nil {
		t.Fatal(err)
	}
	s := response.Stats
	all := map[string]uint64{
		"cpu": s.GetCpu().GetUsageCoreNanoSeconds().GetValue(), "memory": s.GetMemory().GetUsageBytes().GetValue(),
		"working set": s.GetMemory().GetWorkingSetBytes().GetValue(), "rss": s.GetMemory().GetRssBytes().GetValue(),
		"page faults":       s.GetMemory().GetPageFaults().GetValue(),
		"major page faults": s.GetMemory().GetMajorPageFaults().GetValue(),
		"available":         s.GetMemory().GetAvailableBytes().GetValue(),
		"swap":              s.GetSwap().GetSwapUsageBytes().GetValue(),
		"swap left":         s.GetSwap().GetSwapAvailableBytes().GetValue(),
	}
	for name, psi := range map[string]*runtime.PsiStats{
		"cpu": s.GetCpu().GetPsi(), "memory": s.GetMemory().GetPsi(), "io": s.GetIo().GetPsi(),
	} {
		all[name+" some"], all[name+" full"] = psi.GetSome().GetTotal(), psi.GetFull().GetTotal()
	}
	return all
}

// differences names what the two do not agree on.
func differences(kernel, told map[string]uint64) []string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(kernel)) {
		if kernel[key] != told[key] {
			list = append(list, fmt.Sprintf("%s: the kernel says %d, the CRI %d", key, kernel[key], told[key]))
		}
	}
	return list
}

// The container swaps, reads and computes, and then sleeps: its figures stand still but for what the kernel adds late.
func TestNodeStatsAreTheKernels(t *testing.T) {
	p := runPod(t)
	work := "dd if=/dev/zero of=/dev/shm/f bs=1M count=24 2>/dev/null; dd if=/dev/zero of=/f bs=1M count=8 conv=fsync 2>/dev/null; " +
		"i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; exec sleep 1000"
	c := p.start(t, work, limits(&runtime.LinuxContainerResources{
		MemoryLimitInBytes: 32 << 20, CpuPeriod: 100000, CpuQuota: 80000,
		Unified: map[string]string{"memory.high": strconv.Itoa(16 << 20), "memory.swap.max": strconv.Itoa(64 << 20)},
	}))
	eventually(t, "the work is done", func() bool { return c.number(t, "pids.current") == 1 && strings.Contains(c.log(t), "done") })
	var different []string
	eventually(t, "the figures are the kernel's", func() bool {
		before, told := c.kernelSays(t), c.told(t)
		different = differences(before, told)
		if len(different) > 0 {
			t.Log(different)
		}
		return len(different) == 0
	})
	kernel := c.kernelSays(t)
	for _, name := range []string{"cpu", "memory", "working set", "page faults", "swap", "cpu some"} {
		if kernel[name] == 0 {
			t.Errorf("%s is 0: nothing was compared", name)
		}
	}
}
