// Package premount mounts for a container, with a few calls each, what libcontainer's init would mount with some hundred
// of them: /dev with what is in it, the sandbox's files in /etc, and on cgroup v1 the tree of /sys/fs/cgroup. Init checks
// each step against a root filesystem that somebody changes meanwhile. The keeper mounts before any process of the
// container, in a mount namespace that only its thread has, on a root filesystem that nothing runs in.
//
// What it mounts is what libcontainer would, option for option, and what is out of the ordinary it leaves to libcontainer:
// user namespaces, labels, links on the way, other options. libcontainer binds the root filesystem with all that is
// mounted on it (prepareRoot), so it takes along what is there already.
package premount

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer/configs"
)

// files are the files that a sandbox gives its containers, and those that the kubelet gives in their place.
var files = []string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}

// taker makes the mounts of one container.
type taker struct {
	config *configs.Config
	root   string
	// dev says that /dev is a tmpfs which was mounted here.
	dev bool
	// left are the places of the mounts that are left to libcontainer, with links resolved, and come before those that are
	// not looked at yet.
	left []string
	// volumes are the places of the mounts that nobody is to look into: they are not mounted yet, or others change them.
	volumes []string
}

// Take mounts at the root filesystem of config what it can of config's mounts and devices, and takes that out of config.
// Mounts keep their order: none is taken that one before it, which is left, could cover. It must be called in the mount
// namespace that the container's is made from, with the root filesystem mounted there, on a private mount; on a thread
// that shares its umask with no other. What cannot be mounted is left as it was.
func Take(config *configs.Config) {
	if !ordinary(config) {
		return
	}
	t := &taker{config: config, root: config.Rootfs}
	mounts := make([]*configs.Mount, 0, len(config.Mounts))
	for _, m := range config.Mounts {
		if t.reaches(m.Destination) && t.take(m) {
			continue
		}
		mounts = append(mounts, m)
		place := t.place(m.Destination)
		t.left = append(t.left, place)
		if !slices.Contains([]string{"proc", "sysfs", "tmpfs"}, m.Device) {
			t.volumes = append(t.volumes, place)
		}
	}
	config.Mounts = mounts
	if t.dev {
		config.Devices = t.makeDevices()
	}
}

// ordinary rejects what changes how mounts are made: users, labels, a root that is shared.
func ordinary(config *configs.Config) bool {
	return !config.Namespaces.Contains(configs.NEWUSER) && config.Namespaces.Contains(configs.NEWNS) &&
		config.MountLabel == "" && !config.NoPivotRoot && config.RootPropagation&(unix.MS_SHARED|unix.MS_UNBINDABLE) == 0
}

// reaches tells whether what is mounted at destination now is what is there at the end: no mount before it is left to
// libcontainer at, above or below the same place.
func (t *taker) reaches(destination string) bool {
	return t.straight(destination) && !slices.ContainsFunc(t.left, func(left string) bool {
		return destination == left || below(destination, left) || below(left, destination)
	})
}

// below tells whether one clean absolute path is below another.
func below(path, above string) bool {
	return path != above && strings.HasPrefix(path, strings.TrimSuffix(above, "/")+"/")
}

// place returns where something with that destination is mounted; the root when nobody knows, as in a volume: it may have
// a link there that leads anywhere.
func (t *taker) place(destination string) string {
	destination = filepath.Clean(destination)
	if t.inVolume(destination) {
		return "/"
	}
	path, err := securejoin.SecureJoin(t.root, destination)
	place := filepath.Join("/", strings.TrimPrefix(path, t.root))
	if err != nil || t.inVolume(place) {
		return "/"
	}
	return place
}

func (t *taker) inVolume(path string) bool {
	return slices.ContainsFunc(t.volumes, func(volume string) bool { return below(path, volume) })
}

// straight tells whether a clean absolute path has no link in the root filesystem.
func (t *taker) straight(path string) bool {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return false
	}
	for i := 1; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			continue
		}
		switch mode, err := lstat(t.root + path[:i]); {
		case err == unix.ENOENT:
			return true
		case err != nil || mode == unix.S_IFLNK:
			return false
		}
	}
	return true
}

// lstat returns the type of a file.
func lstat(path string) (uint32, error) {
	var s unix.Stat_t
	err := unix.Lstat(path, &s)
	return s.Mode & unix.S_IFMT, err
}

// take mounts m, if it is one that it knows, and tells whether it has.
func (t *taker) take(m *configs.Mount) bool {
	if m.RecAttr != nil || m.IDMapping != nil || m.Extensions != 0 {
		return false
	}
	switch {
	case m.Destination == "/dev" && m.Device == "tmpfs":
		t.dev = m.Flags&unix.MS_RDONLY == 0 && t.makeDev(m)
		return t.dev
	case m.Destination == "/dev/pts" && m.Device == "devpts":
		return t.dev && len(m.PropagationFlags) == 0 && t.mount(m, unix.S_IFDIR)
	case m.Destination == "/dev/shm" && m.Device == "bind":
		if !t.dev || !t.bind(m, unix.S_IFDIR) {
			return false
		}
		t.volumes = append(t.volumes, m.Destination)
		return true
	case slices.Contains(files, m.Destination) && m.Device == "bind":
		return t.bind(m, unix.S_IFREG)
	}
	return false
}

// makeDev mounts the tmpfs, with the directories in it for file systems of the kernel: libcontainer takes longer to make
// one. A bind mount may need a file there.
func (t *taker) makeDev(m *configs.Mount) bool {
	if len(m.PropagationFlags) != 0 || !t.mount(m, unix.S_IFDIR) {
		return false
	}
	for _, dir := range []string{"/dev/pts", "/dev/mqueue"} {
		if slices.ContainsFunc(t.config.Mounts, func(m *configs.Mount) bool {
			return m.Destination == dir && m.Device != "bind"
		}) {
			_ = unix.Mkdir(t.root+dir, 0o755) // who mounts there would make it
		}
	}
	return true
}

// mount mounts at a place of the type mode.
func (t *taker) mount(m *configs.Mount, mode uint32) bool {
	target := t.root + m.Destination
	return offer(target, mode) && unix.Mount(m.Source, target, m.Device, uintptr(m.Flags), m.Data) == nil
}

// offer tells whether target is of the type mode, and makes it if it is missing.
func offer(target string, mode uint32) bool {
	is, err := lstat(target)
	return err == nil && is == mode || err == unix.ENOENT && makePlace(target, mode)
}

// makePlace makes what is mounted at, as libcontainer does.
func makePlace(target string, mode uint32) bool {
	if mode == unix.S_IFDIR {
		return os.MkdirAll(target, 0o755) == nil
	}
	if os.MkdirAll(filepath.Dir(target), 0o755) != nil {
		return false
	}
	fd, err := unix.Open(target, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err == nil
}
