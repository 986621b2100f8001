package keeperd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // registers the device controller: without it nothing starts
	"github.com/opencontainers/cgroups/manager"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer/specconv"
)

// cgroup is the cgroup of a container: one directory on v2, one per hierarchy on v1. The map is that of
// cgroups.Manager.GetPaths: controller to directory; "" is the unified hierarchy.
type cgroup struct {
	paths map[string]string
}

// newManager returns a manager for a cgroupsPath of the OCI spec. It creates nothing.
func newManager(id, path string, systemd bool) (cgroups.Manager, error) {
	if !systemd && filepath.Clean("/"+path) == "/" {
		return nil, fmt.Errorf("cgroup %q: expected a cgroup below the root", path)
	}
	spec := &specs.Spec{Linux: &specs.Linux{CgroupsPath: path}}
	config, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{
		CgroupName: id, UseSystemdCgroup: systemd, Spec: spec,
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("cgroup %q: %w", path, err)
	}
	m, err := manager.New(config)
	if err != nil {
		return nil, fmt.Errorf("cgroup %q: %w", path, err)
	}
	return m, nil
}

// tree returns the directory whose processes, with those of its children, are the container's.
func (g cgroup) tree() string {
	if cgroups.IsCgroup2UnifiedMode() {
		return g.paths[""]
	}
	for _, controller := range []string{"freezer", "pids", "devices", "memory"} {
		if dir := g.paths[controller]; dir != "" {
			return dir
		}
	}
	return ""
}

// counter returns the directory that counts kills for memory.
func (g cgroup) counter() string {
	if cgroups.IsCgroup2UnifiedMode() {
		return g.paths[""]
	}
	return g.paths["memory"]
}

// inheritCpuset lets the cpuset that is made next begin as a copy of its parent's. On v1 it begins empty, and who makes
// it writes the parent's values into it; each such write makes the kernel go through all cpusets of the machine
// (rebuild_sched_domains). The root of the hierarchy is not ours to change.
func (g cgroup) inheritCpuset() {
	if cgroups.IsCgroup2UnifiedMode() || g.paths["cpuset"] == "" {
		return
	}
	const flag = "cgroup.clone_children"
	for dir := filepath.Dir(g.paths["cpuset"]); dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, flag)); err != nil {
			continue // not made yet
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(dir), flag)); err == nil {
			_ = os.WriteFile(filepath.Join(dir, flag), []byte("1"), 0) // it is a matter of speed only
		}
		return
	}
}

// treePIDs returns the processes of a cgroup directory and of those below it.
func treePIDs(dir string) (pids []int) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // a child that was removed meanwhile has no process
		}
		more, _ := cgroups.GetPids(path)
		pids = append(pids, more...)
		return nil
	})
	return pids
}

// killTree kills every process of a cgroup directory and of those below it, and returns when there is none or when time
// is up; the error then names those left and what they do.
func killTree(dir string, timeout time.Duration) error {
	if dir == "" {
		return nil
	}
	deadline := time.Now().Add(timeout)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		pids := treePIDs(dir)
		if len(pids) == 0 {
			return nil
		}
		if slices.Contains(pids, os.Getpid()) {
			return fmt.Errorf("kill cgroup %s: the keeper itself is in it", dir)
		}
		if time.Now().After(deadline) {
			return leftError(pids)
		}
		killOnce(dir, pids)
		time.Sleep(pause)
	}
}

// killOnce kills all at one moment, so that no process can fork away from it: by cgroup.kill, or frozen.
func killOnce(dir string, pids []int) {
	if err := cgroups.WriteFile(dir, "cgroup.kill", "1"); err == nil {
		return
	}
	if freeze(dir) {
		pids = treePIDs(dir)
	}
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	thaw(dir)
}

// freeze freezes a cgroup, for a kernel without cgroup.kill, and reports whether it is frozen whole.
func freeze(dir string) bool {
	for range 50 {
		if frozen, err := tryFreeze(dir); err != nil || frozen {
			return frozen
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

func thaw(dir string) {
	_ = cgroups.WriteFile(dir, "freezer.state", string(cgroups.Thawed))
	_ = cgroups.WriteFile(dir, "cgroup.freeze", "0")
}

// leftError tells of processes that SIGKILL did not end, with their state and what they wait for in the kernel.
func leftError(pids []int) error {
	var left []string
	for _, pid := range pids {
		state, where := "?", ""
		if s, err := readStat(pid); err == nil {
			state = string(s.state)
		}
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid)); err == nil && string(b) != "0" {
			where = " in " + string(b)
		}
		left = append(left, fmt.Sprintf("%d (state %s%s)", pid, state, where))
		if len(left) == 10 {
			left = append(left, fmt.Sprintf("and %d more", len(pids)-10))
			break
		}
	}
	return fmt.Errorf("processes survive SIGKILL: %s", strings.Join(left, ", "))
}

// removeTree removes the cgroup directories of g and those below them, which must have no process.
func (g cgroup) removeTree() error {
	var errs []error
	for _, dir := range g.paths {
		if err := removeDirs(dir); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeDirs removes a cgroup directory from the bottom up. A cgroup whose last process is just being reaped is busy
// for some milliseconds, and for longer on a loaded machine.
func removeDirs(dir string) error {
	var dirs []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	slices.Reverse(dirs)
	var err error
	for _, d := range dirs {
		for try := range 12 {
			if err = unix.Rmdir(d); err == nil || err == unix.ENOENT {
				err = nil
				break
			}
			time.Sleep(time.Millisecond << try)
		}
		if err != nil {
			return fmt.Errorf("remove cgroup %s: %w", d, err)
		}
	}
	return nil
}

// removeBelow removes the cgroups below those of g: execs make some, and so may the container.
func removeBelow(g cgroup) error {
	for _, dir := range g.paths {
		// A cgroup has two links and one more for each below it: there are seldom any, and to list the files costs more.
		var s unix.Stat_t
		if unix.Stat(dir, &s) == nil && s.Nlink == 2 {
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			if err := removeDirs(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
