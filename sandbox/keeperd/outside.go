package keeperd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper"
)

// outsideWorld is what a container has of the world outside of it. CRIU captures none of it, and a restore gives it the
// like. It is keeper.OutsideFile among CRIU's images.
type outsideWorld struct {
	Version int `json:"version"`
	// Mounts are the mount points of what is mounted from outside.
	Mounts []string `json:"mounts,omitempty"`
	// Streams are the names that CRIU has for the FIFOs of the standard streams, by the name of the stream. One FIFO
	// has several when it was opened by way of several mounts.
	Streams map[string][]string `json:"streams,omitempty"`
	// Net and PID are the inodes of those namespaces, 0 where the container has none that is pinned.
	Net uint64 `json:"net,omitempty"`
	PID uint64 `json:"pid,omitempty"`
}

const outsideVersion = 1

// The names under which CRIU is told of namespaces; those that libcontainer and its users have.
const (
	netKey = "extRootNetNS"
	pidKey = "extRootPidNS"
)

// recreated are the filesystems that CRIU mounts anew.
var recreated = []string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup2"}

// findOutside looks at a frozen container.
func (k *Keeper) findOutside(t *capture) (*outsideWorld, error) {
	out := &outsideWorld{Version: outsideVersion}
	for _, ns := range t.spec.Linux.Namespaces {
		inode := map[specs.LinuxNamespaceType]*uint64{specs.NetworkNamespace: &out.Net, specs.PIDNamespace: &out.PID}[ns.Type]
		if inode == nil || ns.Path == "" {
			continue
		}
		var s unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", t.c.pid, shortName(ns.Type)), &s); err != nil {
			return nil, fmt.Errorf("find %s namespace: %w", ns.Type, err)
		}
		*inode = s.Ino
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", t.c.pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	table := newMountTable(t.spec, fmt.Sprintf("/proc/%d/root", t.c.pid))
	for _, m := range mounts {
		if m.Mountpoint != "/" && table.external(m) {
			out.Mounts = append(out.Mounts, m.Mountpoint)
		}
	}
	out.Streams = k.findStreams(t.c)
	return out, nil
}

func shortName(t specs.LinuxNamespaceType) string {
	if t == specs.NetworkNamespace {
		return "net"
	}
	return string(t)
}

// streamNames are the FIFOs of a container.
var streamNames = []string{"stdin", "stdout", "stderr"}

// findStreams finds how the processes of a container have its FIFOs open.
func (k *Keeper) findStreams(c *container) map[string][]string {
	streams := map[string][]string{}
	for _, name := range streamNames {
		var want unix.Stat_t
		if unix.Stat(k.layout.fifo(c.id, name), &want) != nil {
			continue
		}
		for _, pid := range treePIDs(c.cgroup.tree()) {
			for _, key := range openedAs(pid, &want) {
				if !slices.Contains(streams[name], key) {
					streams[name] = append(streams[name], key)
				}
			}
		}
	}
	return streams
}

// openedAs returns the names that CRIU has for a file as a process has it open.
func openedAs(pid int, want *unix.Stat_t) (keys []string) {
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	for _, fd := range fds {
		var s unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()), &s) != nil || s.Dev != want.Dev || s.Ino != want.Ino {
			continue
		}
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd.Name()))
		if err != nil {
			continue
		}
		var mount int
		for line := range strings.Lines(string(info)) {
			_, _ = fmt.Sscanf(line, "mnt_id: %d", &mount)
		}
		keys = append(keys, fmt.Sprintf("file[%x:%x]", mount, s.Ino))
	}
	return keys
}

// dumpArgs tell CRIU not to capture it.
func (o *outsideWorld) dumpArgs() (args []string) {
	add := func(format string, a ...any) { args = append(args, "--external", fmt.Sprintf(format, a...)) }
	for _, m := range o.Mounts {
		add("mnt[%s]:%s", m, m)
	}
	for _, keys := range o.Streams {
		for _, key := range keys {
			add("%s", key)
		}
	}
	if o.Net != 0 {
		add("net[%d]:%s", o.Net, netKey)
	}
	if o.PID != 0 {
		add("pid[%d]:%s", o.PID, pidKey)
	}
	return args
}

// mountTable says which mount of a spec a mount point belongs to.
type mountTable struct {
	spec *specs.Spec
	// places are the mounts' destinations with links resolved.
	places []string
}

func newMountTable(spec *specs.Spec, root string) *mountTable {
	t := &mountTable{spec: spec}
	for _, m := range spec.Mounts {
		place := filepath.Clean(m.Destination)
		if resolved, err := securejoin.SecureJoin(root, m.Destination); err == nil {
			place = "/" + strings.TrimPrefix(strings.TrimPrefix(resolved, root), "/")
		}
		t.places = append(t.places, place)
	}
	return t
}

// of returns the index of the innermost mount of the spec at or above a mount point, or -1; of several at the same
// place the last.
func (t *mountTable) of(point string) int {
	best := -1
	for i, place := range t.places {
		at := point == place || strings.HasPrefix(point, strings.TrimSuffix(place, "/")+"/")
		if at && (best < 0 || len(place) >= len(t.places[best])) {
			best = i
		}
	}
	return best
}

// external reports whether a mount is from outside of the container.
func (t *mountTable) external(m *mountinfo.Info) bool {
	i := t.of(m.Mountpoint)
	if i < 0 || m.Mountpoint != t.places[i] && !bound(t.spec.Mounts[i]) {
		return !slices.Contains(recreated, m.FSType) // a device, a masked path, what the container mounted itself
	}
	switch of := t.spec.Mounts[i]; {
	case bound(of):
		return true
	case of.Type == "cgroup": // on v1 a tmpfs with a mount for each hierarchy below it
		return m.FSType == "cgroup"
	default:
		return !slices.Contains(recreated, of.Type)
	}
}

func bound(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// source finds what a restore mounts at a mount point from outside.
func (t *mountTable) source(point string, own cgroup) (string, error) {
	i := t.of(point)
	switch {
	case i >= 0 && bound(t.spec.Mounts[i]):
		return filepath.Join(t.spec.Mounts[i].Source, strings.TrimPrefix(point, t.places[i])), nil
	case i >= 0 && t.spec.Mounts[i].Type == "cgroup":
		return own.hierarchy(filepath.Base(point))
	case slices.Contains(t.spec.Linux.MaskedPaths, point):
		return os.DevNull, nil
	}
	for _, d := range t.spec.Linux.Devices {
		if d.Path == point {
			return point, nil
		}
	}
	return "", keeper.Errorf(keeper.KindStart, "mount %s is in the checkpoint and not in the configuration", point)
}

// hierarchy returns the directory of a v1 cgroup in the hierarchy that is mounted under a name.
func (g cgroup) hierarchy(name string) (string, error) {
	mounts, err := cgroups.GetCgroupMounts(true)
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if filepath.Base(m.Mountpoint) != name {
			continue
		}
		for _, dir := range g.paths {
			if strings.HasPrefix(dir, m.Mountpoint+"/") {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("cgroup hierarchy %s is in the checkpoint and not on this node", name)
}
