package stats

import (
	"bytes"
	"math"
	"path/filepath"
)

// readV2 reads the cgroup from the hierarchy of cgroup v2 (Documentation/admin-guide/cgroup-v2.rst).
func (c *cgroups) readV2(r *reader, cgroup string, s *Sample) {
	dir := filepath.Join(c.root, cgroup)
	s.CPU = cpuV2(r, dir)
	s.Memory = memoryV2(r, dir)
	s.IO = c.ioV2(r, dir)
	s.Tasks = tasks(r, dir)
	for _, size := range c.sizes {
		if usage, ok := r.uint(dir + "/hugetlb." + size + ".current"); ok {
			s.HugePages = append(s.HugePages, HugePages{Size: size, Usage: usage, Max: usage})
		}
	}
}

func cpuV2(r *reader, dir string) *CPU {
	content, err := r.read(dir + "/cpu.stat")
	if err != nil {
		return nil
	}
	cpu := &CPU{}
	found := false
	for key, value := range pairs(content) {
		switch string(key) {
		case "usage_usec":
			cpu.Usage, found = value*1000, true
		case "user_usec":
			cpu.User = value * 1000
		case "system_usec":
			cpu.System = value * 1000
		case "nr_periods":
			cpu.Periods = value
		case "nr_throttled":
			cpu.ThrottledPeriods = value
		case "throttled_usec":
			cpu.Throttled = value * 1000
		}
	}
	if !found {
		return nil
	}
	if content, err := r.read(dir + "/cpu.max"); err == nil {
		quota, period, _ := bytes.Cut(bytes.TrimSpace(content), []byte{' '})
		cpu.Quota, _ = number(quota) // "max" is no number, and no quota
		cpu.Period, _ = number(period)
	}
	if weight, ok := r.uint(dir + "/cpu.weight"); ok && weight > 0 {
		cpu.Shares = sharesOf(weight)
	}
	return cpu
}

// sharesOf gives the shares of cgroup v1 that runtimes make a weight of (github.com/opencontainers/cgroups,
// ConvertCPUSharesToCgroupV2Value): 2, 1024 and 262144 become 1, 100 and 10000, what lies between the power of ten of
// (l²+125l)/612 - 7/34, rounded up, with l the binary logarithm of the shares.
func sharesOf(weight uint64) uint64 {
	exponent := math.Log10(float64(weight))
	l := (math.Sqrt(125*125+4*612*(exponent+7.0/34.0)) - 125) / 2
	return uint64(math.Round(math.Exp2(l)))
}

func memoryV2(r *reader, dir string) *Memory {
	usage, ok := r.uint(dir + "/memory.current")
	if !ok {
		return nil
	}
	m := &Memory{Usage: usage}
	content, err := r.read(dir + "/memory.stat")
	if err != nil {
		return nil
	}
	for key, value := range pairs(content) {
		switch string(key) {
		case "active_file":
			m.ActiveFile = value
		case "inactive_file":
			m.InactiveFile = value
		case "anon":
			m.RSS = value
		case "file":
			m.Cache = value
		case "file_mapped":
			m.MappedFile = value
		case "kernel":
			m.Kernel = value
		case "pgfault":
			// The kernel counts with the cgroups below, and only so.
			m.PageFaults, m.OwnPageFaults = value, value
		case "pgmajfault":
			m.MajorPageFaults, m.OwnMajorPageFaults = value, value
		}
	}
	m.WorkingSet = less(usage, m.InactiveFile)
	m.MaxUsage, _ = r.uint(dir + "/memory.peak") // since Linux 5.19
	m.MaxUsage = max(m.MaxUsage, usage)
	m.Limit = r.limit(dir + "/memory.max")
	m.Reservation = r.limit(dir + "/memory.low")
	if content, err := r.read(dir + "/memory.events"); err == nil {
		for key, value := range pairs(content) {
			switch string(key) {
			case "max":
				m.FailCount = value
			case "oom_kill":
				m.OOMKills = value
			}
		}
	}
	if swap, ok := r.uint(dir + "/memory.swap.current"); ok {
		m.Swap = &Swap{Usage: swap}
		if limit, ok := r.uint(dir + "/memory.swap.max"); ok {
			m.Swap.Limit = &limit
		}
	}
	return m
}

// ioV2 reads lines such as "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0".
func (c *cgroups) ioV2(r *reader, dir string) *IO {
	content, err := r.read(dir + "/io.stat")
	if err != nil {
		return nil
	}
	io := &IO{}
	for line := range bytes.SplitSeq(content, []byte{'\n'}) {
		id, rest, found := bytes.Cut(line, []byte{' '})
		if !found {
			continue
		}
		d := io.device(id)
		if d == nil {
			continue
		}
		for field := range bytes.FieldsSeq(rest) {
			key, text, _ := bytes.Cut(field, []byte{'='})
			value, _ := number(text)
			switch string(key) {
			case "rbytes":
				d.ReadBytes = value
			case "wbytes":
				d.WriteBytes = value
			case "rios":
				d.Reads = value
			case "wios":
				d.Writes = value
			}
		}
	}
	for i := range io.Devices {
		io.Devices[i].Name = c.device(io.Devices[i].Major, io.Devices[i].Minor)
	}
	return io
}
