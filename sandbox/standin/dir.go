package standin

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// dirName is the directory of the stand-ins below the cgroup that they are put in.
const dirName = "sandboxes"

// hierarchies of version 1 that cAdvisor looks for cgroups in, the cheapest first: a cgroup of devices costs 5 KB of the
// kernel's memory, one of memory 46 KB. That of pids is none of them: cAdvisor hears there of a new cgroup, but it leaves
// that hierarchy out when it lists what there is, once a minute, and what is not on that list it forgets for ever.
var hierarchies = []string{"devices", "cpu", "memory"}

// Dir is where the stand-ins go: below parent (a path of a cgroup), or below the daemon's own cgroup where systemd has
// delegated that to it. Neither is a pod's cgroup, in which every controller of the kubelet's would be on: cAdvisor
// goes by the last element of the path. root is where the cgroup hierarchies are mounted.
func Dir(root, parent string, systemd bool) (string, error) {
	hierarchy := ""
	if !unified(root) {
		for _, name := range hierarchies {
			if info, err := os.Stat(filepath.Join(root, name)); err == nil && info.IsDir() {
				hierarchy = name
				break
			}
		}
		if hierarchy == "" {
			return "", fmt.Errorf("find a cgroup hierarchy below %s: expected one of %s", root, strings.Join(hierarchies, ", "))
		}
	}
	if systemd {
		own, err := ownCgroup(hierarchy)
		if err != nil {
			return "", err
		}
		if own != "/" {
			parent = own
		}
	}
	return filepath.Join(root, hierarchy, parent, dirName), nil
}

func unified(root string) bool {
	var st unix.Statfs_t
	return unix.Statfs(root, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// ownCgroup is this process's cgroup in a hierarchy; "" is that of version 2.
func ownCgroup(hierarchy string) (string, error) {
	file, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	defer file.Close()
	return parseCgroup(bufio.NewScanner(file), hierarchy)
}

// parseCgroup finds a hierarchy among lines of id:controllers:path (cgroups(7)).
func parseCgroup(lines *bufio.Scanner, hierarchy string) (string, error) {
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), ":", 3)
		if len(fields) != 3 {
			continue
		}
		for name := range strings.SplitSeq(fields[1], ",") {
			if name == hierarchy {
				return fields[2], nil
			}
		}
	}
	return "", fmt.Errorf("find the daemon's cgroup of hierarchy %q in /proc/self/cgroup: there is none", hierarchy)
}
