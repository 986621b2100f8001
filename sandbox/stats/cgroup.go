package stats

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/host"
)

// cgroups knows where the cgroup hierarchies are.
type cgroups struct {
	root    string
	unified bool // cgroup v2 alone
	// pressure is where the pressure files are: in the only hierarchy of v2, or in that which some hosts mount beside
	// those of v1; "" where there is none.
	pressure string
	// sizes are the sizes of huge pages.
	sizes []string

	mu sync.Mutex
	// devices are the names of the block devices that were seen.
	devices map[[2]uint64]string
}

// openCgroups looks at what is mounted below root, usually /sys/fs/cgroup.
func openCgroups(root string) *cgroups {
	c := &cgroups{root: root, devices: map[[2]uint64]string{}}
	switch beside := filepath.Join(root, "unified"); {
	case isCgroup2(root):
		c.unified, c.pressure = true, root
	case isCgroup2(beside):
		c.pressure = beside
	}
	if c.unified || exists(filepath.Join(root, "hugetlb")) {
		c.sizes, _ = host.HugePageSizes("/sys") // best effort: without them there are no figures of huge pages
	}
	return c
}

func isCgroup2(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

// read samples a cgroup; ok is false where it does not exist.
func (c *cgroups) read(r *reader, cgroup string) (s *Sample, ok bool) {
	s = &Sample{}
	if c.unified {
		c.readV2(r, cgroup, s)
	} else {
		c.readV1(r, cgroup, s)
	}
	if c.pressure != "" {
		c.readPressure(r, filepath.Join(c.pressure, cgroup), s)
	}
	dir := c.processDir(cgroup)
	s.Processes = countProcesses(r, dir)
	return s, s.CPU != nil || s.Memory != nil || s.Tasks != nil || exists(dir)
}

func (c *cgroups) readPressure(r *reader, dir string, s *Sample) {
	if s.CPU != nil {
		s.CPU.Pressure = r.pressure(dir + "/cpu.pressure")
	}
	if s.Memory != nil {
		s.Memory.Pressure = r.pressure(dir + "/memory.pressure")
	}
	if p := r.pressure(dir + "/io.pressure"); p != nil {
		if s.IO == nil {
			s.IO = &IO{}
		}
		s.IO.Pressure = p
	}
}

// processDir is a directory of the cgroup that lists its processes.
func (c *cgroups) processDir(cgroup string) string {
	if c.unified {
		return filepath.Join(c.root, cgroup)
	}
	for _, controller := range []string{"pids", "memory"} {
		if dir := filepath.Join(c.root, controller, cgroup); exists(dir) {
			return dir
		}
	}
	return filepath.Join(c.root, "cpuacct", cgroup)
}

// countProcesses counts the processes of a cgroup and of those below it, which a container may make.
func countProcesses(r *reader, dir string) uint64 {
	n := uint64(0)
	walkCgroups(dir, func(dir string) {
		if content, err := r.read(dir + "/cgroup.procs"); err == nil {
			n += uint64(bytes.Count(content, []byte{'\n'}))
		}
	})
	return n
}

// walkCgroups calls visit for a cgroup and all below it.
func walkCgroups(dir string, visit func(dir string)) {
	visit(dir)
	var stat unix.Stat_t
	if unix.Stat(dir, &stat) != nil || stat.Nlink == 2 {
		return // of itself and its "."; there is one more for each directory below
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // it went meanwhile
	}
	for _, e := range entries {
		if e.IsDir() {
			walkCgroups(filepath.Join(dir, e.Name()), visit)
		}
	}
}

// device gives the path of a block device, "" where the kernel does not know it.
func (c *cgroups) device(major, minor uint64) string {
	key := [2]uint64{major, minor}
	c.mu.Lock()
	name, known := c.devices[key]
	c.mu.Unlock()
	if known {
		return name
	}
	name = deviceName(major, minor)
	c.mu.Lock()
	c.devices[key] = name
	c.mu.Unlock()
	return name
}

func exists(path string) bool {
	var stat unix.Stat_t
	return unix.Stat(path, &stat) == nil
}
