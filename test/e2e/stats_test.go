//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerStats asks for one container, which gives a sample of now.
func (c *container) stats(t *testing.T) *runtime.ContainerStats {
	t.Helper()
	response, err := c.node.Runtime.ContainerStats(timeout(t), &runtime.ContainerStatsRequest{ContainerId: c.id})
	if err != nil {
		t.Fatalf("stats of container: %v", err)
	}
	return response.Stats
}

func (p *pod) stats(t *testing.T) *runtime.PodSandboxStats {
	t.Helper()
	response, err := p.node.Runtime.PodSandboxStats(timeout(t), &runtime.PodSandboxStatsRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatalf("stats of sandbox: %v", err)
	}
	return response.Stats
}

func toNumber(t *testing.T, text string) uint64 {
	t.Helper()
	value, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// cpuUsage is what the kernel says of the container, in nanoseconds.
func (c *container) cpuUsage(t *testing.T) uint64 {
	t.Helper()
	text := c.cgroupFile(t, "cpuacct", "cpuacct.usage", "cpu.stat")
	if !cgroupV2() {
		return toNumber(t, text)
	}
	return 1000 * toNumber(t, strings.Fields(text)[1])
}

func TestStatsOfABusyContainerAreTheKernels(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "busy", "while :; do :; done")
	idle := p.start(t, "idle", "sleep 1000")
	var used uint64
	var spent, rate float64
	// The rate is of a part of the time between the two samples. How much of it the container gets is the machine's to say.
	right := func() bool { return rate >= 1e7 && rate >= spent/2 && rate <= spent*2 }
	for try := 0; !right() && try < 10; try++ {
		first := c.stats(t)
		time.Sleep(1400 * time.Millisecond)
		low := c.cpuUsage(t)
		time.Sleep(1500 * time.Millisecond) // whoever asks for one container gets a sample of the last second
		second := c.stats(t)
		high := c.cpuUsage(t)
		used = second.GetCpu().GetUsageCoreNanoSeconds().GetValue()
		if used < low || used > high {
			t.Errorf("CPU usage is %d, the kernel says %d before and %d after", used, low, high)
		}
		spent = float64(used-first.GetCpu().GetUsageCoreNanoSeconds().GetValue()) /
			float64(second.GetCpu().GetTimestamp()-first.GetCpu().GetTimestamp()) * 1e9
		rate = float64(second.GetCpu().GetUsageNanoCores().GetValue())
	}
	if !right() {
		t.Errorf("rate is %.0f nanocores, the two samples give %.0f", rate, spent)
	}
	if other := idle.stats(t).GetCpu().GetUsageCoreNanoSeconds().GetValue(); other > used/2 {
		t.Errorf("the idle container used %d, the busy one %d", other, used)
	}
	pod := p.stats(t).GetLinux()
	if got := pod.GetCpu().GetUsageCoreNanoSeconds().GetValue(); got < used {
		t.Errorf("the pod used %d, less than its container: %d", got, used)
	}
	if len(pod.GetContainers()) != 2 {
		t.Errorf("the pod has statistics of %d containers, expected 2", len(pod.GetContainers()))
	}
	if got := pod.GetProcess().GetProcessCount().GetValue(); got != 2 {
		t.Errorf("the pod has %d processes, expected 2", got)
	}
}

func TestStatsOfMemoryAreTheKernels(t *testing.T) {
	p := runPod(t)
	const limit = 128 << 20
	// The shell keeps the text: anonymous memory. The file is on the writable layer.
	c := p.start(t, "c", "x=$(dd if=/dev/zero bs=1M count=20 2>/dev/null | tr '\\0' x); dd if=/dev/zero of=/file bs=1M count=8 "+
		"2>/dev/null; echo ready; read y < /dev/zero; sleep 1000 & wait", limits(&runtime.LinuxContainerResources{
		MemoryLimitInBytes: limit,
	}))
	c.waitLog(t, "ready")
	eventually(t, "the sample is of after that", func() bool {
		return c.stats(t).GetMemory().GetRssBytes().GetValue() >= 20<<20 && c.stats(t).WritableLayer != nil
	})
	s := c.stats(t)
	m := s.GetMemory()
	kernel := toNumber(t, c.cgroupFile(t, "memory", "memory.usage_in_bytes", "memory.current"))
	if got := m.GetUsageBytes().GetValue(); got < kernel/2 || got > kernel*2 {
		t.Errorf("memory usage is %d, the kernel says %d", got, kernel)
	}
	if set := m.GetWorkingSetBytes().GetValue(); set > m.GetUsageBytes().GetValue() || set < 20<<20 {
		t.Errorf("working set is %d of %d", set, m.GetUsageBytes().GetValue())
	} else {
		wantEqual(t, "available memory", m.GetAvailableBytes().GetValue(), limit-set)
	}
	if m.GetPageFaults().GetValue() == 0 || m.GetTimestamp() == 0 {
		t.Errorf("got %v", m)
	}
	if _, err := os.Stat("/proc/pressure/memory"); err == nil && m.GetPsi() == nil && pressureIsKept(t, c) {
		t.Error("there is no pressure of memory although the kernel has it")
	}
	fs, err := p.node.Images.ImageFsInfo(timeout(t), &runtime.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if layer := s.GetWritableLayer(); layer.GetFsId().GetMountpoint() != fs.ImageFilesystems[0].FsId.Mountpoint ||
		layer.GetInodesUsed().GetValue() == 0 || layer.GetTimestamp() == 0 {
		t.Errorf("the writable layer is %v", layer)
	}
}

// pressureIsKept tells whether the container is in a cgroup with pressure files.
func pressureIsKept(t *testing.T, c *container) bool {
	t.Helper()
	return slices.ContainsFunc(cgroupsNamed(t, c.id), func(dir string) bool {
		_, err := os.ReadFile(filepath.Join(dir, "memory.pressure"))
		return err == nil
	})
}

// unifiedStats checks what the unified hierarchy counts without controllers: processor time, pressure and processes.
func unifiedStats(t *testing.T, p *pod) {
	c := p.start(t, "busy", "while :; do :; done")
	eventually(t, "processor time is counted", func() bool {
		return c.stats(t).GetCpu().GetUsageCoreNanoSeconds().GetValue() > 1e8
	})
	s := c.stats(t)
	if s.GetCpu().GetPsi() == nil || s.GetIo().GetPsi() == nil || s.GetMemory().GetTimestamp() == 0 {
		t.Errorf("got %v", s)
	}
	if count := p.stats(t).GetLinux().GetProcess().GetProcessCount().GetValue(); count < 1 {
		t.Errorf("the pod has %d processes", count)
	}
	if err := c.stop(t, 0); err != nil {
		t.Fatal(err)
	}
}

func TestStatsOfTheNetwork(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000")
	c.exec(t, "ping -c 3 -i 0.2 -s 1000 $(ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p')")
	var network *runtime.NetworkUsage
	eventually(t, "the sample is of after that", func() bool { // it may be of the last second
		network = p.stats(t).GetLinux().GetNetwork()
		return network.GetDefaultInterface().GetTxBytes().GetValue() >= 3000
	})
	wantEqual(t, "default interface", network.GetDefaultInterface().GetName(), "eth0")
	for _, name := range []string{"rx", "tx"} {
		told := network.GetDefaultInterface().GetRxBytes().GetValue()
		if name == "tx" {
			told = network.GetDefaultInterface().GetTxBytes().GetValue()
		}
		kernel := toNumber(t, c.exec(t, "cat /sys/class/net/eth0/statistics/"+name+"_bytes"))
		if told < 3000 || told > kernel {
			t.Errorf("%s: %d bytes, the kernel says %d later", name, told, kernel)
		}
	}
	for _, other := range network.GetInterfaces() {
		if other.Name == "eth0" || other.Name == "lo" {
			t.Errorf("%s is among the interfaces besides the default one", other.Name)
		}
	}

	host := runPodOn(t, shared, podConfig(t, shared, "-host"), func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
		c.Hostname = ""
	})
	if network := host.stats(t).GetLinux().GetNetwork(); network != nil {
		t.Errorf("a sandbox on the host's network has %v", network)
	}
}

func TestStatsAreListedFromTheStartToTheEnd(t *testing.T) {
	p := runPod(t)
	c := p.create(t, "c", "sleep 1000", func(c *runtime.ContainerConfig) { c.Labels = map[string]string{"listed": t.Name()} })
	filters := map[string]*runtime.ContainerStatsFilter{
		"id":       {Id: c.id},
		"prefix":   {Id: c.id[:13]},
		"sandbox":  {PodSandboxId: p.id},
		"labels":   {LabelSelector: map[string]string{"listed": t.Name()}},
		"all":      {Id: c.id, PodSandboxId: p.id, LabelSelector: map[string]string{"listed": t.Name()}},
		"no label": {Id: c.id, LabelSelector: map[string]string{"listed": "no"}},
	}
	list := func(filter *runtime.ContainerStatsFilter) []*runtime.ContainerStats {
		response, err := p.node.Runtime.ListContainerStats(timeout(t), &runtime.ListContainerStatsRequest{Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		return response.Stats
	}
	check := func(when string, want int) {
		t.Helper()
		for name, filter := range filters {
			expected := want
			if name == "no label" {
				expected = 0
			}
			if got := list(filter); len(got) != expected {
				t.Errorf("%s, by %s: %d entries, expected %d", when, name, len(got), expected)
			}
		}
	}
	check("created", 0)
	_, err := p.node.Runtime.ContainerStats(timeout(t), &runtime.ContainerStatsRequest{ContainerId: c.id})
	wantCode(t, err, codes.FailedPrecondition)
	if err := c.start(t); err != nil {
		t.Fatal(err)
	}
	check("started", 1)
	got := list(filters["id"])[0]
	if got.GetCpu().GetTimestamp() == 0 || got.GetMemory().GetTimestamp() == 0 ||
		got.GetAttributes().GetMetadata().GetName() != "c" || got.GetAttributes().GetLabels()["listed"] != t.Name() {
		t.Errorf("got %v", got)
	}
	if err := c.stop(t, 0); err != nil {
		t.Fatal(err)
	}
	check("stopped", 0)
	_, err = p.node.Runtime.ContainerStats(timeout(t), &runtime.ContainerStatsRequest{ContainerId: "no-such"})
	wantCode(t, err, codes.NotFound)
	for id, code := range map[string]codes.Code{"": codes.InvalidArgument, "no-such": codes.NotFound} {
		_, err = p.node.Runtime.PodSandboxStats(timeout(t), &runtime.PodSandboxStatsRequest{PodSandboxId: id})
		wantCode(t, err, code)
	}
}

// expectedMetrics are the names that dashboards of cAdvisor's metrics ask for.
var expectedMetrics = strings.Fields(`
container_blkio_device_usage_total container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total
container_cpu_cfs_throttled_seconds_total container_cpu_system_seconds_total container_cpu_usage_seconds_total
container_cpu_user_seconds_total container_file_descriptors container_fs_inodes_free container_fs_inodes_total
container_fs_limit_bytes container_fs_reads_bytes_total container_fs_reads_total container_fs_usage_bytes
container_fs_writes_bytes_total container_fs_writes_total container_hugetlb_max_usage_bytes
container_hugetlb_usage_bytes container_last_seen container_memory_cache container_memory_failcnt
container_memory_failures_total container_memory_kernel_usage container_memory_mapped_file
container_memory_max_usage_bytes container_memory_rss container_memory_swap container_memory_usage_bytes
container_memory_working_set_bytes container_network_receive_bytes_total container_network_receive_errors_total
container_network_receive_packets_dropped_total container_network_receive_packets_total
container_network_transmit_bytes_total container_network_transmit_errors_total
container_network_transmit_packets_dropped_total container_network_transmit_packets_total
container_oom_events_total container_pressure_cpu_stalled_seconds_total
container_pressure_cpu_waiting_seconds_total container_pressure_io_stalled_seconds_total
container_pressure_io_waiting_seconds_total container_pressure_memory_stalled_seconds_total
container_pressure_memory_waiting_seconds_total container_processes container_sockets container_spec_cpu_period
container_spec_cpu_quota container_spec_cpu_shares container_spec_memory_limit_bytes
container_spec_memory_reservation_limit_bytes container_spec_memory_swap_limit_bytes container_start_time_seconds
container_threads container_threads_max container_ulimits_soft`)

// kernelGives tells whether this kernel has what a metric is made of.
func kernelGives(t *testing.T, c *container, metric string) bool {
	t.Helper()
	has := func(pattern string) bool {
		for _, dir := range cgroupsNamed(t, c.id) {
			found, _ := filepath.Glob(filepath.Join(dir, pattern))
			for _, path := range found {
				if content, err := os.ReadFile(path); err == nil && len(content) > 0 {
					return true
				}
			}
		}
		return false
	}
	switch {
	case strings.HasPrefix(metric, "container_hugetlb"):
		return has("hugetlb.*current") || has("hugetlb.*.usage_in_bytes")
	case strings.HasPrefix(metric, "container_pressure"):
		return has("*.pressure")
	case strings.HasPrefix(metric, "container_blkio"), strings.HasPrefix(metric, "container_fs_reads"),
		strings.HasPrefix(metric, "container_fs_writes"):
		return false // only after IO of a device that the controller sees; a test's layer may be in memory
	case metric == "container_memory_swap", metric == "container_spec_memory_swap_limit_bytes":
		return has("memory.memsw.limit_in_bytes") || has("memory.swap.current")
	}
	return true
}

func TestMetricsHaveEveryNameAndFitTheirDescriptions(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "c", "sleep 1000", limits(&runtime.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 1024, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20,
	}))
	c.exec(t, "mkdir -p /var/lib/test && echo hi > /var/lib/test/file")
	described, err := p.node.Runtime.ListMetricDescriptors(timeout(t), &runtime.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string][]string{}
	for _, d := range described.Descriptors {
		if d.Help == "" || len(d.LabelKeys) == 0 || labels[d.Name] != nil {
			t.Errorf("description %v is incomplete or there twice", d)
		}
		labels[d.Name] = d.LabelKeys
	}
	for _, name := range expectedMetrics {
		if labels[name] == nil {
			t.Errorf("%s is not described", name)
		}
	}
	series := podSeries(t, p, labels)
	for _, name := range expectedMetrics {
		if len(series[name]) == 0 && kernelGives(t, c, name) {
			t.Errorf("%s has no value", name)
		}
	}
	for name, want := range map[string]uint64{
		"container_spec_cpu_quota": 20000, "container_spec_cpu_period": 100000,
		"container_spec_memory_limit_bytes": 64 << 20, "container_processes": 1,
	} {
		isIt := func(m *runtime.Metric) bool { return m.Value.Value == want && slices.Contains(m.LabelValues, c.id) }
		// The last sample may be of the moment when the exec was one of the processes.
		eventually(t, fmt.Sprintf("%s of the container is %d", name, want), func() bool {
			return slices.ContainsFunc(podSeries(t, p, labels)[name], isIt)
		})
	}
}

// podSeries gives a pod's metrics by name, after it looked at each.
func podSeries(t *testing.T, p *pod, labels map[string][]string) map[string][]*runtime.Metric {
	t.Helper()
	response, err := p.node.Runtime.ListPodSandboxMetrics(timeout(t), &runtime.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	series := map[string][]*runtime.Metric{}
	seen := map[string]bool{}
	for _, pod := range response.PodMetrics {
		all := slices.Clone(pod.Metrics)
		for _, c := range pod.ContainerMetrics {
			all = append(all, c.Metrics...)
		}
		for _, m := range all {
			key := m.Name + "\x00" + strings.Join(m.LabelValues, "\x00")
			if m.Value == nil || len(m.LabelValues) != len(labels[m.Name]) || seen[key] {
				t.Errorf("metric %v does not fit its description %v, or is there twice", m, labels[m.Name])
			}
			seen[key] = true
			if pod.PodSandboxId == p.id {
				series[m.Name] = append(series[m.Name], m)
			}
		}
	}
	return series
}

func TestStatsByCrictl(t *testing.T) {
	p := runPod(t)
	c := p.start(t, "seen-by-crictl", "sleep 1000")
	for _, args := range [][]string{
		{"stats", c.id}, {"stats", "-o", "json", c.id}, {"statsp"}, {"statsp", "-o", "json", "--id", p.id}, {"metricsp"},
		{"metricdescs"},
	} {
		out := crictl(t, args...)
		word := c.id[:13]
		switch args[0] {
		case "statsp":
			word = p.id[:13]
		case "metricsp":
			word = p.id
		case "metricdescs":
			word = "container_threads_max"
		}
		if !strings.Contains(out, word) {
			t.Errorf("crictl %v does not show %s: %s", args, word, out)
		}
	}
}
