package spec

import (
	"fmt"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CheckPodResources checks what the kubelet tells of the use of a whole pod, under a field's name; the error is as
// Build's. It refuses what cannot be meant: nothing of it is put into force here, so that a value too small for a
// cgroup is none of its business. Nil and zero are unset.
func CheckPodResources(field string, r *runtime.LinuxContainerResources) error {
	const orMore = "0 or more"
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"cpu_period", r.GetCpuPeriod()},
		{"cpu_shares", r.GetCpuShares()},
		{"memory_limit_in_bytes", r.GetMemoryLimitInBytes()},
		{"memory_swap_limit_in_bytes", r.GetMemorySwapLimitInBytes()},
	} {
		if f.value < 0 {
			return invalid(field+"."+f.name, f.value, orMore)
		}
	}
	if quota := r.GetCpuQuota(); quota < -1 {
		return invalid(field+".cpu_quota", quota, "-1, 0 or more")
	}
	if period := r.GetCpuPeriod(); period > maxPeriod {
		return invalid(field+".cpu_period", period, fmt.Sprintf("at most %d microseconds", maxPeriod))
	}
	if score := r.GetOomScoreAdj(); score < minOOMScoreAdj || score > maxOOMScoreAdj {
		return invalid(field+".oom_score_adj", score, "-1000 to 1000")
	}
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if swap > 0 && swap < limit {
		return invalid(field+".memory_swap_limit_in_bytes", swap, fmt.Sprintf("at least memory_limit_in_bytes, %d", limit))
	}
	for _, list := range []struct{ name, value string }{
		{"cpuset_cpus", r.GetCpusetCpus()}, {"cpuset_mems", r.GetCpusetMems()},
	} {
		if !isIDList(list.value) {
			return invalid(field+"."+list.name, list.value, "a list such as 0-3,5")
		}
	}
	return nil
}
