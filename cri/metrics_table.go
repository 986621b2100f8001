package cri

import (
	"slices"
	"strconv"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/gantry-cri/gantry/sandbox/stats"
)

const (
	counter = runtime.MetricType_COUNTER
	gauge   = runtime.MetricType_GAUGE
)

// addValue takes one value of a metric, with the values of the metric's own labels.
type addValue func(value uint64, labels ...string)

// metric is a metric: its description, and what values a subject has. Where the kernel gives no figure there is none.
//
// The names and units are cAdvisor's. Values are whole numbers, so what has seconds in its name loses the fraction.
type metric struct {
	name   string
	kind   runtime.MetricType
	help   string
	labels []string
	values func(*subject, addValue)
}

// metrics are all metrics.
var metrics = slices.Concat(
	generalMetrics, cpuMetrics, memoryMetrics, diskMetrics, networkMetrics, processMetrics, pressureMetrics,
)

var generalMetrics = []metric{
	{"container_last_seen", gauge, "Last time the container was sampled, in seconds since 1970.", nil,
		func(s *subject, add addValue) { add(uint64(s.Time.Unix())) }},
	{"container_start_time_seconds", gauge, "Start time of the container in seconds since 1970.", nil,
		func(s *subject, add addValue) { add(uint64(s.started.Unix())) }},
}

var cpuMetrics = []metric{
	{"container_cpu_usage_seconds_total", counter, "Cumulative CPU time consumed, in seconds.", []string{"cpu"},
		ofCPU(func(c *stats.CPU, add addValue) { add(wholeSeconds(c.Usage), "total") })},
	{"container_cpu_user_seconds_total", counter, "Cumulative user CPU time consumed, in seconds.", nil,
		ofCPU(func(c *stats.CPU, add addValue) { add(wholeSeconds(c.User)) })},
	{"container_cpu_system_seconds_total", counter, "Cumulative system CPU time consumed, in seconds.", nil,
		ofCPU(func(c *stats.CPU, add addValue) { add(wholeSeconds(c.System)) })},
	{"container_cpu_cfs_periods_total", counter, "Number of elapsed enforcement periods of the CPU quota.", nil,
		ofQuota(func(c *stats.CPU, add addValue) { add(c.Periods) })},
	{"container_cpu_cfs_throttled_periods_total", counter, "Number of periods in which the quota was used up.", nil,
		ofQuota(func(c *stats.CPU, add addValue) { add(c.ThrottledPeriods) })},
	{"container_cpu_cfs_throttled_seconds_total", counter, "Total time that was throttled, in seconds.", nil,
		ofQuota(func(c *stats.CPU, add addValue) { add(wholeSeconds(c.Throttled)) })},
	{"container_spec_cpu_quota", gauge, "CPU quota, in microseconds per period.", nil,
		ofQuota(func(c *stats.CPU, add addValue) { add(c.Quota) })},
	{"container_spec_cpu_period", gauge, "CPU period, in microseconds.", nil,
		ofCPU(func(c *stats.CPU, add addValue) { add(c.Period) })},
	{"container_spec_cpu_shares", gauge, "CPU shares.", nil,
		ofCPU(func(c *stats.CPU, add addValue) { add(c.Shares) })},
}

var memoryMetrics = []metric{
	{"container_memory_usage_bytes", gauge, "Current memory usage in bytes, whenever it was accessed.", nil,
		ofMemory(func(m *stats.Memory, add addValue) { add(m.Usage) })},
	{"container_memory_working_set_bytes", gauge, "Current working set in bytes.", nil,
		ofMemory(func(m *stats.Memory, add addValue) { add(m.WorkingSet) })},
	{"container_memory_max_usage_bytes", gauge, "Maximum memory usage recorded, in bytes.", nil,
		ofMemory(func(m *stats.Memory, add addValue) { add(m.MaxUsage) })},
	{"container_memory_rss", gauge, "Size of anonymous memory in bytes.", nil,
		ofMemory(func(m *stats.Memory, add addValue) { add(m.RSS) })},
	{"container_memory_cache", gauge, "Size of the page cache in bytes.", nil,
		ofMemory(func(m *stats.Memory, add addValue) { add(m.Cache) })},
	{"container_memory_mapped_file", gauge, "Size of memory mapped files in bytes.", nil,
		ofMemory(func(m *stats.Memory, add addValue) { add(m.MappedFile) })},
	{"container_memory_total_active_file_bytes", gauge, "Size of the active part of the page cache in bytes.", nil,
		ofMemory(func(m *stats.Memory, add addValue) { add(m.ActiveFile) })},
	{"container_memory_total_inactive_file_bytes", gauge, "Size of the inactive part of the page cache in bytes.", nil,
		ofMemory(func(m *stats.Memory, add addValue) { add(m.InactiveFile) })},
	{"container_memory_kernel_usage", gauge, "Size of kernel memory in bytes.", nil,
		ofMemory(func(m *stats.Memory, add addValue) { add(m.Kernel) })},
	{"container_memory_swap", gauge, "Swap usage in bytes.", nil,
		ofMemory(func(m *stats.Memory, add addValue) {
			if m.Swap != nil {
				add(m.Swap.Usage)
			}
		})},
	{"container_memory_failcnt", counter, "Number of times that the memory limit was hit.", nil,
		ofMemory(func(m *stats.Memory, add addValue) { add(m.FailCount) })},
	{"container_memory_failures_total", counter, "Cumulative count of page faults.", []string{"failure_type", "scope"},
		ofMemory(func(m *stats.Memory, add addValue) {
			add(m.OwnPageFaults, "pgfault", "container")
			add(m.OwnMajorPageFaults, "pgmajfault", "container")
			add(m.PageFaults, "pgfault", "hierarchy")
			add(m.MajorPageFaults, "pgmajfault", "hierarchy")
		})},
	{"container_oom_events_total", counter, "Number of processes killed because memory ran out.", nil,
		ofMemory(func(m *stats.Memory, add addValue) { add(m.OOMKills) })},
	{"container_spec_memory_limit_bytes", gauge, "Memory limit in bytes; 0 is none.", nil,
		ofMemory(func(m *stats.Memory, add addValue) { add(m.Limit) })},
	{"container_spec_memory_reservation_limit_bytes", gauge, "Memory reservation in bytes; 0 is none.", nil,
		ofMemory(func(m *stats.Memory, add addValue) { add(m.Reservation) })},
	{"container_spec_memory_swap_limit_bytes", gauge, "Limit of memory and swap together in bytes; 0 is none.", nil,
		ofMemory(func(m *stats.Memory, add addValue) {
			switch {
			case m.Swap == nil:
			case m.Swap.Limit == nil || m.Limit == 0:
				add(0)
			default:
				add(m.Limit + *m.Swap.Limit)
			}
		})},
	{"container_hugetlb_usage_bytes", gauge, "Current usage of huge pages in bytes.", []string{"pagesize"},
		func(s *subject, add addValue) {
			for _, h := range s.HugePages {
				add(h.Usage, h.Size)
			}
		}},
	{"container_hugetlb_max_usage_bytes", gauge, "Maximum usage of huge pages recorded, in bytes.", []string{"pagesize"},
		func(s *subject, add addValue) {
			for _, h := range s.HugePages {
				add(h.Max, h.Size)
			}
		}},
}

var diskMetrics = []metric{
	{"container_blkio_device_usage_total", counter, "Bytes moved to and from block devices.",
		[]string{"device", "major", "minor", "operation"},
		func(s *subject, add addValue) {
			eachDevice(s, func(d *stats.Device) {
				major, minor := strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10)
				add(d.ReadBytes, d.Name, major, minor, "Read")
				add(d.WriteBytes, d.Name, major, minor, "Write")
			})
		}},
	{"container_fs_reads_bytes_total", counter, "Cumulative count of bytes read.", []string{"device"},
		ofDevices(func(d *stats.Device) uint64 { return d.ReadBytes })},
	{"container_fs_reads_total", counter, "Cumulative count of reads completed.", []string{"device"},
		ofDevices(func(d *stats.Device) uint64 { return d.Reads })},
	{"container_fs_writes_bytes_total", counter, "Cumulative count of bytes written.", []string{"device"},
		ofDevices(func(d *stats.Device) uint64 { return d.WriteBytes })},
	{"container_fs_writes_total", counter, "Cumulative count of writes completed.", []string{"device"},
		ofDevices(func(d *stats.Device) uint64 { return d.Writes })},
	{"container_fs_usage_bytes", gauge, "Number of bytes used by the container's writable layer.", []string{"device"},
		ofLayer(func(l *stats.Layer) uint64 { return l.Bytes })},
	{"container_fs_limit_bytes", gauge, "Size of the filesystem of the writable layer in bytes.", []string{"device"},
		ofLayer(func(l *stats.Layer) uint64 { return l.Limit })},
	{"container_fs_inodes_total", gauge, "Number of inodes of that filesystem.", []string{"device"},
		ofLayer(func(l *stats.Layer) uint64 { return l.InodesTotal })},
	{"container_fs_inodes_free", gauge, "Number of free inodes of that filesystem.", []string{"device"},
		ofLayer(func(l *stats.Layer) uint64 { return l.InodesFree })},
}

var networkMetrics = []metric{
	{"container_network_receive_bytes_total", counter, "Cumulative count of bytes received.", []string{"interface"},
		ofInterfaces(func(i *stats.Interface) uint64 { return i.RxBytes })},
	{"container_network_receive_packets_total", counter, "Cumulative count of packets received.", []string{"interface"},
		ofInterfaces(func(i *stats.Interface) uint64 { return i.RxPackets })},
	{"container_network_receive_packets_dropped_total", counter, "Cumulative count of packets dropped while receiving.",
		[]string{"interface"}, ofInterfaces(func(i *stats.Interface) uint64 { return i.RxDropped })},
	{"container_network_receive_errors_total", counter, "Cumulative count of errors while receiving.",
		[]string{"interface"}, ofInterfaces(func(i *stats.Interface) uint64 { return i.RxErrors })},
	{"container_network_transmit_bytes_total", counter, "Cumulative count of bytes transmitted.", []string{"interface"},
		ofInterfaces(func(i *stats.Interface) uint64 { return i.TxBytes })},
	{"container_network_transmit_packets_total", counter, "Cumulative count of packets transmitted.",
		[]string{"interface"}, ofInterfaces(func(i *stats.Interface) uint64 { return i.TxPackets })},
	{"container_network_transmit_packets_dropped_total", counter,
		"Cumulative count of packets dropped while transmitting.",
		[]string{"interface"}, ofInterfaces(func(i *stats.Interface) uint64 { return i.TxDropped })},
	{"container_network_transmit_errors_total", counter, "Cumulative count of errors while transmitting.",
		[]string{"interface"}, ofInterfaces(func(i *stats.Interface) uint64 { return i.TxErrors })},
}

var processMetrics = []metric{
	{"container_processes", gauge, "Number of processes in the container.", nil,
		func(s *subject, add addValue) { add(s.Processes) }},
	{"container_threads", gauge, "Number of threads in the container.", nil,
		ofTasks(func(t *stats.Tasks, add addValue) { add(t.Threads) })},
	{"container_threads_max", gauge, "Maximum number of threads allowed; 0 is any number.", nil,
		ofTasks(func(t *stats.Tasks, add addValue) { add(t.Limit) })},
	{"container_file_descriptors", gauge, "Number of open file descriptors.", nil,
		ofFiles(func(f *stats.Files, add addValue) { add(f.Open) })},
	{"container_sockets", gauge, "Number of open sockets.", nil,
		ofFiles(func(f *stats.Files, add addValue) { add(f.Sockets) })},
	{"container_ulimits_soft", gauge, "Soft limit of the container's first process.", []string{"ulimit"},
		ofFiles(func(f *stats.Files, add addValue) { add(f.Limit, "max_open_files") })},
}

var pressureMetrics = []metric{
	{"container_pressure_cpu_waiting_seconds_total", counter, "Time in which tasks waited for CPU, in seconds.", nil,
		ofPressure(cpuPressure, someTotal)},
	{"container_pressure_cpu_stalled_seconds_total", counter, "Time in which all tasks waited for CPU, in seconds.", nil,
		ofPressure(cpuPressure, fullTotal)},
	{"container_pressure_memory_waiting_seconds_total", counter, "Time in which tasks waited for memory, in seconds.",
		nil, ofPressure(memoryPressure, someTotal)},
	{"container_pressure_memory_stalled_seconds_total", counter,
		"Time in which all tasks waited for memory, in seconds.", nil, ofPressure(memoryPressure, fullTotal)},
	{"container_pressure_io_waiting_seconds_total", counter, "Time in which tasks waited for IO, in seconds.", nil,
		ofPressure(ioPressure, someTotal)},
	{"container_pressure_io_stalled_seconds_total", counter, "Time in which all tasks waited for IO, in seconds.", nil,
		ofPressure(ioPressure, fullTotal)},
}

// The functions below make the values of a metric of one part of a sample, and none where the part is missing.

func ofCPU(values func(*stats.CPU, addValue)) func(*subject, addValue) {
	return func(s *subject, add addValue) {
		if s.CPU != nil {
			values(s.CPU, add)
		}
	}
}

// ofQuota is for what only a CPU quota gives a meaning.
func ofQuota(values func(*stats.CPU, addValue)) func(*subject, addValue) {
	return ofCPU(func(c *stats.CPU, add addValue) {
		if c.Quota > 0 {
			values(c, add)
		}
	})
}

func ofMemory(values func(*stats.Memory, addValue)) func(*subject, addValue) {
	return func(s *subject, add addValue) {
		if s.Memory != nil {
			values(s.Memory, add)
		}
	}
}

func ofTasks(values func(*stats.Tasks, addValue)) func(*subject, addValue) {
	return func(s *subject, add addValue) {
		if s.Tasks != nil {
			values(s.Tasks, add)
		}
	}
}

func ofFiles(values func(*stats.Files, addValue)) func(*subject, addValue) {
	return func(s *subject, add addValue) {
		if s.Files != nil {
			values(s.Files, add)
		}
	}
}

func ofLayer(value func(*stats.Layer) uint64) func(*subject, addValue) {
	return func(s *subject, add addValue) {
		if s.Layer != nil {
			add(value(s.Layer), s.Layer.Device)
		}
	}
}

func ofInterfaces(value func(*stats.Interface) uint64) func(*subject, addValue) {
	return func(s *subject, add addValue) {
		for i := range s.Interfaces {
			add(value(&s.Interfaces[i]), s.Interfaces[i].Name)
		}
	}
}

// eachDevice visits the block devices. One without a name gets one by its numbers, so that two are told apart.
func eachDevice(s *subject, visit func(*stats.Device)) {
	if s.IO == nil {
		return
	}
	for _, d := range s.IO.Devices {
		if d.Name == "" {
			d.Name = strconv.FormatUint(d.Major, 10) + ":" + strconv.FormatUint(d.Minor, 10)
		}
		visit(&d)
	}
}

func ofDevices(value func(*stats.Device) uint64) func(*subject, addValue) {
	return func(s *subject, add addValue) {
		eachDevice(s, func(d *stats.Device) { add(value(d), d.Name) })
	}
}

func ofPressure(
	of func(*stats.Sample) *stats.Pressure, total func(*stats.Pressure) uint64,
) func(*subject, addValue) {
	return func(s *subject, add addValue) {
		if p := of(s.Sample); p != nil {
			add(wholeSeconds(total(p)))
		}
	}
}

func cpuPressure(s *stats.Sample) *stats.Pressure {
	if s.CPU == nil {
		return nil
	}
	return s.CPU.Pressure
}

func memoryPressure(s *stats.Sample) *stats.Pressure {
	if s.Memory == nil {
		return nil
	}
	return s.Memory.Pressure
}

func ioPressure(s *stats.Sample) *stats.Pressure {
	if s.IO == nil {
		return nil
	}
	return s.IO.Pressure
}

func someTotal(p *stats.Pressure) uint64 { return p.Some.Total }
func fullTotal(p *stats.Pressure) uint64 { return p.Full.Total }

func wholeSeconds(nanoseconds uint64) uint64 { return nanoseconds / uint64(time.Second) }
