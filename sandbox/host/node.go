package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/gantry-cri/gantry/sandbox/spec"
)

// lowestOOMScore is the kernel's lowest oom_score_adj: never killed.
const lowestOOMScore = -1000

// nodeProbe finds out about the node from these directories; tests have their own.
type nodeProbe struct{ proc, sys string }

// Facts finds out what is true of the node for all containers. To be called once, at the start: none of it changes
// while the daemon lives. What cannot be found out is logged and taken for absent, so that the node runs what it can.
// AppArmor's default profile is loaded into the kernel. SeccompNativeOnly, NoHostDevices and Rlimits are not found out
// but configured.
func Facts() spec.Node {
	node, err := nodeProbe{proc: "/proc", sys: "/sys"}.facts()
	if err != nil {
		klog.ErrorS(err, "Some facts about the node cannot be read")
	}
	loadAppArmor(&node)
	return node
}

// facts returns what it could find out, also with an error.
func (p nodeProbe) facts() (node spec.Node, err error) {
	var errs [7]error
	node.Hostname, errs[0] = os.Hostname()
	node.CgroupV2, errs[1] = p.cgroupV2()
	node.Capabilities, errs[2] = ownCapabilities()
	node.OOMScoreFloor, errs[3] = p.oomScoreFloor(slices.Contains(node.Capabilities, "CAP_SYS_RESOURCE"))
	node.HugePageSizes, errs[4] = p.hugePageSizes(node.CgroupV2)
	node.SwapAccounting, errs[5] = p.swapAccounting(node.CgroupV2)
	node.Seccomp, errs[6] = p.seccomp()
	enabled, _ := os.ReadFile(p.sys + "/module/apparmor/parameters/enabled") // Absent without AppArmor.
	node.AppArmor = bytes.HasPrefix(enabled, []byte("Y"))
	node.SELinux = exists(p.sys + "/fs/selinux/enforce")
	node.X32 = x32()
	return node, errors.Join(errs[:]...)
}

// cgroupV2 looks at the mount: /proc/self/cgroup has version 1 lines also where nothing of version 1 can be used.
func (p nodeProbe) cgroupV2() (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(p.cgroups(), &st); err != nil {
		return false, &os.PathError{Op: "statfs", Path: p.cgroups(), Err: err}
	}
	return st.Type == unix.CGROUP2_SUPER_MAGIC, nil
}

func (p nodeProbe) cgroups() string { return p.sys + "/fs/cgroup" }

// ownCapabilities are those that a child of this process can have: permitted now and not cut off by the bounding set.
func ownCapabilities() ([]string, error) {
	own, err := capability.NewPid2(0)
	if err == nil {
		err = own.Load()
	}
	if err != nil {
		return nil, fmt.Errorf("read capabilities: %w", err)
	}
	var names []string
	for _, c := range capability.ListKnown() {
		if own.Get(capability.PERMITTED, c) && own.Get(capability.BOUNDING, c) {
			names = append(names, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	return names, nil
}

// oomScoreFloor: without CAP_SYS_RESOURCE a process may only raise its score. (It may go back to where it was before it
// raised it; the kernel does not tell where.)
func (p nodeProbe) oomScoreFloor(capable bool) (int, error) {
	if capable {
		return lowestOOMScore, nil
	}
	text, err := os.ReadFile(p.proc + "/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("parse oom_score_adj: %w", err)
	}
	return score, nil
}

// hugePageSizes are the kernel's, if there is a controller that can limit them.
func (p nodeProbe) hugePageSizes(v2 bool) ([]string, error) {
	if ok, err := p.hasController("hugetlb", v2); err != nil || !ok {
		return nil, err
	}
	return HugePageSizes(p.sys)
}

// HugePageSizes lists the sizes of huge pages that the kernel has, as the names of cgroup files have them (the kernel's
// mm/hugetlb_cgroup.c, mem_fmt): "2MB", "1GB". sys is where sysfs is mounted.
func HugePageSizes(sys string) ([]string, error) {
	entries, err := os.ReadDir(sys + "/kernel/mm/hugepages")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var sizes []string
	for _, e := range entries {
		kilobytes, ok := strings.CutPrefix(e.Name(), "hugepages-")
		n, err := strconv.ParseUint(strings.TrimSuffix(kilobytes, "kB"), 10, 64)
		if ok && err == nil {
			sizes = append(sizes, pageSizeName(n))
		}
	}
	return sizes, nil
}

// pageSizeName is the size as the cgroup's file names have it.
func pageSizeName(kilobytes uint64) string {
	switch {
	case kilobytes >= 1<<20:
		return strconv.FormatUint(kilobytes>>20, 10) + "GB"
	case kilobytes >= 1<<10:
		return strconv.FormatUint(kilobytes>>10, 10) + "MB"
	}
	return strconv.FormatUint(kilobytes, 10) + "KB"
}

// hasController says whether a cgroup controller can be used in the version that is in use.
func (p nodeProbe) hasController(name string, v2 bool) (bool, error) {
	if !v2 {
		dir, err := p.hierarchyV1(name)
		return dir != "", err
	}
	controllers, err := os.ReadFile(p.cgroups() + "/cgroup.controllers")
	return slices.Contains(strings.Fields(string(controllers)), name), err
}

// hierarchyV1 is where a controller of version 1 is mounted; empty when it is not.
func (p nodeProbe) hierarchyV1(name string) (string, error) {
	table, err := os.Open(p.proc + "/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer table.Close()
	mounts, err := mountinfo.GetMountsFromReader(table, func(m *mountinfo.Info) (skip, stop bool) {
		found := m.FSType == "cgroup" && slices.Contains(strings.Split(m.VFSOptions, ","), name)
		return !found, found
	})
	if err != nil || len(mounts) == 0 {
		return "", err
	}
	return mounts[0].Mountpoint, nil
}

// swapAccounting looks for the file that limits swap. The root of version 2 does not have the file even where all
// others have it; with no other to look at, what counts is that the kernel has swap at all.
func (p nodeProbe) swapAccounting(v2 bool) (bool, error) {
	if !v2 {
		dir, err := p.hierarchyV1("memory")
		return err == nil && dir != "" && exists(dir+"/memory.memsw.limit_in_bytes"), err
	}
	limited, err := filepath.Glob(p.cgroups() + "/*/memory.max")
	if err != nil || len(limited) == 0 {
		return exists(p.proc + "/swaps"), err
	}
	return exists(filepath.Join(filepath.Dir(limited[0]), "memory.swap.max")), nil
}

// seccomp looks for the line that a kernel with seccomp writes.
func (p nodeProbe) seccomp() (bool, error) {
	status, err := os.ReadFile(p.proc + "/self/status")
	return bytes.Contains(status, []byte("\nSeccomp:")), err
}

// x32 makes getpid's system call of the x32 ABI: a kernel without it knows no such call. Most are built or started
// without it, and none says so in a file.
func x32() bool {
	const x32Bit = 0x40000000 // __X32_SYSCALL_BIT
	if runtime.GOARCH != "amd64" {
		return false
	}
	_, _, errno := unix.RawSyscall(x32Bit|unix.SYS_GETPID, 0, 0, 0)
	return errno != unix.ENOSYS
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
