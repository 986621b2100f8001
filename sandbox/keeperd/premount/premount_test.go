package premount

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer/configs"
)

// inPrivate runs f on a thread of its own, with mounts and an umask of its own, which end with it.
func inPrivate(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("to mount needs root")
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		defer close(done)
		err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err != nil {
			done <- err
			return
		}
		f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func mountsAt(t *testing.T, dir string) (found []*mountinfo.Info) {
	t.Helper()
	found, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Error(err)
	}
	return found
}

// TestHierarchyOfTwoControllers is about what distributions have at /sys/fs/cgroup/cpu,cpuacct.
func TestHierarchyOfTwoControllers(t *testing.T) {
	inPrivate(t, func() {
		cgroup, dir := filepath.Join(t.TempDir(), "container"), t.TempDir()
		h := cgroups.Mount{Mountpoint: "/sys/fs/cgroup/cpu,cpuacct", Subsystems: []string{"cpu", "cpuacct"}}
		if !bindHierarchy(h, map[string]string{"cpuacct": cgroup}, dir, unix.MS_RDONLY|unix.MS_NOEXEC) {
			t.Error("nothing was mounted")
		}
		for _, name := range []string{"cpu", "cpuacct"} {
			if to, err := os.Readlink(filepath.Join(dir, name)); err != nil || to != "cpu,cpuacct" {
				t.Errorf("%s leads to %q, %v", name, to, err)
			}
		}
		mounts := mountsAt(t, dir)
		if len(mounts) != 1 || mounts[0].Mountpoint != dir+"/cpu,cpuacct" || !strings.HasSuffix(mounts[0].Root, "/container") ||
			!strings.HasPrefix(mounts[0].Options, "ro,noexec") {
			t.Errorf("mounts %+v", mounts)
		}
	})
}

// TestCgroupsWithoutAPathAreLeft has a container that is in fewer hierarchies than the machine has.
func TestCgroupsWithoutAPathAreLeft(t *testing.T) {
	if cgroups.IsCgroup2UnifiedMode() {
		t.Skip("the machine has no cgroup v1")
	}
	inPrivate(t, func() {
		root, dir := t.TempDir(), t.TempDir()
		m := &configs.Mount{Device: "cgroup", Destination: "/sys/fs/cgroup", Flags: unix.MS_RDONLY}
		config := &configs.Config{
			Rootfs: root, Mounts: []*configs.Mount{m}, Cgroups: &cgroups.Cgroup{},
			Namespaces: configs.Namespaces{{Type: configs.NEWNS}},
		}
		TakeCgroups(config, map[string]string{"memory": filepath.Join(root, "memory")}, dir)
		if !slices.Equal(config.Mounts, []*configs.Mount{m}) {
			t.Errorf("the mounts are %+v", config.Mounts[0])
		}
		if mounts := mountsAt(t, dir); len(mounts) > 0 {
			t.Errorf("mounted: %+v", mounts)
		}
	})
}

// TestWhatIsOutOfTheOrdinaryIsLeft takes nothing where mounts have labels or other owners.
func TestWhatIsOutOfTheOrdinaryIsLeft(t *testing.T) {
	for name, change := range map[string]func(*configs.Config){
		"label":            func(c *configs.Config) { c.MountLabel = "system_u:object_r:container_file_t:s0" },
		"user namespace":   func(c *configs.Config) { c.Namespaces.Add(configs.NEWUSER, "") },
		"host's mounts":    func(c *configs.Config) { c.Namespaces.Remove(configs.NEWNS) },
		"read-only /dev":   func(c *configs.Config) { c.Mounts[0].Flags |= unix.MS_RDONLY },
		"shared root":      func(c *configs.Config) { c.RootPropagation = unix.MS_SHARED | unix.MS_REC },
		"mapped owners":    func(c *configs.Config) { c.Mounts[1].IDMapping = &configs.MountIDMapping{} },
		"recursive option": func(c *configs.Config) { c.Mounts[1].RecAttr = &unix.MountAttr{} },
		"shared file":      func(c *configs.Config) { c.Mounts[1].PropagationFlags = []int{unix.MS_SHARED} },
		"private top":      func(c *configs.Config) { c.Mounts[1].PropagationFlags = []int{unix.MS_PRIVATE} },
		"cleared option":   func(c *configs.Config) { c.Mounts[1].ClearedFlags = unix.MS_NOSUID },
		"a directory":      func(c *configs.Config) { c.Mounts[1].Source = "/" },
	} {
		inPrivate(t, func() {
			root := t.TempDir()
			hosts := filepath.Join(t.TempDir(), "hosts")
			if err := os.WriteFile(hosts, nil, 0o644); err != nil {
				t.Error(err)
			}
			config := &configs.Config{
				Rootfs: root, Namespaces: configs.Namespaces{{Type: configs.NEWNS}}, Mounts: []*configs.Mount{
					{Device: "tmpfs", Source: "tmpfs", Destination: "/dev"},
					{Device: "bind", Source: hosts, Destination: "/etc/hosts", Flags: unix.MS_BIND,
						PropagationFlags: []int{unix.MS_PRIVATE | unix.MS_REC}},
				},
			}
			change(config)
			before := slices.Clone(config.Mounts)
			Take(config)
			left := slices.ContainsFunc(config.Mounts, func(m *configs.Mount) bool { return slices.Contains(before, m) })
			if !left || len(mountsAt(t, root))+len(config.Mounts) != len(before) {
				t.Errorf("%s: left are %d, mounted %d", name, len(config.Mounts), len(mountsAt(t, root)))
			}
		})
	}
}
