package node

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// cgroupPrefix and the outer program's pid make the name of the cgroups and of the directory of one run.
	cgroupPrefix = "gantry-e2e-"
)

// hierarchy is a mounted cgroup hierarchy.
type hierarchy struct {
	path, fstype string
	data         string // the mount data that gives this hierarchy again
}

// cgroupMounts lists the cgroup hierarchies mounted below cgroupRoot, outermost first. One that is mounted over
// another, as in an isolated program, is listed once.
func cgroupMounts() ([]hierarchy, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []hierarchy
	for scanner := bufio.NewScanner(bytes.NewReader(b)); scanner.Scan(); {
		before, after, _ := strings.Cut(scanner.Text(), " - ")
		fields, super := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(super) < 3 || !strings.HasPrefix(fields[4], cgroupRoot) {
			continue
		}
		h := hierarchy{path: fields[4], fstype: super[0]}
		switch h.fstype {
		case "cgroup":
			options := slices.DeleteFunc(strings.Split(super[2], ","), func(o string) bool { return o == "rw" || o == "ro" })
			h.data = strings.Join(options, ",")
		case "cgroup2":
		default:
			continue
		}
		if !slices.Contains(found, h) {
			found = append(found, h)
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted below " + cgroupRoot)
	}
	return found, nil
}

// makeCgroups makes the cgroup of a run in every hierarchy, ready for processes.
func makeCgroups(name string) error {
	hierarchies, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		if err := os.Mkdir(filepath.Join(h.path, name), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		// A new cpuset of version 1 is empty, and an empty one takes no process.
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(h.path, f))
			if h.fstype != "cgroup" || err != nil {
				continue
			}
			if err := os.WriteFile(filepath.Join(h.path, name, f), value, 0); err != nil {
				return fmt.Errorf("copy cpuset: %w", err)
			}
		}
	}
	return nil
}

// enterCgroups moves this process into the cgroups of the run and makes them the roots of a cgroup namespace. The
// calling goroutine must be locked to its thread: the namespace is the thread's and that of processes it starts.
func enterCgroups(name string) error {
	hierarchies, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		if err := moveSelf(filepath.Join(h.path, name)); err != nil {
			return err
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare cgroup namespace: %w", err)
	}
	for _, h := range hierarchies {
		if h.fstype != "cgroup2" || h.path != cgroupRoot {
			continue
		}
		// Version 2 has no processes beside child cgroups that are given controllers.
		top := filepath.Join(h.path, name)
		if err := os.Mkdir(filepath.Join(top, "harness"), 0o755); err != nil {
			return err
		}
		if err := moveSelf(filepath.Join(top, "harness")); err != nil {
			return err
		}
		controllers, err := os.ReadFile(filepath.Join(top, "cgroup.controllers"))
		if err != nil {
			return err
		}
		for _, c := range strings.Fields(string(controllers)) {
			if err := os.WriteFile(filepath.Join(top, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
				return fmt.Errorf("enable controller %s: %w", c, err)
			}
		}
	}
	return nil
}

func moveSelf(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("move into cgroup: %w", err)
	}
	return nil
}

// removeCgroups kills what is in the cgroups of a run and removes them with all below.
func removeCgroups(name string) {
	hierarchies, err := cgroupMounts()
	if err != nil {
		return
	}
	for _, h := range hierarchies {
		top := filepath.Join(h.path, name)
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			var dirs []string
			filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			slices.Reverse(dirs) // children before parents
			for _, dir := range dirs {
				killAll(dir)
				os.Remove(dir)
			}
			if _, err := os.Stat(top); err != nil {
				break
			}
		}
	}
}

func killAll(cgroup string) {
	os.WriteFile(filepath.Join(cgroup, "freezer.state"), []byte("THAWED"), 0)
	b, _ := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	for _, field := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// runs reports whether a process lives and is no zombie.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}

// removeLeftovers removes cgroups and directories of runs whose outer program is gone.
func removeLeftovers() {
	names := make(map[string]bool)
	hierarchies, _ := cgroupMounts()
	patterns := []string{filepath.Join(os.TempDir(), cgroupPrefix+"*")}
	for _, h := range hierarchies {
		patterns = append(patterns, filepath.Join(h.path, cgroupPrefix+"*"))
	}
	for _, pattern := range patterns {
		matches, _ := filepath.Glob(pattern)
		for _, m := range matches {
			names[filepath.Base(m)] = true
		}
	}
	for name := range names {
		pid, err := strconv.Atoi(strings.TrimPrefix(name, cgroupPrefix))
		if err != nil || pid != os.Getpid() && runs(pid) {
			continue
		}
		removeCgroups(name)
		os.RemoveAll(filepath.Join(os.TempDir(), name))
	}
}
