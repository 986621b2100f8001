package sandbox

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
)

// cgroupParent is the cgroup (cgroupfs form) below which a sandbox's containers go. own says that the sandbox made it
// up, so that it has to be removed with the sandbox; a parent from the configuration is the kubelet's.
func (m *Manager) cgroupParent(sandboxID, configured string) (parent string, own bool, err error) {
	systemd := m.config.CgroupDriver == DriverSystemd
	if configured == "" {
		if systemd {
			return "/" + strings.TrimPrefix(path.Base(m.config.CgroupParent), "/") + ".slice", false, nil
		}
		return path.Join("/", m.config.CgroupParent, sandboxID), true, nil
	}
	if strings.Contains(configured, "..") || strings.ContainsFunc(configured, unicode.IsControl) {
		return "", false, fmt.Errorf("linux.cgroup_parent %q: expected a path without '..' and control characters: %w",
			configured, errdefs.ErrInvalidArgument)
	}
	if systemd && !strings.HasSuffix(path.Base(configured), ".slice") {
		return "", false, fmt.Errorf("linux.cgroup_parent %q: expected a path ending in .slice, as the systemd "+
			"cgroup driver is in use: %w", configured, errdefs.ErrInvalidArgument)
	}
	return path.Join("/", configured), false, nil
}

// cgroupMount is where the hierarchies are: the one of version 2, or a directory of those of version 1.
const cgroupMount = "/sys/fs/cgroup"

// leaveCgroupParent removes the configured parent where no sandbox is left in it. It is another daemon's too if that
// has the same one, so only what is empty goes.
func (m *Manager) leaveCgroupParent() {
	if m.config.CgroupDriver != DriverCgroupfs || path.Join("/", m.config.CgroupParent) == "/" {
		return
	}
	hierarchies, _ := filepath.Glob(cgroupMount + "/*")
	for _, dir := range append(hierarchies, cgroupMount) {
		_ = os.Remove(filepath.Join(dir, m.config.CgroupParent))
	}
}

// cgroupsPath is the OCI spec's linux.cgroupsPath of the cgroup id below parent: /parent/id, or slice:prefix:name for
// systemd (runtime-spec config-linux.md, "Cgroups Path").
func (m *Manager) cgroupsPath(parent, id string) string {
	if m.config.CgroupDriver == DriverSystemd {
		return path.Base(parent) + ":gantry:" + id
	}
	return path.Join(parent, id)
}

// cgroupfsPath is where that cgroup is below the mount of the hierarchy.
func (m *Manager) cgroupfsPath(parent, id string) string {
	if m.config.CgroupDriver == DriverSystemd {
		return path.Join(expandSlice(path.Base(parent)), "gantry-"+id+".scope")
	}
	return path.Join(parent, id)
}

// expandSlice gives the path of a slice: each '-' in its name is a level (systemd.slice(5)).
func expandSlice(name string) string {
	stem := strings.TrimSuffix(name, ".slice")
	if stem == "-" || stem == "" {
		return "/"
	}
	out, prefix := "/", ""
	for part := range strings.SplitSeq(stem, "-") {
		prefix += part
		out = path.Join(out, prefix+".slice")
		prefix += "-"
	}
	return out
}

// SandboxCgroup is the path, below the mount of a hierarchy, of the cgroup that holds all of a sandbox and nothing
// else; "" where there is none, because sandboxes whose configuration names no parent share a slice.
func (m *Manager) SandboxCgroup(s *SandboxStatus) string {
	if m.config.CgroupDriver != DriverSystemd {
		return s.CgroupParent
	}
	if s.Config.GetLinux().GetCgroupParent() == "" {
		return ""
	}
	return expandSlice(path.Base(s.CgroupParent))
}
