package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/cri/operator"
)

// checkNode looks at the kernel, the network configuration and the disk.
func checkNode(info *operator.InfoResponse) []finding {
	findings := checkKernel()
	if info.GetCniConfDir() == "" {
		findings = append(findings, ok("network", "embedded"))
	} else {
		findings = append(findings, checkCNI(info.GetCniConfDir(), info.GetCniBinDir()))
	}
	return append(findings, checkDisk(info.GetRoot()), checkCRIU())
}

// checkKernel gathers what the kernel says of itself.
func checkKernel() []finding {
	findings := []finding{checkOverlay(read("/proc/filesystems"))}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		findings = append(findings, fail("cgroups", "read mounts: %v", err))
	} else {
		findings = append(findings, checkCgroups(mounts, read("/sys/fs/cgroup/cgroup.controllers")))
	}
	return append(findings,
		checkSeccomp(read("/proc/sys/kernel/seccomp/actions_avail")),
		checkPidfd(pidfdWorks(), read("/proc/sys/kernel/osrelease")),
		checkUserNamespaces(read("/proc/sys/user/max_user_namespaces")))
}

// read returns a file of /proc, trimmed, or "" where there is none.
func read(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func checkOverlay(filesystems string) finding {
	for line := range strings.Lines(filesystems) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == "overlay" {
			return ok("overlay", "the kernel has it")
		}
	}
	return fail("overlay", "the kernel has no overlay filesystem, which images need: try modprobe overlay")
}

// checkCgroups takes the mounts of cgroups and the controllers of version 2, if that is mounted.
func checkCgroups(mounts []*mountinfo.Info, unified string) finding {
	var controllers []string
	for _, m := range mounts {
		if m.FSType == "cgroup2" && m.Mountpoint == "/sys/fs/cgroup" {
			return checkUnified(unified)
		}
		if m.FSType == "cgroup" {
			controllers = append(controllers, strings.Split(m.VFSOptions, ",")...)
		}
	}
	missing := without(controllers, "memory", "cpu", "cpuset", "pids", "devices", "freezer")
	if len(missing) > 0 {
		return fail("cgroups", "neither cgroup2 on /sys/fs/cgroup nor the v1 controllers %s", strings.Join(missing, ", "))
	}
	return warn("cgroups", "v1: works, but the kubelet refuses it unless failCgroupV1 is false; memory QoS needs v2")
}

// checkUnified looks for what a kernel may be started without: some distributions have cgroup_disable=memory.
func checkUnified(controllers string) finding {
	if missing := without(strings.Fields(controllers), "memory", "cpu", "cpuset", "pids"); len(missing) > 0 {
		return fail("cgroups", "v2 without %s: containers with such limits do not start; see cgroup_disable in /proc/cmdline, "+
			"and whether a hierarchy of v1 has it", strings.Join(missing, ", "))
	}
	return ok("cgroups", "v2")
}

// without returns the wanted that are not there.
func without(there []string, wanted ...string) []string {
	return slices.DeleteFunc(wanted, func(name string) bool { return slices.Contains(there, name) })
}

func checkSeccomp(actions string) finding {
	if !strings.Contains(actions, "errno") {
		return fail("seccomp", "the kernel has no seccomp filters, which the RuntimeDefault profile needs")
	}
	return ok("seccomp", "filters")
}

// pidfdWorks reports whether the kernel gives process descriptors.
func pidfdWorks() bool {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

func checkPidfd(works bool, release string) finding {
	if !works {
		return fail("pidfd", "the kernel %s has no pidfd_open (5.3), by which the keeper waits for processes", release)
	}
	return ok("pidfd", "pidfd_open")
}

func checkUserNamespaces(limit string) finding {
	n, err := strconv.Atoi(limit)
	if err != nil || n == 0 {
		return warn("user namespaces", "user.max_user_namespaces is %q: pods with hostUsers: false do not start", limit)
	}
	return ok("user namespaces", "up to %d", n)
}

// checkCNI looks for a configuration that can be read and for the plugins that it names, in a list of directories as
// PATH is one.
func checkCNI(confDir, binDirs string) finding {
	file, err := firstConf(confDir)
	if err != nil {
		return fail("network", "%v", err)
	}
	name, plugins, err := readConf(file)
	if err != nil {
		return fail("network", "%s: %v", file, err)
	}
	for _, plugin := range plugins {
		isPlugin := func(dir string) bool { return executable(filepath.Join(dir, plugin)) }
		if !slices.ContainsFunc(filepath.SplitList(binDirs), isPlugin) {
			return fail("network", "%s names the plugin %s, which is not an executable in %s", file, plugin, binDirs)
		}
	}
	return ok("network", "%s (%s) with %s", name, file, strings.Join(plugins, ", "))
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// firstConf returns the configuration that counts: the first in lexical order.
func firstConf(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	for _, e := range entries { // ReadDir sorts
		switch filepath.Ext(e.Name()) {
		case ".conflist", ".conf", ".json":
			return filepath.Join(dir, e.Name()), nil
		}
	}
	return "", fmt.Errorf("no CNI configuration in %s: install a network add-on or give gantryd --embedded-network", dir)
}

// readConf returns the network's name and the types of its plugins, IPAM included.
func readConf(file string) (name string, plugins []string, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", nil, err
	}
	type plugin struct {
		Type string `json:"type"`
		IPAM struct {
			Type string `json:"type"`
		} `json:"ipam"`
	}
	var conf struct {
		Name string `json:"name"`
		plugin
		Plugins []plugin `json:"plugins"`
	}
	if err := json.Unmarshal(text, &conf); err != nil {
		return "", nil, err
	}
	for _, p := range append([]plugin{conf.plugin}, conf.Plugins...) {
		for _, t := range []string{p.Type, p.IPAM.Type} {
			if t != "" && !slices.Contains(plugins, t) {
				plugins = append(plugins, t)
			}
		}
	}
	if len(plugins) == 0 {
		return "", nil, errors.New("expected at least one plugin with a type")
	}
	return conf.Name, plugins, nil
}

// checkDisk looks at the filesystem of the root directory.
func checkDisk(root string) finding {
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil {
		return fail("disk", "%s: %v", root, err)
	}
	return diskFinding(root, &fs)
}

// diskFinding judges free space and free inodes; percentages are those at which the kubelet evicts and collects images.
func diskFinding(root string, fs *unix.Statfs_t) finding {
	free := int64(fs.Bavail) * fs.Bsize
	space := percent(fs.Bavail, fs.Blocks)
	inodes := percent(fs.Ffree, fs.Files)
	text := fmt.Sprintf("%s: %s (%d%%) and %d%% of inodes are free", root, humanBytes(free), space, inodes)
	switch {
	case space < 5 || inodes < 2:
		return fail("disk", "%s", text)
	case space < 15 || inodes < 5:
		return warn("disk", "%s: the kubelet removes images below 15%%", text)
	}
	return ok("disk", "%s", text)
}

// percent returns how much of total is free; filesystems without a limit tell a total of 0.
func percent(free, total uint64) uint64 {
	if total == 0 {
		return 100
	}
	return free * 100 / total
}
