package stats

import (
	"path/filepath"
	"slices"
	"time"
)

// ran is how much processor time a cgroup had used at a moment, in nanoseconds. As long as that stays the same nothing in
// it has run.
type ran struct {
	at  time.Time
	cpu uint64
}

// ran reads how long a cgroup has run; nil where the kernel does not tell.
func (c *cgroups) ran(r *reader, cgroup string) *ran {
	now := &ran{at: time.Now()}
	if !c.unified {
		usage, ok := r.uint(filepath.Join(c.root, "cpuacct", cgroup, "cpuacct.usage"))
		if !ok {
			return nil
		}
		now.cpu = usage
		return now
	}
	content, err := r.read(filepath.Join(c.root, cgroup, "cpu.stat"))
	if err != nil {
		return nil
	}
	for key, value := range pairs(content) {
		if string(key) == "usage_usec" {
			now.cpu = value * 1000
			return now
		}
	}
	return nil
}

// memory reads how much memory a cgroup uses.
func (c *cgroups) memory(r *reader, cgroup string) (bytes uint64, ok bool) {
	if c.unified {
		return r.uint(filepath.Join(c.root, cgroup, "memory.current"))
	}
	return r.uint(filepath.Join(c.root, "memory", cgroup, "memory.usage_in_bytes"))
}

// renew makes a sample of now from the last one, if nothing has run in the cgroup since and its memory is what it was; nil
// otherwise. That takes two files and not some thirty. What it does not see is what the kernel does by itself: averages of
// pressure decline, pages are written back.
func (s *Sampler) renew(r *reader, last *Sample, cgroup string) *Sample {
	if last == nil || last.CPU == nil || last.Memory == nil {
		return nil
	}
	if now := s.cgroups.ran(r, cgroup); now == nil || now.cpu != last.CPU.Usage {
		return nil
	}
	if memory, ok := s.cgroups.memory(r, cgroup); !ok || memory != last.Memory.Usage {
		return nil
	}
	sample, cpu := *last, *last.CPU
	cpu.NanoCores = nil
	sample.CPU, sample.HugePages, sample.Form = &cpu, slices.Clone(last.HugePages), Form{}
	return &sample
}
