// Package stats samples what sandboxes and containers use: their cgroups, the counters of their network interfaces, the
// files of their processes and their writable layers. One sampler reads all of it once per period; whoever asks reads
// memory, or waits for the sampler. Only layers are measured anew for a list, when their disk has filled since
// (Sampler.CatchUp).
//
// It is not where the statistics get the form of the CRI (package cri), it limits nothing and it decides nothing: a
// figure that the kernel does not give is missing, never an error.
package stats

import "time"

// Sample is what a container or a sandbox had used at one moment. It is immutable. A part is nil where the kernel does
// not give it, for instance because a controller is not there.
type Sample struct {
	Time   time.Time
	CPU    *CPU
	Memory *Memory
	IO     *IO
	Tasks  *Tasks
	// HugePages has an entry per page size.
	HugePages []HugePages
	// Processes is the number of processes; of a container only.
	Processes uint64
	// Layer is the writable layer and Files are the open files, both of a container only. They are measured less often
	// than the rest, and nil until they were for the first time.
	Layer *Layer
	Files *Files
	// Interfaces are those of a sandbox's network namespace, without the loopback; nil on the host's network.
	Interfaces []Interface
	// Form is what Config.ContainerForm or SandboxForm made of the sample.
	Form Form
}

func (s *Sample) fresh(maxAge time.Duration) bool {
	return s != nil && (maxAge == AnyAge || time.Since(s.Time) <= maxAge)
}

// Form is a sample as it is sent in a list. It is made when the sample is taken, so that a list of thousands only has to
// be put together. Subject says whose it is, and is the same for all samples of one status. The zero value is none.
type Form struct{ Subject, Usage []byte }

// CPU is the use of processors. Durations are in nanoseconds, summed over the processors.
type CPU struct {
	Usage, User, System uint64
	// NanoCores is the use per second between the last two samples, in nanoseconds per second; nil before the second
	// sample.
	NanoCores *uint64
	// Periods, ThrottledPeriods and Throttled (nanoseconds) tell of the quota.
	Periods, ThrottledPeriods, Throttled uint64
	// Period and Quota are in microseconds; Quota is 0 where there is none. Shares is in the unit of cgroup v1.
	Period, Quota, Shares uint64
	Pressure              *Pressure
}

// Memory is the use of memory, in bytes or events.
type Memory struct {
	// WorkingSet is what cannot be given back at once: Usage without the inactive part of the page cache.
	Usage, WorkingSet, MaxUsage       uint64
	RSS, Cache, MappedFile, Kernel    uint64
	ActiveFile, InactiveFile          uint64 // the parts of the page cache, with those of the cgroups below
	PageFaults, MajorPageFaults       uint64 // with those of the cgroups below
	OwnPageFaults, OwnMajorPageFaults uint64
	FailCount, OOMKills               uint64
	Limit, Reservation                uint64 // 0 where there is none
	Swap                              *Swap
	Pressure                          *Pressure
}

// Swap is the use of swap space, in bytes. Limit is nil where there is none.
type Swap struct {
	Usage uint64
	Limit *uint64
}

// IO is the use of block devices.
type IO struct {
	Devices  []Device
	Pressure *Pressure
}

// Device is the use of one block device.
type Device struct {
	Major, Minor uint64
	// Name is the path below /dev, or "" where the kernel does not tell.
	Name                                 string
	ReadBytes, WriteBytes, Reads, Writes uint64
}

// Tasks is the use of thread ids. Limit is 0 where there is none.
type Tasks struct {
	Threads, Limit uint64
}

// HugePages is the use of huge pages of one size ("2MB"), in bytes. Where the kernel keeps no maximum (cgroup v2), Max
// is the largest use that was sampled.
type HugePages struct {
	Size       string
	Usage, Max uint64
}

// Pressure is the time that was lost by waiting for a resource (Documentation/accounting/psi.rst): by some of the tasks
// and by all of them.
type Pressure struct {
	Some, Full Stall
}

// Stall is one line of a pressure file. Total is in nanoseconds, the averages over 10, 60 and 300 s are in percent.
type Stall struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

// Layer is a container's writable layer. Limit (bytes) and the inodes are those of the filesystem that it is on.
type Layer struct {
	Time                    time.Time
	Mountpoint, Device      string
	Bytes, InodesUsed       uint64
	Limit                   uint64
	InodesTotal, InodesFree uint64
}

// Files tells of the open files of a container's processes. Limit is the soft limit of its oldest process.
type Files struct {
	Open, Sockets, Limit uint64
}

// Interface is a network interface with its counters.
type Interface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}
