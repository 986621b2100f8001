package premount

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer/configs"
)

// TakeCgroups makes, on cgroup v1, what libcontainer would mount for config at /sys/fs/cgroup: a tmpfs with a mount for each
// hierarchy in it, of the container's own cgroup there. It is mounted at dir, which is there already, and config gets a bind
// mount of it in place of the one of type cgroup: sysfs, in which it is mounted, only exists once the container's network
// namespace is entered. paths are the container's cgroups, by controller, which are made unless they exist. As with Take,
// what is out of the ordinary is left as it was, and it is for a mount namespace that only the caller has.
func TakeCgroups(config *configs.Config, paths map[string]string, dir string) {
	if cgroups.IsCgroup2UnifiedMode() || !ordinary(config) || config.Namespaces.Contains(configs.NEWCGROUP) ||
		config.Cgroups.Systemd {
		return
	}
	i := slices.IndexFunc(config.Mounts, func(m *configs.Mount) bool { return m.Device == "cgroup" })
	if i < 0 {
		return
	}
	m := config.Mounts[i]
	hierarchies, err := cgroups.GetCgroupMounts(false)
	if err != nil || len(m.PropagationFlags) != 0 || m.RecAttr != nil {
		return
	}
	// The flags are those that libcontainer has for it (defaultMountFlags).
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if unix.Mount("tmpfs", dir, "tmpfs", flags, "mode=755") != nil {
		return
	}
	for _, h := range hierarchies {
		if !bindHierarchy(h, paths, dir, uintptr(m.Flags)) {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
			return
		}
	}
	config.Mounts = slices.Clone(config.Mounts)
	config.Mounts[i] = &configs.Mount{
		Source: dir, Destination: m.Destination, Device: "bind", Flags: unix.MS_BIND | unix.MS_REC,
	}
}

// bindHierarchy mounts the container's cgroup of one hierarchy below dir, with the links for controllers that share it.
func bindHierarchy(h cgroups.Mount, paths map[string]string, dir string, flags uintptr) bool {
	source := ""
	for _, controller := range h.Subsystems {
		for _, key := range []string{controller, cgroups.CgroupNamePrefix + controller} {
			if source == "" {
				source = paths[key]
			}
		}
	}
	if source == "" || os.MkdirAll(source, 0o755) != nil {
		return false
	}
	name := filepath.Base(h.Mountpoint)
	target := filepath.Join(dir, name)
	if unix.Mkdir(target, 0o755) != nil || unix.Mount(source, target, "", unix.MS_BIND, "") != nil ||
		unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|flags, "") != nil {
		return false
	}
	if strings.Contains(name, ",") {
		for controller := range strings.SplitSeq(name, ",") {
			if err := unix.Symlink(name, filepath.Join(dir, controller)); err != nil && err != unix.EEXIST {
				return false
			}
		}
	}
	return true
}
