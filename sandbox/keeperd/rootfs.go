package keeperd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantry-cri/gantry/sandbox/keeper/idmap"
)

// privateMounts gives the calling thread a mount namespace and a current directory of its own. The thread must be
// locked and never unlocked. What is shared with the host stays shared: volumes mounted later still propagate.
func privateMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w", err)
	}
	return nil
}

// mountFlags are the options that are flags of mount(2); the value false takes the flag away.
var mountFlags = map[string]struct {
	set  bool
	flag uintptr
}{
	"ro": {true, unix.MS_RDONLY}, "rw": {false, unix.MS_RDONLY},
	"nosuid": {true, unix.MS_NOSUID}, "suid": {false, unix.MS_NOSUID},
	"nodev": {true, unix.MS_NODEV}, "dev": {false, unix.MS_NODEV},
	"noexec": {true, unix.MS_NOEXEC}, "exec": {false, unix.MS_NOEXEC},
	"sync": {true, unix.MS_SYNCHRONOUS}, "async": {false, unix.MS_SYNCHRONOUS},
	"noatime": {true, unix.MS_NOATIME}, "atime": {false, unix.MS_NOATIME},
	"nodiratime": {true, unix.MS_NODIRATIME}, "relatime": {true, unix.MS_RELATIME},
	"strictatime": {true, unix.MS_STRICTATIME}, "nosymfollow": {true, unix.MS_NOSYMFOLLOW},
	"bind": {true, unix.MS_BIND}, "rbind": {true, unix.MS_BIND | unix.MS_REC},
	"remount": {true, unix.MS_REMOUNT}, "defaults": {true, 0},
	// The root filesystem is private in any case.
	"private": {true, 0}, "rprivate": {true, 0}, "slave": {true, 0}, "rslave": {true, 0},
}

// parseOptions splits mount options into flags and those for the filesystem.
func parseOptions(options []string) (flags uintptr, data []string) {
	for _, o := range options {
		f, known := mountFlags[o]
		switch {
		case !known:
			data = append(data, o)
		case f.set:
			flags |= f.flag
		default:
			flags &^= f.flag
		}
	}
	return flags, data
}

// mountRootfs mounts all of mounts, in order, at target, which lies on a private mount, for a container in userns,
// which may be nil. It may change the thread's current directory.
func mountRootfs(mounts []specs.Mount, target string, userns *userNamespace) error {
	if len(mounts) == 0 {
		return errors.New("rootfs is empty: expected at least one mount")
	}
	if err := os.Mkdir(target, 0o700); err != nil && !os.IsExist(err) {
		return fmt.Errorf("make rootfs: %w", err)
	}
	for _, m := range mounts {
		m, err := userns.mapRootfs(m, target)
		if err == nil {
			err = mountOne(m, target)
		}
		if err != nil {
			return fmt.Errorf("mount rootfs: %w", err)
		}
	}
	return nil
}

func mountOne(m specs.Mount, target string) error {
	flags, data := parseOptions(m.Options)
	if m.Type == "bind" || m.Type == "rbind" {
		flags |= unix.MS_BIND
		if m.Type == "rbind" {
			flags |= unix.MS_REC
		}
	}
	if flags&unix.MS_BIND != 0 {
		return bindOne(m.Source, target, flags)
	}
	options := strings.Join(data, ",")
	if len(options) < os.Getpagesize() {
		return mountError(m, unix.Mount(m.Source, target, m.Type, flags, options))
	}
	if m.Type != "overlay" {
		return fmt.Errorf("%s: %d bytes of options, the kernel takes less than a page", m.Type, len(options))
	}
	return mountManyLayers(m, target, flags, data)
}

func bindOne(source, target string, flags uintptr) error {
	if err := unix.Mount(source, target, "", flags&(unix.MS_BIND|unix.MS_REC), ""); err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	if flags &^= unix.MS_BIND | unix.MS_REC; flags == 0 {
		return nil
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|flags, ""); err != nil {
		return fmt.Errorf("bind %s: remount: %w", source, err)
	}
	return nil
}

func mountError(m specs.Mount, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s from %q with %q: %w", m.Type, m.Source, strings.Join(m.Options, ","), err)
}

// mountManyLayers mounts an overlay whose options do not fit into the one page that mount(2) takes: layer by layer
// where the kernel can (6.7), else with paths relative to the directory that the layers have in common.
func mountManyLayers(m specs.Mount, target string, flags uintptr, data []string) error {
	if err := mountByLayer(target, flags, data); err == nil {
		return nil
	}
	var lower []string
	for _, o := range data {
		if value, ok := strings.CutPrefix(o, "lowerdir="); ok {
			lower = strings.Split(value, ":")
		}
	}
	common := idmap.Common(lower)
	if err := os.Chdir(common); err != nil {
		return fmt.Errorf("overlay of %d layers: %w", len(lower), err)
	}
	defer os.Chdir("/")
	for i := range lower {
		rel, err := filepath.Rel(common, lower[i])
		if err != nil {
			return fmt.Errorf("overlay of %d layers: %w", len(lower), err)
		}
		lower[i] = rel
	}
	short := make([]string, 0, len(data))
	for _, o := range data {
		if strings.HasPrefix(o, "lowerdir=") {
			o = "lowerdir=" + strings.Join(lower, ":")
		}
		short = append(short, o)
	}
	options := strings.Join(short, ",")
	if len(options) >= os.Getpagesize() {
		return fmt.Errorf("overlay of %d layers: the options are %d bytes even with relative paths", len(lower), len(options))
	}
	return mountError(m, unix.Mount(m.Source, target, m.Type, flags, options))
}

// mountByLayer builds the overlay with fsconfig(2), a call per layer.
func mountByLayer(target string, flags uintptr, data []string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	for _, o := range data {
		key, value, hasValue := strings.Cut(o, "=")
		switch {
		case key == "lowerdir":
			for _, dir := range strings.Split(value, ":") {
				if err := unix.FsconfigSetString(fs, "lowerdir+", dir); err != nil {
					return err
				}
			}
		case hasValue:
			err = unix.FsconfigSetString(fs, key, value)
		default:
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	mfd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, mountAttributes(flags))
	if err != nil {
		return err
	}
	defer unix.Close(mfd)
	return unix.MoveMount(mfd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func mountAttributes(flags uintptr) (attributes int) {
	for flag, attribute := range map[uintptr]int{
		unix.MS_RDONLY: unix.MOUNT_ATTR_RDONLY, unix.MS_NOSUID: unix.MOUNT_ATTR_NOSUID,
		unix.MS_NODEV: unix.MOUNT_ATTR_NODEV, unix.MS_NOEXEC: unix.MOUNT_ATTR_NOEXEC,
		unix.MS_NOATIME: unix.MOUNT_ATTR_NOATIME, unix.MS_NODIRATIME: unix.MOUNT_ATTR_NODIRATIME,
	} {
		if flags&flag != 0 {
			attributes |= attribute
		}
	}
	return attributes
}
