package spec

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What the kernel takes, but for minMemory: with less than that a process is killed before it begins.
const (
	minMemory      = 6 << 20
	minCPUShares   = 2
	maxCPUShares   = 262144
	minPeriod      = 1000
	minQuota       = 1000
	maxPeriod      = 1000000
	minOOMScoreAdj = -1000
	maxOOMScoreAdj = 1000
)

// addResources sets the limits and oom_score_adj. The score is set always: a container must not inherit the daemon's.
func (b *builder) addResources() error {
	limits := b.in.Config.GetLinux().GetResources()
	resources, err := Resources(limits, b.in.Node)
	if err != nil {
		return err
	}
	score := max(int(limits.GetOomScoreAdj()), b.in.Node.OOMScoreFloor)
	b.spec.Process.OOMScoreAdj = &score
	b.spec.Linux.Resources = resources
	return nil
}

// Resources translates limits; the error is as Build's. Zero is unset. Device rules are not among them, and neither is
// oom_score_adj, which is checked here all the same.
func Resources(r *runtime.LinuxContainerResources, node Node) (*specs.LinuxResources, error) {
	if score := r.GetOomScoreAdj(); score < minOOMScoreAdj || score > maxOOMScoreAdj {
		return nil, invalid(resourceField("oom_score_adj"), score, "-1000 to 1000")
	}
	cpu, err := cpuLimits(r)
	if err != nil {
		return nil, err
	}
	memory, err := memoryLimits(r, node)
	if err != nil {
		return nil, err
	}
	hugepages, err := hugepageLimits(r, node)
	if err != nil {
		return nil, err
	}
	unified, err := unifiedLimits(r, node)
	if err != nil {
		return nil, err
	}
	return &specs.LinuxResources{CPU: cpu, Memory: memory, HugepageLimits: hugepages, Unified: unified}, nil
}

func resourceField(name string) string { return "linux.resources." + name }

func cpuLimits(r *runtime.LinuxContainerResources) (*specs.LinuxCPU, error) {
	cpu := specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if shares := r.GetCpuShares(); shares < 0 {
		return nil, invalid(resourceField("cpu_shares"), shares, "0 or more")
	} else if shares > 0 {
		// The kernel clamps too; but libcontainer takes a value that comes back different for an error.
		clamped := uint64(min(max(shares, minCPUShares), maxCPUShares))
		cpu.Shares = &clamped
	}
	if period := r.GetCpuPeriod(); period != 0 {
		if period < minPeriod || period > maxPeriod {
			return nil, invalid(resourceField("cpu_period"), period, "0 or 1000 to 1000000 microseconds")
		}
		unsigned := uint64(period)
		cpu.Period = &unsigned
	}
	if quota := r.GetCpuQuota(); quota != 0 {
		if quota != -1 && quota < minQuota {
			return nil, invalid(resourceField("cpu_quota"), quota, "-1, 0 or at least 1000 microseconds")
		}
		cpu.Quota = &quota
	}
	if !isIDList(cpu.Cpus) {
		return nil, invalid(resourceField("cpuset_cpus"), cpu.Cpus, "a list such as 0-3,5")
	}
	if !isIDList(cpu.Mems) {
		return nil, invalid(resourceField("cpuset_mems"), cpu.Mems, "a list such as 0-3,5")
	}
	if cpu == (specs.LinuxCPU{}) {
		return nil, nil
	}
	return &cpu, nil
}

// isIDList says whether s is a list of numbers and ranges, as cpusets have it. Empty is unset.
func isIDList(s string) bool {
	if s == "" {
		return true
	}
	for item := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(item, "-")
		from, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return false
		}
		if to, err := strconv.ParseUint(last, 10, 16); isRange && (err != nil || to < from) {
			return false
		}
	}
	return true
}

// memoryLimits: the CRI's swap limit is that of memory and swap together, as the OCI's is, on both cgroup versions.
func memoryLimits(r *runtime.LinuxContainerResources, node Node) (*specs.LinuxMemory, error) {
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	swapField := resourceField("memory_swap_limit_in_bytes")
	switch {
	case limit < 0 || limit > 0 && limit < minMemory:
		return nil, invalid(resourceField("memory_limit_in_bytes"), limit, fmt.Sprintf("0 or at least %d", minMemory))
	case swap < 0:
		return nil, invalid(swapField, swap, "0 or more")
	case swap > 0 && limit == 0:
		return nil, invalid(swapField, swap, "memory_limit_in_bytes with it")
	case swap > 0 && swap < limit:
		return nil, invalid(swapField, swap, fmt.Sprintf("at least memory_limit_in_bytes, %d", limit))
	case limit == 0:
		return nil, nil
	}
	memory := &specs.LinuxMemory{Limit: &limit}
	// The kubelet sends the limit again to forbid swap; a kernel that does not account for it cannot do more.
	if swap > 0 && node.SwapAccounting {
		memory.Swap = &swap
	}
	return memory, nil
}

// hugepageLimits leaves out the sizes that the node cannot limit: the kubelet sends every size it has heard of. Of one
// size the last limit counts.
func hugepageLimits(r *runtime.LinuxContainerResources, node Node) ([]specs.LinuxHugepageLimit, error) {
	limits := make(map[string]uint64)
	for i, l := range r.GetHugepageLimits() {
		size := l.GetPageSize()
		if !isPageSize(size) {
			return nil, invalid(fmt.Sprintf("%s[%d].page_size", resourceField("hugepage_limits"), i), size,
				"a size such as 2MB or 1GB")
		}
		if slices.Contains(node.HugePageSizes, size) {
			limits[size] = l.GetLimit()
		}
	}
	var sorted []specs.LinuxHugepageLimit
	for _, size := range slices.Sorted(maps.Keys(limits)) {
		sorted = append(sorted, specs.LinuxHugepageLimit{Pagesize: size, Limit: limits[size]})
	}
	return sorted, nil
}

func isPageSize(s string) bool {
	for _, unit := range []string{"KB", "MB", "GB"} {
		if number, ok := strings.CutSuffix(s, unit); ok {
			n, err := strconv.ParseUint(number, 10, 32)
			return err == nil && n > 0
		}
	}
	return false
}

// unifiedLimits are files of a version 2 cgroup; on version 1 there is nowhere to write them.
func unifiedLimits(r *runtime.LinuxContainerResources, node Node) (map[string]string, error) {
	if !node.CgroupV2 {
		return nil, nil
	}
	for _, key := range slices.Sorted(maps.Keys(r.GetUnified())) {
		controller, file, _ := strings.Cut(key, ".")
		if controller == "" || file == "" || strings.ContainsAny(key, "/\x00") {
			return nil, invalid(resourceField("unified")+" key", key, "the name of a cgroup file such as memory.high")
		}
	}
	return maps.Clone(r.GetUnified()), nil
}

// MergeResources returns base with the non-zero fields of update laid over it, as UpdateContainerResources means it:
// hugepage limits are replaced by size, unified by key. When update has a memory limit and no swap limit, the swap that
// base allows beyond its memory stays the same, for the swap limit counts both. Neither argument is changed; either may
// be nil.
func MergeResources(base, update *runtime.LinuxContainerResources) *runtime.LinuxContainerResources {
	merged, ok := proto.Clone(base).(*runtime.LinuxContainerResources)
	if !ok || merged == nil {
		merged = &runtime.LinuxContainerResources{}
	}
	if merged.MemorySwapLimitInBytes > 0 && update.GetMemoryLimitInBytes() > 0 {
		merged.MemorySwapLimitInBytes += update.GetMemoryLimitInBytes() - merged.MemoryLimitInBytes
	}
	for _, field := range []struct {
		to   *int64
		from int64
	}{
		{&merged.CpuPeriod, update.GetCpuPeriod()},
		{&merged.CpuQuota, update.GetCpuQuota()},
		{&merged.CpuShares, update.GetCpuShares()},
		{&merged.MemoryLimitInBytes, update.GetMemoryLimitInBytes()},
		{&merged.OomScoreAdj, update.GetOomScoreAdj()},
		{&merged.MemorySwapLimitInBytes, update.GetMemorySwapLimitInBytes()},
	} {
		if field.from != 0 {
			*field.to = field.from
		}
	}
	if cpus := update.GetCpusetCpus(); cpus != "" {
		merged.CpusetCpus = cpus
	}
	if mems := update.GetCpusetMems(); mems != "" {
		merged.CpusetMems = mems
	}
	mergeHugepages(merged, update.GetHugepageLimits())
	if len(update.GetUnified()) > 0 && merged.Unified == nil {
		merged.Unified = make(map[string]string)
	}
	maps.Copy(merged.Unified, update.GetUnified())
	return merged
}

func mergeHugepages(merged *runtime.LinuxContainerResources, update []*runtime.HugepageLimit) {
	for _, l := range update {
		merged.HugepageLimits = slices.DeleteFunc(merged.HugepageLimits, func(old *runtime.HugepageLimit) bool {
			return old.GetPageSize() == l.GetPageSize()
		})
		merged.HugepageLimits = append(merged.HugepageLimits, &runtime.HugepageLimit{
			PageSize: l.GetPageSize(), Limit: l.GetLimit(),
		})
	}
}
