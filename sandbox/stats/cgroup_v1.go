package stats

import (
	"bytes"
	"path/filepath"
)

// nanosecondsPerTick is the unit of cpuacct.stat: USER_HZ is 100 on every architecture.
const nanosecondsPerTick = 10_000_000

// readV1 reads the cgroup from the hierarchies of cgroup v1 (Documentation/admin-guide/cgroup-v1).
func (c *cgroups) readV1(r *reader, cgroup string, s *Sample) {
	dir := func(controller string) string { return filepath.Join(c.root, controller, cgroup) }
	s.CPU = cpuV1(r, dir("cpuacct"), dir("cpu"))
	s.Memory = memoryV1(r, dir("memory"))
	s.IO = c.ioV1(r, dir("blkio"))
	s.Tasks = tasks(r, dir("pids"))
	for _, size := range c.sizes {
		prefix := dir("hugetlb") + "/hugetlb." + size
		usage, ok := r.uint(prefix + ".usage_in_bytes")
		if !ok {
			continue
		}
		most, _ := r.uint(prefix + ".max_usage_in_bytes")
		s.HugePages = append(s.HugePages, HugePages{Size: size, Usage: usage, Max: most})
	}
}

func cpuV1(r *reader, acct, cpu string) *CPU {
	usage, ok := r.uint(acct + "/cpuacct.usage")
	if !ok {
		return nil
	}
	result := &CPU{Usage: usage}
	if content, err := r.read(acct + "/cpuacct.stat"); err == nil {
		for key, value := range pairs(content) {
			switch string(key) {
			case "user":
				result.User = value * nanosecondsPerTick
			case "system":
				result.System = value * nanosecondsPerTick
			}
		}
	}
	if content, err := r.read(cpu + "/cpu.stat"); err == nil {
		for key, value := range pairs(content) {
			switch string(key) {
			case "nr_periods":
				result.Periods = value
			case "nr_throttled":
				result.ThrottledPeriods = value
			case "throttled_time":
				result.Throttled = value
			}
		}
	}
	result.Period, _ = r.uint(cpu + "/cpu.cfs_period_us")
	result.Quota, _ = r.uint(cpu + "/cpu.cfs_quota_us") // -1 is no number, and no quota
	result.Shares, _ = r.uint(cpu + "/cpu.shares")
	return result
}

func memoryV1(r *reader, dir string) *Memory {
	usage, ok := r.uint(dir + "/memory.usage_in_bytes")
	if !ok {
		return nil
	}
	m := &Memory{Usage: usage}
	content, err := r.read(dir + "/memory.stat")
	if err != nil {
		return nil
	}
	var swap uint64
	for key, value := range pairs(content) {
		switch string(key) {
		case "total_active_file":
			m.ActiveFile = value
		case "total_inactive_file":
			m.InactiveFile = value
		case "total_swap":
			swap = value
		case "total_rss":
			m.RSS = value
		case "total_cache":
			m.Cache = value
		case "total_mapped_file":
			m.MappedFile = value
		case "total_pgfault":
			m.PageFaults = value
		case "total_pgmajfault":
			m.MajorPageFaults = value
		case "pgfault":
			m.OwnPageFaults = value
		case "pgmajfault":
			m.OwnMajorPageFaults = value
		}
	}
	m.WorkingSet = less(usage, m.InactiveFile)
	m.MaxUsage, _ = r.uint(dir + "/memory.max_usage_in_bytes")
	m.FailCount, _ = r.uint(dir + "/memory.failcnt")
	m.Kernel, _ = r.uint(dir + "/memory.kmem.usage_in_bytes")
	m.Limit = r.limit(dir + "/memory.limit_in_bytes")
	m.Reservation = r.limit(dir + "/memory.soft_limit_in_bytes")
	if content, err := r.read(dir + "/memory.oom_control"); err == nil {
		for key, value := range pairs(content) {
			if string(key) == "oom_kill" {
				m.OOMKills = value
			}
		}
	}
	// The file is missing where swap accounting is off.
	if both, ok := r.uint(dir + "/memory.memsw.limit_in_bytes"); ok {
		m.Swap = &Swap{Usage: swap}
		if both = limited(both); both != 0 && m.Limit != 0 {
			limit := less(both, m.Limit)
			m.Swap.Limit = &limit
		}
	}
	return m
}

// ioV1 reads what was counted where limits are, which is for every device and scheduler. Older kernels count there for
// the cgroup without those below it, in a file of another name.
func (c *cgroups) ioV1(r *reader, dir string) *IO {
	io := &IO{}
	found := false
	for _, file := range []struct {
		name        string
		read, write func(*Device) *uint64
	}{
		{"io_service_bytes",
			func(d *Device) *uint64 { return &d.ReadBytes }, func(d *Device) *uint64 { return &d.WriteBytes }},
		{"io_serviced", func(d *Device) *uint64 { return &d.Reads }, func(d *Device) *uint64 { return &d.Writes }},
	} {
		content, err := r.read(dir + "/blkio.throttle." + file.name + "_recursive")
		if err != nil {
			content, err = r.read(dir + "/blkio.throttle." + file.name)
		}
		if err != nil {
			continue
		}
		found = true
		for line := range bytes.SplitSeq(content, []byte{'\n'}) {
			d, operation, value, ok := io.blkioLine(line)
			switch {
			case !ok:
			case operation == "Read":
				*file.read(d) = value
			case operation == "Write":
				*file.write(d) = value
			}
		}
	}
	if !found {
		return nil
	}
	for i := range io.Devices {
		io.Devices[i].Name = c.device(io.Devices[i].Major, io.Devices[i].Minor)
	}
	return io
}

// blkioLine reads "8:0 Read 4096" and finds or adds the device.
func (io *IO) blkioLine(line []byte) (d *Device, operation string, value uint64, ok bool) {
	fields := bytes.Fields(line)
	if len(fields) != 3 {
		return nil, "", 0, false
	}
	value, ok = number(fields[2])
	if !ok {
		return nil, "", 0, false
	}
	d = io.device(fields[0])
	return d, string(fields[1]), value, d != nil
}

// device finds or adds the device of a text "8:0"; nil where it is none.
func (io *IO) device(text []byte) *Device {
	before, after, _ := bytes.Cut(text, []byte{':'})
	major, ok := number(before)
	minor, ok2 := number(after)
	if !ok || !ok2 {
		return nil
	}
	for i := range io.Devices {
		if d := &io.Devices[i]; d.Major == major && d.Minor == minor {
			return d
		}
	}
	io.Devices = append(io.Devices, Device{Major: major, Minor: minor})
	return &io.Devices[len(io.Devices)-1]
}

// tasks reads the pids controller, which is the same in both versions.
func tasks(r *reader, dir string) *Tasks {
	threads, ok := r.uint(dir + "/pids.current")
	if !ok {
		return nil
	}
	return &Tasks{Threads: threads, Limit: r.limit(dir + "/pids.max")}
}

// less is a-b, but not below 0: the two were not read at the same moment.
func less(a, b uint64) uint64 {
	if b > a {
		return 0
	}
	return a - b
}
