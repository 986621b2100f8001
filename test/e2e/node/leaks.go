package node

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// ownCgroup is the runtime's default cgroup_parent. It is there while the daemon is. The directory of its stand-ins below
// it comes and goes: another daemon with the same parent takes it away when it is empty, and the next pod brings it back.
const (
	ownCgroup     = "/gantry"
	standinCgroup = ownCgroup + "/sandboxes"
)

// PodsCgroup is the cgroup below which tests give each pod its cgroup_parent: like the kubelet's these are not the
// runtime's to remove.
const PodsCgroup = "/pods"

// Footprint is what is there of processes, mounts, cgroups, network links, firewall rules and records. Two of them are
// compared to see what was left behind; they tell the truth only in an isolated program.
type Footprint map[string]bool

// containerRule matches firewall rules that belong to one container.
var containerRule = regexp.MustCompile(`CNI-(DN-|SN-)?[0-9a-f]{21,}|-[sd] 10\.\d+\.\d+\.\d+/32`)

// hostPort matches an element of a map of the embedded network, such as "tcp . 8080 : 10.85.0.2 . 80".
var hostPort = regexp.MustCompile(`\w+ \. \d+ : [0-9a-f.:]+ \. \d+`)

// Footprint looks around. Allowed are the node's own daemon and keeper, the process ids given, and the reapers of those
// that are keepers.
func (n *Node) Footprint(allowedPIDs ...int) (Footprint, error) {
	f := make(Footprint)
	allowed := append(allowedPIDs, 1, os.Getpid())
	if n.Running() {
		allowed = append(allowed, n.PID())
	}
	if hello, err := n.KeeperHello(); err == nil {
		allowed = append(allowed, hello.PID)
	}
	for _, pid := range allowed {
		allowed = append(allowed, ReaperOf(pid))
	}
	f.addProcesses(allowed)
	for _, add := range []func() error{f.addMounts, f.addCgroups, f.addLinks, f.addRules} {
		if err := add(); err != nil {
			return nil, err
		}
	}
	f.addFiles(filepath.Join(n.Root(), "sandboxes"))
	f.addFiles(filepath.Join(n.Root(), "cni"))
	f.addFiles(n.State)
	return f, nil
}

// Leaks compares the footprint with one of before, until nothing is left or the time is over, and says what is new. To
// look around fails when something changes meanwhile, such as a table of the firewall; then it looks again, too.
func (n *Node) Leaks(before Footprint, timeout time.Duration, allowedPIDs ...int) ([]string, error) {
	for deadline := time.Now().Add(timeout); ; time.Sleep(100 * time.Millisecond) {
		now, err := n.Footprint(allowedPIDs...)
		if err != nil {
			if time.Now().After(deadline) {
				return nil, err
			}
			continue
		}
		var leaks []string
		for item := range now {
			if !before[item] {
				leaks = append(leaks, item)
			}
		}
		if len(leaks) == 0 || time.Now().After(deadline) {
			slices.Sort(leaks)
			return leaks, nil
		}
	}
}

func (f Footprint) addProcesses(allowed []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || slices.Contains(allowed, pid) {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue // gone meanwhile
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		title := string(bytes.ReplaceAll(bytes.TrimRight(cmdline, "\x00"), []byte{0}, []byte{' '}))
		if fields := strings.Fields(string(stat)); title == "" && len(fields) > 3 {
			title = fields[1] + " state " + fields[2] + " parent " + fields[3]
		}
		f[fmt.Sprintf("process %d %s", pid, title)] = true
	}
}

func (f Footprint) addMounts() error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	seen := make(map[string]int)
	for scanner := bufio.NewScanner(bytes.NewReader(b)); scanner.Scan(); {
		if fields := strings.Fields(scanner.Text()); len(fields) > 4 {
			seen[fields[4]]++
			f[fmt.Sprintf("mount %s (%d)", fields[4], seen[fields[4]])] = true
		}
	}
	return nil
}

func (f Footprint) addCgroups() error {
	hierarchies, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, h := range hierarchies {
		filepath.WalkDir(h.path, func(path string, d fs.DirEntry, err error) error {
			own, pods := filepath.Join(h.path, ownCgroup), filepath.Join(h.path, PodsCgroup)
			expected := path == own || path == filepath.Join(h.path, standinCgroup) || path == pods
			if err == nil && d.IsDir() && !expected && filepath.Dir(path) != pods {
				f["cgroup "+path] = true
			}
			return nil
		})
	}
	return nil
}

func (f Footprint) addLinks() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list network links: %w", err)
	}
	for _, l := range links {
		if l.Type() != "bridge" {
			f["network link "+l.Attrs().Name] = true
		}
	}
	return nil
}

func (f Footprint) addRules() error {
	out, err := exec.Command("iptables-save").Output()
	if err != nil {
		return fmt.Errorf("list firewall rules: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		if containerRule.MatchString(line) {
			f["firewall rule "+strings.TrimSpace(line)] = true
		}
	}
	return f.addHostPorts()
}

// addHostPorts adds the host ports of the embedded network, which are in tables of the family inet.
func (f Footprint) addHostPorts() error {
	out, err := exec.Command("nft", "list", "ruleset", "inet").Output()
	if err != nil {
		return fmt.Errorf("list nftables: %w", err)
	}
	for _, element := range hostPort.FindAllString(string(out), -1) {
		f["host port "+element] = true
	}
	return nil
}

func (f Footprint) addFiles(top string) {
	filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != top {
			f["file "+path] = true
		}
		return nil
	})
}
